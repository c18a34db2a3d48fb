// Secret: a string that cannot be printed and is wiped when it goes: API keys and access tokens.
//
// There is no stream operator, no fmt formatter and no conversion to std::string: the one way to the text is Reveal(),
// so that a search for it finds every place where a secret leaves.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <string_view>

namespace e2bfs::transport {

// A value; copies share one immutable buffer, which is wiped when the last copy goes. Any thread may use its own copy.
class Secret {
 public:
  Secret() = default;
  // Copies `text`; the caller wipes its own (Wipe).
  explicit Secret(std::string_view text) : text_(text.empty() ? nullptr : std::make_shared<const Buffer>(text)) {}

  bool empty() const { return text_ == nullptr; }
  // Valid as long as a copy of this Secret lives. For request headers only.
  std::string_view Reveal() const { return text_ ? std::string_view(text_->text) : std::string_view(); }

  friend bool operator==(const Secret& a, const Secret& b) { return a.Reveal() == b.Reveal(); }

  // Overwrites a string that held a secret; the compiler may not drop it.
  static void Wipe(std::string& text) {
    if (!text.empty()) explicit_bzero(text.data(), text.size());
    text.clear();
  }

 private:
  struct Buffer {
    explicit Buffer(std::string_view source) : text(source) {}
    ~Buffer() { Wipe(text); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    std::string text;
  };
  std::shared_ptr<const Buffer> text_;
};

}  // namespace e2bfs::transport
