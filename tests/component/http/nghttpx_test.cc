// Through nghttpx, as an edge that nobody here wrote: HTTP/2 by TLS in front of the server's HTTP/1.1.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tests/component/http/http_fixture.h"

namespace e2bfs::http_test {
namespace {

using transport::http::ClientOptions;
using transport::http::Exchange;
using transport::http::HttpClient;
using transport::http::Protocol;
using transport::http::Request;

// A key and a certificate for "localhost" that signs itself.
bool WriteCertificate(const std::string& key_file, const std::string& certificate_file) {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = X509_new();
  if (key == nullptr || certificate == nullptr) return false;
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate), 24 * 3600);
  X509_NAME* name = X509_get_subject_name(certificate);
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("e2bfs test edge"), -1, -1, 0);
  X509_set_issuer_name(certificate, name);
  X509_set_pubkey(certificate, key);
  for (const auto& [kind, value] : {std::pair{NID_subject_alt_name, "DNS:localhost"}, {NID_basic_constraints, "critical,CA:TRUE"}}) {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, kind, value);
    X509_add_ext(certificate, extension, -1);
    X509_EXTENSION_free(extension);
  }
  bool written = X509_sign(certificate, key, EVP_sha256()) != 0;
  if (FILE* file = fopen(key_file.c_str(), "w")) {
    written = written && PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr) == 1;
    fclose(file);
  }
  if (FILE* file = fopen(certificate_file.c_str(), "w")) {
    written = written && PEM_write_X509(file, certificate) == 1;
    fclose(file);
  }
  X509_free(certificate);
  EVP_PKEY_free(key);
  return written;
}

class NghttpxTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string key = directory_.path() + "/key.pem";
    certificate_ = directory_.path() + "/certificate.pem";
    ASSERT_TRUE(WriteCertificate(key, certificate_));
    // The socket listens before the program runs, which inherits it: no port is guessed, and nobody has to wait.
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
    ASSERT_EQ(listen(listener, 128), 0);
    ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    std::vector<std::string> words = {"nghttpx", "--conf=/dev/null", "--single-process", "--workers=1", "--no-ocsp",
                                      "--log-level=ERROR", "-f127.0.0.1," + std::to_string(port_),
                                      "-b127.0.0.1," + std::to_string(server_.server().port()), key, certificate_};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    std::vector<std::string> variables = {"NGHTTPX_ACCEPT_1=tcp," + std::to_string(listener), "PATH=/usr/sbin:/usr/bin:/sbin:/bin"};
    std::vector<char*> environment;
    for (std::string& variable : variables) environment.push_back(variable.data());
    environment.push_back(nullptr);
    int outcome = posix_spawn(&pid_, "/usr/sbin/nghttpx", nullptr, nullptr, arguments.data(), environment.data());
    if (outcome == ENOENT) outcome = posix_spawnp(&pid_, "nghttpx", nullptr, nullptr, arguments.data(), environment.data());
    close(listener);
    ASSERT_EQ(outcome, 0) << "nghttpx is missing: install nghttp2-proxy";
    MakeClient();
  }

  void MakeClient(const std::function<void(ClientOptions&)>& change = {}) {
    ClientOptions options;
    options.ca_file = certificate_;
    if (change) change(options);
    auto client = HttpClient::Create(options);
    ASSERT_TRUE(client);
    client_ = std::move(*client);
  }

  void TearDown() override {
    client_.reset();
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

  Request Ask(const std::string& method, const std::string& target) const {
    Request request;
    request.method = method;
    request.origin = "https://localhost:" + std::to_string(port_);
    request.target = target;
    return request;
  }

  TestServer server_;
  TemporaryDirectory directory_;
  std::string certificate_;
  int port_ = 0;
  pid_t pid_ = 0;
  std::unique_ptr<HttpClient> client_;
};

TEST_F(NghttpxTest, BodiesBothWays) {
  for (size_t size : {0u, 10u, 3'000'000u}) {
    Request request = Ask("POST", "/echo");
    request.body = Pattern(size);
    const auto response = client_->Fetch(request, Soon(), 3'000'000);
    ASSERT_TRUE(response) << ToString(response.error());
    EXPECT_EQ(response->head.protocol, Protocol::kHttp2);
    EXPECT_TRUE(response->body == Pattern(size)) << size;
  }
  const auto stream = client_->Fetch(Ask("GET", "/stream?n=3000000"), Soon(), 3'000'000);
  ASSERT_TRUE(stream) << ToString(stream.error());
  EXPECT_EQ(stream->body.size(), 3'000'000u);
}

