#include "tests/sandbox/tls_context.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <fstream>
#include <sstream>
#include <stdexcept>

namespace e2bfs::sandbox {
namespace {

template <auto Free>
struct OpenSslFree {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using OwnedKey = std::unique_ptr<EVP_PKEY, OpenSslFree<EVP_PKEY_free>>;
using OwnedCertificate = std::unique_ptr<X509, OpenSslFree<X509_free>>;
using OwnedExtension = std::unique_ptr<X509_EXTENSION, OpenSslFree<X509_EXTENSION_free>>;
using OwnedBio = std::unique_ptr<BIO, OpenSslFree<BIO_free_all>>;

[[noreturn]] void ThrowTlsError(const std::string& what) {
  char text[256] = "";
  ERR_error_string_n(ERR_get_error(), text, sizeof text);
  throw std::runtime_error(what + ": " + text);
}

void AddCertificateExtension(X509* certificate, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, certificate, certificate, nullptr, nullptr, 0);
  const OwnedExtension extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  if (!extension || X509_add_ext(certificate, extension.get(), -1) != 1) {
    ThrowTlsError("cannot make a certificate for '" + value + "'");
  }
}

OwnedCertificate MakeSelfSigned(EVP_PKEY* key, const std::vector<std::string>& extra_names) {
  OwnedCertificate certificate(X509_new());
  X509_set_version(certificate.get(), 2);
  // A number of its own for each, or clients that remember certificates by issuer and number complain.
  uint64_t serial = 0;
  if (RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof serial) != 1) {
    ThrowTlsError("no random numbers");
  }
  ASN1_INTEGER_set_uint64(X509_get_serialNumber(certificate.get()), serial >> 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -24L * 3600);  // for clocks that differ
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 365L * 24 * 3600);
  X509_set_pubkey(certificate.get(), key);
  X509_NAME* name = X509_get_subject_name(certificate.get());
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("e2bfs test sandbox"), -1,
                             -1, 0);
  X509_set_issuer_name(certificate.get(), name);
  std::string names = "DNS:localhost,DNS:*.localhost,IP:127.0.0.1,IP:::1";
  for (const std::string& extra : extra_names) {
    names += ",DNS:" + extra;
  }
  AddCertificateExtension(certificate.get(), NID_subject_alt_name, names);
  AddCertificateExtension(certificate.get(), NID_basic_constraints, "critical,CA:TRUE");
  AddCertificateExtension(certificate.get(), NID_key_usage, "critical,digitalSignature,keyCertSign");
  AddCertificateExtension(certificate.get(), NID_ext_key_usage, "serverAuth");
  AddCertificateExtension(certificate.get(), NID_subject_key_identifier, "hash");
  if (X509_sign(certificate.get(), key, EVP_sha256()) == 0) {
    ThrowTlsError("cannot sign a certificate");
  }
  return certificate;
}

int SelectAlpn(SSL*, const unsigned char** out, unsigned char* out_size, const unsigned char* offered,
               unsigned offered_size, void* argument) {
  static constexpr unsigned char kBoth[] = "\x02h2\x08http/1.1";
  const bool http1_only = argument != nullptr;
  const unsigned char* mine = http1_only ? kBoth + 3 : kBoth;
  const unsigned mine_size = static_cast<unsigned>(sizeof kBoth - 1) - (http1_only ? 3 : 0);
  unsigned char* selected = nullptr;
  if (SSL_select_next_proto(&selected, out_size, mine, mine_size, offered, offered_size) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *out = selected;
  return SSL_TLSEXT_ERR_OK;
}

}  // namespace

TlsContext MakeTlsContext(const ServerOptions& options) {
  TlsContext made;
  made.context.reset(SSL_CTX_new(TLS_server_method()));
  SSL_CTX* context = made.context.get();
  if (context == nullptr) {
    ThrowTlsError("cannot make a TLS context");
  }
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  static int http1_only = 1;
  SSL_CTX_set_alpn_select_cb(context, SelectAlpn, options.tls_http1_only ? &http1_only : nullptr);
  if (options.certificate_file.empty()) {
    const OwnedKey key(EVP_EC_gen("P-256"));
    if (!key) {
      ThrowTlsError("cannot make a key");
    }
    const OwnedCertificate certificate = MakeSelfSigned(key.get(), options.extra_names);
    if (SSL_CTX_use_certificate(context, certificate.get()) != 1 || SSL_CTX_use_PrivateKey(context, key.get()) != 1) {
      ThrowTlsError("cannot use the certificate");
    }
    const OwnedBio bio(BIO_new(BIO_s_mem()));
    PEM_write_bio_X509(bio.get(), certificate.get());
    char* text = nullptr;
    const long size = BIO_get_mem_data(bio.get(), &text);
    made.certificate_pem.assign(text, static_cast<size_t>(size));
    return made;
  }
  const std::string& key_file = options.key_file.empty() ? options.certificate_file : options.key_file;
  if (SSL_CTX_use_certificate_chain_file(context, options.certificate_file.c_str()) != 1) {
    ThrowTlsError("cannot use certificate file " + options.certificate_file);
  }
  if (SSL_CTX_use_PrivateKey_file(context, key_file.c_str(), SSL_FILETYPE_PEM) != 1) {
    ThrowTlsError("cannot use key file " + key_file);
  }
  std::ostringstream text;
  text << std::ifstream(options.certificate_file).rdbuf();
  made.certificate_pem = text.str();
  return made;
}

}  // namespace e2bfs::sandbox
