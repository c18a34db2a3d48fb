// e2bfs-test-sandbox: serves a directory as a running E2B sandbox would, on loopback, for tests and for
// `e2bfs demo`.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "tests/sandbox/sandbox.h"

namespace {

// What is wrong with it, or nothing, as CLI11 wants it.
std::string CheckVersion(const std::string& text) {
  int major = 0, minor = 0, patch = 0, length = -1;
  std::sscanf(text.c_str(), "%d.%d.%d%n", &major, &minor, &patch, &length);
  return length == static_cast<int>(text.size()) ? "" : "'" + text + "' is not a version such as 0.6.13";
}

std::string CheckInstance(const std::string& text) {
  const size_t colon = text.find(':');
  const std::string state = colon == std::string::npos ? "running" : text.substr(colon + 1);
  return colon != 0 && !text.empty() && (state == "running" || state == "paused") ? "" : "'" + text + "' is not ID, ID:running or ID:paused";
}

e2bfs::sandbox::SandboxOptions::Instance ParseInstance(const std::string& text) {
  e2bfs::sandbox::SandboxOptions::Instance instance;
  const size_t colon = text.find(':');
  instance.id = text.substr(0, colon);
  if (colon != std::string::npos) {
    instance.state = text.substr(colon + 1);
  }
  return instance;
}

void PrintLine(int fd, const std::string& line) {
  const std::string text = line + "\n";
  if (write(fd, text.data(), text.size()) < 0) {
    std::perror("e2bfs-test-sandbox: write");
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Serves a directory as a running E2B sandbox: envd's services, the control plane and the edge's "
      "routing, on loopback.\n"
      "Prints a line \"listening on URL\" for each listener and runs until SIGTERM or SIGINT.");
  e2bfs::sandbox::SandboxOptions options;
  std::vector<std::string> instances;
  std::string certificate_out;
  int ready_fd = -1;
  app.add_option("--root", options.root,
                 "The directory: the user's home, and the fence of the file services (\"/\": no fence)")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--listen", options.server.listen,
                 "HOST:PORT for HTTP/1.1 in clear; port 0: any; empty: none")
      ->capture_default_str();
  app.add_option("--tls-listen", options.server.tls_listen, "HOST:PORT for TLS with HTTP/2 and HTTP/1.1");
  app.add_flag("--tls-http1-only", options.server.tls_http1_only, "Offer no HTTP/2");
  app.add_option("--certificate", options.server.certificate_file,
                 "PEM file with the certificate; made anew without it");
  app.add_option("--key", options.server.key_file, "PEM file with its key");
  app.add_option("--certificate-out", certificate_out, "Write what a client has to trust to this PEM file");
  app.add_option("--name", options.server.extra_names, "Another DNS name for the certificate");
  app.add_option("--envd-version", options.envd_version, "Play this version of envd")
      ->check(CheckVersion)
      ->capture_default_str();
  app.add_option("--token", options.access_token, "Demand this X-Access-Token");
  app.add_option("--user", options.default_user, "The default user; without it, who runs the program");
  app.add_option("--api-key", options.api_key, "The API key that the control plane takes; without it, any");
  app.add_option("--instance", instances,
                 "ID[:running|paused] of a sandbox that the control plane knows; may be repeated")
      ->check(CheckInstance);
  app.add_flag("--edge-routing", options.edge_routing,
               "Route by E2b-Sandbox-Id or host name, 502 where nothing runs");
  app.add_option("--latency-ms", options.server.latency_ms, "Wait before each answer");
  app.add_option("--max-connections", options.server.max_connections, "Close connections beyond this number");
  app.add_option("--max-streams", options.server.max_concurrent_streams, "HTTP/2 streams for one connection")
      ->capture_default_str();
  app.add_option("--max-watches", options.max_watches, "Refuse watches beyond this number");
  app.add_option("--command-path", options.command_path,
                 "Commands find their programs in this directory alone, /bin/sh and /usr/bin/perl as well: another image's tools")
      ->check(CLI::ExistingDirectory);
  app.add_option("--env", options.environment, "NAME=VALUE in the environment of commands, as a template sets it; may be repeated");
  app.add_option("--log", options.log_file, "Append what envd would log to this file");
  app.add_option(
      "--ready-fd", ready_fd,
      "Write the \"listening on\" lines to this descriptor and close it, instead of standard output");
  app.set_version_flag("--version", E2BFS_VERSION);
  app.footer("Tests steer it by requests: POST and DELETE /_test/faults (a JSON array: match, action, count...), GET and POST /_test/counts,\n"
             "POST /_test/latency?ms=N, /_test/goaway and /_test/reset.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) {
      return app.exit(e);  // --help, --version
    }
    std::cerr << "e2bfs-test-sandbox: " << e.what() << " (see --help)\n";
    return 2;
  }
  options.root = std::filesystem::absolute(options.root).lexically_normal().string();
  for (const std::string& instance : instances) {
    options.instances.push_back(ParseInstance(instance));
  }

  sigset_t ending;
  sigemptyset(&ending);
  sigaddset(&ending, SIGTERM);
  sigaddset(&ending, SIGINT);
  sigaddset(&ending, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &ending, nullptr);  // before any thread, so that only sigwait gets them
  try {
    e2bfs::sandbox::Sandbox sandbox(options);
    if (!certificate_out.empty()) {
      std::FILE* file = std::fopen(certificate_out.c_str(), "we");
      if (file == nullptr || std::fputs(sandbox.server().certificate_pem().c_str(), file) < 0 ||
          std::fclose(file) != 0) {
        std::cerr << "e2bfs-test-sandbox: cannot write " << certificate_out << "\n";
        return 1;
      }
    }
    const int out = ready_fd >= 0 ? ready_fd : STDOUT_FILENO;
    if (!options.server.listen.empty()) {
      PrintLine(out, "listening on " + sandbox.base_url());
    }
    if (!options.server.tls_listen.empty()) {
      PrintLine(out, "listening on " + sandbox.tls_base_url());
    }
    if (ready_fd >= 0) {
      close(ready_fd);
    }
    int signal_number = 0;
    sigwait(&ending, &signal_number);
  } catch (const std::exception& e) {
    std::cerr << "e2bfs-test-sandbox: " << e.what() << "\n";
    return 1;
  }
  return 0;
}
