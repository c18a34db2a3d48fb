#include "transport/http/tls.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>

namespace e2bfs::transport::http {
namespace {

constexpr size_t kReadBufferBytes = 128 << 10;

// Each name with its length in front, in order of preference (RFC 7301).
constexpr unsigned char kAlpnNames[] = "\x02h2\x08http/1.1";

bool IsAddressLiteral(const std::string& host) {
  in6_addr scratch;
  return inet_pton(AF_INET, host.c_str(), &scratch) == 1 || inet_pton(AF_INET6, host.c_str(), &scratch) == 1;
}

// Of a list with ':' between: OpenSSL looks into each directory, and what is not there has no certificates.
bool IsAnyReadable(const std::string& directories) {
  std::istringstream list(directories);
  for (std::string directory; std::getline(list, directory, ':');) {
    if (access(directory.c_str(), R_OK) == 0) return true;
  }
  return false;
}

}  // namespace

Result<std::shared_ptr<TlsContext>> TlsContext::Create(const std::string& ca_file, const std::string& ca_directory) {
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  if (context == nullptr) return Failure(ErrorKind::kLocal, ENOMEM, "TLS could not be set up");
  std::shared_ptr<TlsContext> result(new TlsContext(context));
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
  // Buffers may move between a write and its repetition.
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  // As many records as are there by one read(2), not one by two.
  SSL_CTX_set_read_ahead(context, 1);
  SSL_CTX_set_default_read_buffer_len(context, kReadBufferBytes);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_alpn_protos(context, kAlpnNames, sizeof kAlpnNames - 1);
  bool trusted = true;
  if (ca_file.empty() && ca_directory.empty()) {
    // OpenSSL ignores what it cannot read, and the error would be the server's certificate.
    for (const char* variable : {X509_get_default_cert_file_env(), X509_get_default_cert_dir_env()}) {
      const char* path = getenv(variable);
      if (path == nullptr || *path == '\0') continue;
      if (variable == X509_get_default_cert_dir_env() ? IsAnyReadable(path) : access(path, R_OK) == 0) continue;
      return Failure(ErrorKind::kBadRequest, EINVAL, std::string(variable) + " names what cannot be read: " + path);
    }
    trusted = SSL_CTX_set_default_verify_paths(context) == 1;
  } else {
    if (!ca_file.empty()) trusted = SSL_CTX_load_verify_file(context, ca_file.c_str()) == 1;
    if (trusted && !ca_directory.empty()) trusted = SSL_CTX_load_verify_dir(context, ca_directory.c_str()) == 1;
  }
  ERR_clear_error();
  if (!trusted) {
    return Failure(ErrorKind::kBadRequest, EINVAL,
                   "the certificate authority cannot be read: " + (ca_file.empty() ? ca_directory : ca_file));
  }
  return result;
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

ssl_st* TlsContext::NewConnection(int descriptor, const std::string& host) const {
  SSL* connection = SSL_new(context_);
  if (connection == nullptr) return nullptr;
  bool ready = SSL_set_fd(connection, descriptor) == 1;
  if (IsAddressLiteral(host)) {
    ready = ready && X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(connection), host.c_str()) == 1;
  } else {
    ready = ready && SSL_set_tlsext_host_name(connection, host.c_str()) == 1 && SSL_set1_host(connection, host.c_str()) == 1;
    SSL_set_hostflags(connection, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  }
  if (!ready) {
    SSL_free(connection);
    return nullptr;
  }
  SSL_set_connect_state(connection);
  return connection;
}

void TlsContext::ShareTrust(ssl_ctx_st* other) const {
  SSL_CTX_set1_cert_store(other, SSL_CTX_get_cert_store(context_));
}

std::string TlsErrorText(ssl_st* connection) {
  const long verdict = connection != nullptr ? SSL_get_verify_result(connection) : X509_V_OK;
  std::string text;
  if (verdict != X509_V_OK) {
    text = std::string("the server's certificate is not trusted: ") + X509_verify_cert_error_string(verdict);
  } else if (const unsigned long code = ERR_peek_error(); code != 0) {
    char buffer[256];
    ERR_error_string_n(code, buffer, sizeof buffer);
    text = buffer;
  }
  ERR_clear_error();
  return text;
}

}  // namespace e2bfs::transport::http
