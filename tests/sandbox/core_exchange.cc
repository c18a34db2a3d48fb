#include "tests/sandbox/core_exchange.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <ctime>
#include <thread>

#include "tests/sandbox/text.h"

namespace e2bfs::sandbox {
namespace {

constexpr size_t kMaxLateBytes = size_t{64} << 20;

}  // namespace

void RequestHead::SetTarget(std::string text) {
  target = std::move(text);
  const size_t question = target.find('?');
  path = PercentDecode(std::string_view(target).substr(0, question), false);
  raw_query = question == std::string::npos ? "" : target.substr(question + 1);
}

CoreExchange::CoreExchange(Core& core, const RequestHead& head, TakenFault taken)
    : core_(core), head_(head), taken_(std::move(taken)), is_test_(IsTestPath(head.path)) {}

void CoreExchange::Run() {
  if (is_test_) {
    if (!HandleTestRequest(core_.server, *this)) {
      Reply(404, {{"content-type", "text/plain"}}, "no such test request\n");
    }
    Finish();
    return;
  }
  const Fault& fault = taken_.fault;
  if (taken_.delay_ms > 0) {
    RawSleep(taken_.delay_ms);
  }
  if (Is("status") || Is("replace_body")) {
    Reply(Is("status") ? fault.status : 200, {{"content-type", fault.content_type}}, fault.body);
  } else if ((Is("reset") || Is("close")) && fault.at_byte == -1) {
    TearNow(Is("reset") ? Tear::kReset : Tear::kClose);
  } else {
    swallow_ = (Is("reset") || Is("close")) && fault.at_byte == -2;
    core_.handler(*this);
  }
  Finish();
}

void CoreExchange::Finish() {
  if (torn_) {
    return;
  }
  if (swallow_) {
    TearNow(Is("reset") ? Tear::kReset : Tear::kClose);
    return;
  }
  if (aborted_) {
    if (head_sent_) {
      RawFlush();
    }
    TearNow(Tear::kAbort);
    return;
  }
  if (!head_sent_) {
    SendHead(200, {{"content-length", "0"}});
  }
  if (!torn_ && ActAtByte()) {
    return;
  }
  if (!torn_) {
    torn_ = true;
    RawEnd(has_body_ && length_ && written_ < *length_ ? Ending::kShort : Ending::kWhole);
  }
}

void CoreExchange::TearNow(Tear how) {
  torn_ = true;
  RawTear(how);
}

// Acts if the response is where the fault wants it. True if the response is over.
bool CoreExchange::ActAtByte() {
  const Fault& fault = taken_.fault;
  if (swallow_ || is_test_ || fault.at_byte < 0 || written_ != fault.at_byte) {
    return false;
  }
  if (Is("stall")) {
    RawFlush();
    torn_ = true;
    RawStall(taken_.generation);
  } else if (Is("reset") || Is("close")) {
    RawFlush();
    TearNow(Is("reset") ? Tear::kReset : Tear::kClose);
  } else if (Is("cut")) {
    torn_ = true;
    RawEnd(has_body_ && length_ && written_ < *length_ ? Ending::kCut : Ending::kWhole);
  }
  return torn_;
}

std::optional<size_t> CoreExchange::ReadBody(char* buffer, size_t capacity) {
  if (torn_ && taken_.fault.action == "reset_request") {
    return std::nullopt;
  }
  if (Is("stall_request") || Is("reset_request")) {
    const int64_t left = taken_.fault.at_byte - body_read_;
    if (left <= 0) {
      if (Is("stall_request")) {
        RawStall(taken_.generation);
        torn_ = true;
      } else {
        TearNow(Tear::kReset);
      }
      return std::nullopt;
    }
    capacity = std::min(capacity, static_cast<size_t>(left));
  }
  if (capacity == 0) {
    return 0;
  }
  if (Is("late_request")) {
    const int64_t left = taken_.fault.at_byte - body_read_;
    if (left <= 0 || late_) {
      return ReadLate(buffer, capacity);
    }
    capacity = std::min(capacity, static_cast<size_t>(left));
  }
  const std::optional<size_t> got = RawRead(buffer, capacity);
  if (got) {
    body_read_ += static_cast<int64_t>(*got);
    if (!is_test_) {
      core_.counts.RequestBodyBytes(static_cast<int64_t>(*got));
    }
  }
  return got;
}

std::optional<size_t> CoreExchange::ReadLate(char* buffer, size_t capacity) {
  if (!late_) {
    late_.emplace();
    char part[16384];
    while (late_->size() < kMaxLateBytes) {
      const std::optional<size_t> got = RawRead(part, sizeof part);
      late_whole_ = got == size_t{0};
      if (!got || *got == 0) {
        break;
      }
      late_->append(part, *got);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(taken_.fault.delay_ms));
  }
  if (late_->empty()) {
    return late_whole_ ? std::optional<size_t>(0) : std::nullopt;
  }
  const size_t given = late_->copy(buffer, capacity);
  late_->erase(0, given);
  body_read_ += static_cast<int64_t>(given);
  return given;
}

void CoreExchange::SendHead(int status, const HeaderList& headers) {
  if (head_sent_ || torn_) {
    return;
  }
  if (swallow_) {
    head_sent_ = true;
    return;
  }
  if (Is("stall") && taken_.fault.at_byte < 0) {
    torn_ = true;
    RawStall(taken_.generation);
    return;
  }
  const int64_t latency_ms = core_.latency_ms;
  if (latency_ms > 0 && !is_test_) {
    RawSleep(latency_ms);
  }
  bool has_date = false;
  HeaderList clean;
  for (const auto& [name, value] : headers) {
    std::string text = value;
    std::replace_if(text.begin(), text.end(), [](char c) { return c == '\r' || c == '\n' || c == '\0'; }, ' ');
    if (name == "content-length") {
      int64_t length = 0;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
      if (error == std::errc() && end == text.data() + text.size()) {
        length_ = length;
      }
    }
    has_date = has_date || name == "date";
    clean.emplace_back(name, std::move(text));
  }
  if (!has_date) {
    clean.emplace_back("date", HttpDate(time(nullptr)));
  }
  has_body_ = head_.method != "HEAD" && status != 204 && status != 304;
  head_sent_ = true;
  if (!is_test_) {
    core_.counts.AnswerBegins(head_.place);
  }
  RawHead(status, clean, length_, has_body_);
}

bool CoreExchange::Write(std::string_view bytes) {
  if (torn_) {
    return false;
  }
  if (!head_sent_) {
    SendHead(200, {});
    if (torn_) {
      return false;
    }
  }
  if (swallow_ || !has_body_) {
    return true;
  }
  if (length_ && written_ + static_cast<int64_t>(bytes.size()) > *length_) {
    return false;  // as Go: more than promised is refused
  }
  const int64_t at = taken_.fault.at_byte;
  const bool acts = Is("stall") || Is("reset") || Is("close") || Is("cut");
  if (!is_test_ && acts && at >= 0 && written_ + static_cast<int64_t>(bytes.size()) > at) {
    const std::string_view before = bytes.substr(0, static_cast<size_t>(at - written_));
    if (!before.empty() && !RawWrite(before)) {
      return false;
    }
    written_ = at;
    ActAtByte();
    return false;
  }
  if (bytes.empty()) {
    return !RawGone();
  }
  if (!RawWrite(bytes)) {
    return false;
  }
  written_ += static_cast<int64_t>(bytes.size());
  return true;
}

}  // namespace e2bfs::sandbox