TEST_F(NghttpxTest, ManyAtOnce) {
  std::vector<std::unique_ptr<Exchange>> exchanges;
  for (int i = 0; i < 250; ++i) exchanges.push_back(std::move(*client_->Start(Ask("GET", "/bytes?n=1000"), Soon())));
  for (auto& exchange : exchanges) {
    const auto head = exchange->WaitHead(Soon());
    ASSERT_TRUE(head) << ToString(head.error());
    EXPECT_EQ(ReadAll(*exchange).value_or("").size(), 1000u);
  }
  EXPECT_EQ(server_.server().counts().total_requests, 250);
  EXPECT_LE(client_->statistics().connections_opened, 21);
}

TEST_F(NghttpxTest, TornBodyIsNotComplete) {
  server_.server().AddFault(MakeFault("GET /stream", "reset", 0, 1, 300'000));
  const auto torn = client_->Fetch(Ask("GET", "/stream?n=1000000"), Soon(), 3'000'000);
  ASSERT_FALSE(torn);
  EXPECT_EQ(torn.error().errno_value, EIO);
  EXPECT_TRUE(client_->Fetch(Ask("GET", "/stream?n=1000000"), Soon(), 3'000'000));
}

TEST_F(NghttpxTest, AnEdgeThatStopsForwardingIsASilentNetwork) {
  MakeClient([](ClientOptions& options) { options.ping_timeout = std::chrono::milliseconds(400); });
  ASSERT_TRUE(client_->Fetch(Ask("GET", "/bytes?n=10"), Soon(), 100));
  auto open = client_->Start(Ask("GET", "/stream?n=50000000"), Soon());
  ASSERT_TRUE(open && (*open)->WaitHead(Soon()));
  // Its sockets stay open and its kernel acknowledges: nothing but the silence says that it is gone.
  ASSERT_EQ(kill(pid_, SIGSTOP), 0);
  ASSERT_EQ(waitpid(pid_, nullptr, WUNTRACED), pid_);  // a thread that runs may answer before it stops
  Request request = Ask("GET", "/bytes?n=10");
  request.head_timeout = std::chrono::milliseconds(400);
  const auto lost = client_->Fetch(request, Soon(), 100);
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().errno_value, ETIMEDOUT);
  // The connection is given up with all that was on it, and the next request does not wait for it.
  EXPECT_FALSE(ReadAll(**open));
  EXPECT_TRUE(Eventually([&] { return client_->statistics().connections_now == 0; }));
  ASSERT_EQ(kill(pid_, SIGCONT), 0);
  for (int i = 0; i < 4; ++i) {
    const auto next = client_->Fetch(Ask("GET", "/bytes?n=10"), Soon(), 100);
    ASSERT_TRUE(next) << i << ": " << ToString(next.error());
  }
  EXPECT_EQ(client_->statistics().connections_opened, 2);
}

TEST_F(NghttpxTest, StreamedRequestIsAnsweredPieceByPiece) {
  Request request = Ask("POST", "/talk");
  request.streamed_body = true;
  request.no_head_timeout = true;
  auto exchange = client_->Start(request, Soon(ServiceClass::kStream));
  ASSERT_TRUE(exchange);
  char buffer[64];
  for (std::string word : {"one", "two", "three"}) {
    ASSERT_TRUE((*exchange)->Write(word, Soon()));
    ASSERT_TRUE((*exchange)->WaitHead(Soon()));
    const auto count = (*exchange)->Read(buffer, sizeof buffer, Soon());
    ASSERT_TRUE(count) << ToString(count.error());
    EXPECT_EQ(std::string(buffer, *count), word);
  }
  ASSERT_TRUE((*exchange)->FinishBody(Soon()));
  EXPECT_EQ(ReadAll(**exchange).value_or("?"), "");
}

}  // namespace
}  // namespace e2bfs::http_test
