#include "tests/component/http/http_fixture.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <thread>

namespace e2bfs::http_test {

using transport::http::ClientOptions;
using transport::http::HttpClient;
using transport::http::ProtocolChoice;
using transport::http::Request;

TemporaryDirectory::TemporaryDirectory() {
  path_ = (std::filesystem::temp_directory_path() / "e2bfs-http-XXXXXX").string();
  if (mkdtemp(path_.data()) == nullptr) throw std::runtime_error("no temporary directory");
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

sandbox::Fault MakeFault(const std::string& match, const std::string& action, int skip, int count, int64_t at_byte) {
  sandbox::Fault fault;
  fault.match = match;
  fault.action = action;
  fault.skip = skip;
  fault.count = count;
  fault.at_byte = at_byte;
  return fault;
}

std::string Pattern(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>((i * 31 + i / 251) & 0xff);
  return bytes;
}

namespace {

void WaitForTheClientToGo(sandbox::Exchange& exchange) {
  while (!exchange.ClientGone()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

void ServeTestResource(sandbox::Exchange& exchange) {
  const std::string& path = exchange.path();
  const size_t size = std::strtoull(exchange.Query("n").value_or("0").c_str(), nullptr, 10);
  if (path == "/bytes") return exchange.Reply(200, {}, Pattern(size));
  if (path == "/empty") return exchange.Reply(204, {}, "");
  if (path == "/headers") {
    std::string text;
    for (const auto& [name, value] : exchange.headers()) text += name + "=" + value + "\n";
    return exchange.Reply(200, {{"x-first", "one"}, {"x-empty", ""}}, text);
  }
  if (path == "/stream") {
    exchange.SendHead(200, {});
    std::string piece = Pattern(std::min<size_t>(size, 65536));
    for (size_t sent = 0; sent < size; sent += piece.size()) {
      piece.resize(std::min(piece.size(), size - sent));
      if (!exchange.Write(piece)) return;
    }
    return;
  }
  if (path == "/gzip") {
    return exchange.Reply(200, {{"content-encoding", "gzip"}}, transport::http::GzipCompress(Pattern(size)));
  }
  if (path == "/gzip-torn" || path == "/gzip-trailer" || path == "/gzip-more") {
    std::string body = transport::http::GzipCompress(Pattern(size));
    if (path == "/gzip-torn") body.resize(body.size() / 2);
    if (path == "/gzip-trailer") body.back() = static_cast<char>(body.back() ^ 1);
    if (path == "/gzip-more") body += "more";
    return exchange.Reply(200, {{"content-encoding", "gzip"}}, body);
  }
  if (path == "/big-head") {
    sandbox::HeaderList headers;
    for (size_t i = 0; i < size; ++i) headers.emplace_back("x-" + std::to_string(i), std::string(40, 'x'));
    return exchange.Reply(200, headers, "");
  }
  if (path == "/ignore") return exchange.Reply(413, {}, "too long");
  if (path == "/hold") return WaitForTheClientToGo(exchange);
  if (path == "/silent") {
    exchange.SendHead(200, {});
    if (!exchange.Write("begin")) return;
    return WaitForTheClientToGo(exchange);
  }
  if (path == "/talk") {
    // Answers each piece while the request's body is still open.
    exchange.SendHead(200, {});
    char buffer[4096];
    while (true) {
      const auto count = exchange.ReadBody(buffer, sizeof buffer);
      if (!count || *count == 0) return;
      if (!exchange.Write(std::string_view(buffer, *count))) return;
    }
  }
  if (path == "/echo" || path == "/length") {
    const auto body = exchange.ReadWholeBody(size_t{256} << 20);
    if (!body) return exchange.Abort();
    return exchange.Reply(200, {}, path == "/echo" ? *body : std::to_string(body->size()));
  }
  exchange.Reply(404, {}, "no such resource");
}

}  // namespace

TestServer::TestServer(sandbox::ServerOptions options) {
  if (options.tls_listen.empty()) options.tls_listen = "127.0.0.1:0";
  server_ = std::make_unique<sandbox::Server>(options, ServeTestResource);
  ca_file_ = directory_.path() + "/authority.pem";
  std::ofstream(ca_file_) << server_->certificate_pem();
}

std::string TestServer::origin() const { return "http://127.0.0.1:" + std::to_string(server_->port()); }
std::string TestServer::tls_origin() const { return "https://localhost:" + std::to_string(server_->tls_port()); }

bool Eventually(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return condition();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

OpContext Soon(ServiceClass service_class) { return OpContext::Within(std::chrono::seconds(120), service_class); }

Result<std::string> ReadAll(transport::http::Exchange& exchange) {
  std::string all;
  std::string buffer(65536, '\0');
  while (true) {
    auto count = exchange.Read(buffer.data(), buffer.size(), Soon());
    if (!count) return Forward(count.error());
    if (*count == 0) return all;
    all.append(buffer, 0, *count);
  }
}

std::string WireName(const ::testing::TestParamInfo<Wire>& info) {
  switch (info.param) {
    case Wire::kHttp1Clear: return "Http1Clear";
    case Wire::kHttp1Tls: return "Http1Tls";
    case Wire::kHttp2: break;
  }
  return "Http2";
}

std::unique_ptr<HttpClient> WireTest::MakeClient(const std::function<void(ClientOptions&)>& change) {
  ClientOptions options;
  options.ca_file = test_server_.ca_file();
  if (GetParam() == Wire::kHttp1Tls) options.protocol = ProtocolChoice::kHttp1Only;
  if (change) change(options);
  auto client = HttpClient::Create(options);
  if (!client) throw std::runtime_error(ToString(client.error()));
  return std::move(*client);
}

Request WireTest::Get(const std::string& target) const {
  Request request;
  request.origin = origin();
  request.target = target;
  request.idempotent = true;
  return request;
}

Request WireTest::Post(const std::string& target, std::string body) const {
  Request request;
  request.origin = origin();
  request.method = "POST";
  request.target = target;
  request.body = std::move(body);
  return request;
}

}  // namespace e2bfs::http_test
