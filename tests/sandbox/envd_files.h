// The HTTP part of envd: /files, /files/compose, /health, /metrics, /envs.
#pragma once

#include <ctime>
#include <string>

#include "tests/sandbox/envd.h"

namespace e2bfs::sandbox {

class FilesApi {
 public:
  explicit FilesApi(EnvdContext& context)
      : context_(context), started_(std::chrono::steady_clock::now()), started_at_(time(nullptr)) {}
  // False if the path is not one of these.
  bool Handle(Exchange& exchange);

 private:
  void Get(Exchange& exchange);
  void Post(Exchange& exchange);
  void Compose(Exchange& exchange);
  void Metrics(Exchange& exchange);
  // False if the request was refused by its token or signature, and answered.
  bool Authorized(Exchange& exchange, const std::string& operation);
  // The account that the request names; nullopt if it was refused, and answered.
  std::optional<Account> RequestAccount(Exchange& exchange);
  // Versions before 0.5.3 give the time of the request as Last-Modified. Here that clock goes in steps of ten
  // minutes from the start, so that what is asked twice in a row is answered alike whatever the machine's
  // load.
  time_t RequestTime() const;
  EnvdContext& context_;
  const std::chrono::steady_clock::time_point started_;
  const time_t started_at_;
};

}  // namespace e2bfs::sandbox
