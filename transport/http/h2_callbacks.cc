#include "transport/http/h2_callbacks.h"

#include <nghttp2/nghttp2.h>

#include <memory>

#include "transport/http/h2_connection.h"
#include "transport/http/h2_stream.h"

namespace e2bfs::transport::http {

struct H2Callbacks {
  using Stream = H2Connection::Stream;

  static H2Connection& Of(void* user_data) { return *static_cast<H2Connection*>(user_data); }
  static std::string_view Text(nghttp2_rcbuf* buffer) {
    const nghttp2_vec bytes = nghttp2_rcbuf_get_buf(buffer);
    return {reinterpret_cast<const char*>(bytes.base), bytes.len};
  }

  static int OnBeginHeaders(nghttp2_session*, const nghttp2_frame* frame, void* user_data) {
    if (frame->hd.type != NGHTTP2_HEADERS) return 0;
    if (Stream* stream = Of(user_data).Find(frame->hd.stream_id)) Of(user_data).BeginHead(*stream);
    return 0;
  }

  static int OnHeader(nghttp2_session*, const nghttp2_frame* frame, nghttp2_rcbuf* name, nghttp2_rcbuf* value, uint8_t,
                      void* user_data) {
    if (frame->hd.type != NGHTTP2_HEADERS) return 0;
    Stream* stream = Of(user_data).Find(frame->hd.stream_id);
    if (stream == nullptr) return 0;
    // TEMPORAL_CALLBACK_FAILURE: nghttp2 resets the stream.
    return Of(user_data).AddHeader(*stream, Text(name), Text(value)) ? 0 : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  }

  static int OnData(nghttp2_session* session, uint8_t, int32_t stream_id, const uint8_t* data, size_t length,
                    void* user_data) {
    Stream* stream = Of(user_data).Find(stream_id);
    if (stream == nullptr || stream->exchange == nullptr) {
      nghttp2_session_consume(session, stream_id, length);
      return 0;
    }
    stream->unconsumed += length;
    stream->exchange->AppendBody({reinterpret_cast<const char*>(data), length});
    return 0;
  }

  static int OnFrame(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) {
    H2Connection& connection = Of(user_data);
    switch (frame->hd.type) {
      case NGHTTP2_SETTINGS:
        if ((frame->hd.flags & NGHTTP2_FLAG_ACK) == 0) connection.OnSettings();
        return 0;
      case NGHTTP2_PING:
        if ((frame->hd.flags & NGHTTP2_FLAG_ACK) != 0) connection.OnPong();
        return 0;
      case NGHTTP2_GOAWAY: connection.OnGoAway(); return 0;
      default: break;
    }
    Stream* stream = connection.Find(frame->hd.stream_id);
    if (stream == nullptr) return 0;
    if (frame->hd.type == NGHTTP2_RST_STREAM) stream->reset_by_peer = true;
    if (frame->hd.type == NGHTTP2_HEADERS && !connection.EndHead(*stream)) {
      nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_PROTOCOL_ERROR);
      return 0;
    }
    const bool carries_end = frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA;
    if (carries_end && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0) {
      connection.EndOfResponse(*stream);
      // The server has answered without waiting for the rest of the request.
      if (!stream->upload_ended) {
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR);
      }
    }
    return 0;
  }

  static int OnFrameSent(nghttp2_session*, const nghttp2_frame* frame, void* user_data) {
    if (frame->hd.type != NGHTTP2_HEADERS) return 0;
    if (Stream* stream = Of(user_data).Find(frame->hd.stream_id)) Of(user_data).HeadersSent(*stream);
    return 0;
  }

  static int OnFrameNotSent(nghttp2_session*, const nghttp2_frame* frame, int, void* user_data) {
    if (frame->hd.type == NGHTTP2_HEADERS) Of(user_data).OnNotSent(frame->hd.stream_id);
    return 0;
  }

  static ssize_t ReadBody(Stream& stream, uint8_t* buffer, size_t length, uint32_t* flags) {
    if (stream.exchange == nullptr) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;  // already being reset
    size_t taken = 0;
    switch (stream.exchange->TakeRequestBody(reinterpret_cast<char*>(buffer), length, &taken)) {
      case ExchangeState::BodyPart::kMore: break;
      case ExchangeState::BodyPart::kEmpty: stream.upload_deferred = true; return NGHTTP2_ERR_DEFERRED;
      case ExchangeState::BodyPart::kEnd:
        stream.upload_ended = true;
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        break;
    }
    return static_cast<ssize_t>(taken);
  }

  static int OnStreamClose(nghttp2_session*, int32_t stream_id, uint32_t code, void* user_data) {
    Of(user_data).OnStreamClosed(stream_id, code);
    return 0;
  }
};

ssize_t ReadH2RequestBody(nghttp2_session*, int32_t, uint8_t* buffer, size_t length, uint32_t* flags,
                          nghttp2_data_source* source, void*) {
  return H2Callbacks::ReadBody(*static_cast<H2Callbacks::Stream*>(source->ptr), buffer, length, flags);
}

nghttp2_session* NewH2Session(H2Connection& connection) {
  nghttp2_session_callbacks* callbacks = nullptr;
  nghttp2_option* option = nullptr;
  nghttp2_session* session = nullptr;
  if (nghttp2_session_callbacks_new(&callbacks) != 0) return nullptr;
  if (nghttp2_option_new(&option) == 0) {
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, &H2Callbacks::OnBeginHeaders);
    nghttp2_session_callbacks_set_on_header_callback2(callbacks, &H2Callbacks::OnHeader);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, &H2Callbacks::OnData);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, &H2Callbacks::OnFrame);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, &H2Callbacks::OnFrameSent);
    nghttp2_session_callbacks_set_on_frame_not_send_callback(callbacks, &H2Callbacks::OnFrameNotSent);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, &H2Callbacks::OnStreamClose);
    nghttp2_option_set_no_auto_window_update(option, 1);
    nghttp2_option_set_max_reserved_remote_streams(option, 0);
    nghttp2_option_set_max_settings(option, 32);
    nghttp2_option_set_max_outbound_ack(option, 100);  // a flood of PING or SETTINGS ends the connection
    if (nghttp2_session_client_new2(&session, callbacks, &connection, option) != 0) session = nullptr;
    nghttp2_option_del(option);
  }
  nghttp2_session_callbacks_del(callbacks);
  return session;
}

}  // namespace e2bfs::transport::http
