// The TLS side of the server: a context with ALPN, and the certificate that it shows.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "tests/sandbox/server.h"

namespace e2bfs::sandbox {

struct TlsContext {
  struct Deleter {
    void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  };
  std::unique_ptr<SSL_CTX, Deleter> context;
  std::string certificate_pem;
};

// By the options' certificate and key files, or with a new self-signed certificate (EC P-256; localhost, *.localhost,
// 127.0.0.1, ::1 and extra_names; usable as an authority). Throws std::runtime_error.
TlsContext MakeTlsContext(const ServerOptions& options);

}  // namespace e2bfs::sandbox
