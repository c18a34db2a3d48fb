#include "tests/component/sandbox_envd/envd_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cctype>
#include <cstdlib>
#include <filesystem>

namespace e2bfs::sandbox::test {
namespace {

int ConnectToSandbox(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  timeval patience{60, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    ADD_FAILURE() << "cannot connect to port " << port;
  }
  return fd;
}

void SendText(int fd, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t sent = send(fd, text.data() + done, text.size() - done, MSG_NOSIGNAL);
    if (sent <= 0) {
      return;  // the answer, or its absence, tells
    }
    done += static_cast<size_t>(sent);
  }
}

std::string RequestText(const EnvdRequest& request) {
  std::string text = request.method + " " + request.target + " HTTP/1.1\r\nConnection: close\r\n";
  bool has_host = false;
  for (const std::string& header : request.headers) {
    text += header + "\r\n";
    has_host |= header.rfind("Host:", 0) == 0;
  }
  if (!has_host) {
    text += "Host: 127.0.0.1\r\n";
  }
  if (request.method == "POST") {
    text += "Content-Length: " + std::to_string(request.body.size()) + "\r\n";
  }
  return text + "\r\n" + request.body;
}

std::string JoinChunks(const std::string& chunked) {
  std::string body;
  for (size_t at = 0; at < chunked.size();) {
    const size_t line = chunked.find("\r\n", at);
    const size_t size = strtoul(chunked.c_str() + at, nullptr, 16);
    if (line == std::string::npos || size == 0) {
      break;
    }
    body += chunked.substr(line + 2, size);
    at = line + 2 + size + 2;
  }
  return body;
}

}  // namespace

EnvdAnswer AskEnvd(int port, const EnvdRequest& request) {
  const int fd = ConnectToSandbox(port);
  SendText(fd, RequestText(request));
  std::string all;
  char buffer[65536];
  ssize_t got = 0;
  while ((got = recv(fd, buffer, sizeof(buffer), 0)) > 0) {
    all.append(buffer, static_cast<size_t>(got));
  }
  close(fd);
  EnvdAnswer answer;
  const size_t end = all.find("\r\n\r\n");
  if (end == std::string::npos || all.size() < 12) {
    return answer;
  }
  answer.status = atoi(all.c_str() + 9);
  for (size_t at = all.find("\r\n") + 2; at < end + 2;) {
    const size_t line_end = all.find("\r\n", at);
    const std::string line = all.substr(at, line_end - at);
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) {
      std::string name = line.substr(0, colon);
      for (char& c : name) {
        c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      }
      answer.headers[name] = line.substr(colon + 2);
    }
    at = line_end + 2;
  }
  answer.body = all.substr(end + 4);
  if (answer.headers.count("transfer-encoding") != 0) {
    answer.body = JoinChunks(answer.body);
  }
  return answer;
}

std::string EnvdEnvelope(const std::string& json) {
  std::string envelope(1, '\0');
  for (int shift = 24; shift >= 0; shift -= 8) {
    envelope += static_cast<char>(json.size() >> shift & 0xFF);
  }
  return envelope + json;
}

EnvdStream::EnvdStream(int port, const std::string& procedure, const std::string& json,
                       const std::vector<std::string>& headers)
    : fd_(ConnectToSandbox(port)) {
  EnvdRequest request{"POST", procedure, headers, EnvdEnvelope(json)};
  request.headers.emplace_back("Content-Type: application/connect+json");
  SendText(fd_, RequestText(request));
}

EnvdStream::~EnvdStream() { close(fd_); }

bool EnvdStream::ReadUntil(const std::string& text) {
  while (received_.find(text) == std::string::npos) {
    char buffer[65536];
    const ssize_t got = recv(fd_, buffer, sizeof(buffer), 0);
    if (got <= 0) {
      return false;
    }
    received_.append(buffer, static_cast<size_t>(got));
  }
  return true;
}

SandboxEnvdTest::SandboxEnvdTest() {
  std::string pattern = (std::filesystem::temp_directory_path() / "e2bfs-sandbox-envd-XXXXXX").string();
  root_ = mkdtemp(pattern.data());
  options_.root = root_;
}

SandboxEnvdTest::~SandboxEnvdTest() {
  sandbox_.reset();
  std::filesystem::remove_all(root_);
}

void SandboxEnvdTest::Begin() {
  sandbox_.reset();
  sandbox_ = std::make_unique<Sandbox>(options_);
}

EnvdAnswer SandboxEnvdTest::Get(const std::string& target, const std::vector<std::string>& headers) {
  return AskEnvd(port(), {"GET", target, headers, ""});
}

EnvdAnswer SandboxEnvdTest::Post(const std::string& target, const std::string& body,
                                 const std::vector<std::string>& headers) {
  return AskEnvd(port(), {"POST", target, headers, body});
}

EnvdAnswer SandboxEnvdTest::Rpc(const std::string& method, const std::string& json,
                                const std::vector<std::string>& headers) {
  std::vector<std::string> all = headers;
  all.emplace_back("Content-Type: application/json");
  return Post("/" + method, json, all);
}

}  // namespace e2bfs::sandbox::test
