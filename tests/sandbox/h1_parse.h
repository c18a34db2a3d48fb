// The strict parts of HTTP/1.1: heads and chunk sizes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "tests/sandbox/core_exchange.h"

namespace e2bfs::sandbox {

struct H1Head {
  RequestHead request;
  bool keep_alive = true;
  bool http10 = false;
  bool chunked = false;
  int64_t content_length = 0;  // when not chunked
  bool expect_continue = false;
};

// `text` is the head with the empty line at its end. On failure the status to answer with: 400, 501 or 505.
// Refused: bare CR, LF or NUL, folded lines, both or different lengths, unknown transfer codings, no Host.
struct H1ParseResult {
  std::optional<H1Head> head;
  int status = 0;
};
H1ParseResult ParseH1Head(std::string_view text);

// The number at the start of a chunk's line (extensions are ignored); nullopt if there is none or it is absurd.
std::optional<int64_t> ParseChunkSize(std::string_view line);

}  // namespace e2bfs::sandbox
