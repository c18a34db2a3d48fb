// What nghttp2 calls: C functions that find the connection and the stream and call them.
#pragma once

#include <nghttp2/nghttp2.h>

namespace e2bfs::transport::http {

class H2Connection;

// A client session for the connection, set up as the pool needs it (no automatic windows, no push). Null: no memory.
nghttp2_session* NewH2Session(H2Connection& connection);

// The data provider of a request's body; source->ptr is its H2Connection::Stream.
ssize_t ReadH2RequestBody(nghttp2_session* session, int32_t stream_id, uint8_t* buffer, size_t length, uint32_t* flags,
                          nghttp2_data_source* source, void* connection);

}  // namespace e2bfs::transport::http
