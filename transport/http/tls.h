// TLS: who is trusted, and the parameters of a connection.
#pragma once

#include <memory>
#include <string>

#include "transport/base/error.h"

// OpenSSL's own names, so that its headers stay out of ours.
struct ssl_ctx_st;
struct ssl_st;

namespace e2bfs::transport::http {

// Immutable after Create; usable from any thread.
class TlsContext {
 public:
  // Trusts `ca_file` and `ca_directory` if either is given, otherwise SSL_CERT_FILE and SSL_CERT_DIR, or the system's.
  // kBadRequest if a given one cannot be read.
  static Result<std::shared_ptr<TlsContext>> Create(const std::string& ca_file, const std::string& ca_directory);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  // A client's end for a connected socket, with SNI, verification of the name (or address) and ALPN h2, http/1.1.
  // The caller frees it. Null if OpenSSL has no memory.
  ssl_st* NewConnection(int descriptor, const std::string& host) const;

  // Makes another context trust what this one trusts (libcurl's).
  void ShareTrust(ssl_ctx_st* other) const;

 private:
  explicit TlsContext(ssl_ctx_st* context) : context_(context) {}
  ssl_ctx_st* const context_;
};

// The text of what went wrong last on this thread in OpenSSL, verification included; clears OpenSSL's queue.
std::string TlsErrorText(ssl_st* connection);

}  // namespace e2bfs::transport::http
