#include "tests/sandbox/sandbox.h"

#include <csignal>

#include "tests/sandbox/control_plane.h"
#include "tests/sandbox/envd.h"
#include "tests/sandbox/json_text.h"

namespace e2bfs::sandbox {
namespace {

constexpr std::string_view kEnvdPort = "49983";

std::string HostName(const Exchange& exchange) {
  std::string host = exchange.Header("host").value_or(exchange.Header(":authority").value_or(""));
  if (!host.empty() && host.front() == '[') {
    return host.substr(0, host.find(']') + 1);
  }
  return host.substr(0, host.find(':'));
}

struct RouteTarget {
  std::string sandbox_id;
  std::string port;
  std::string error;  // of a request that names none
};

// The edge's rule: the headers count where the host is shared, an address or localhost; else
// "<port>-<id>.<domain>".
RouteTarget FindTarget(const Exchange& exchange) {
  const std::string host = HostName(exchange);
  const bool address =
      host.empty() || host.front() == '[' || host.find_first_not_of("0123456789.") == std::string::npos;
  const std::string id = exchange.Header("e2b-sandbox-id").value_or("");
  const std::string port = exchange.Header("e2b-sandbox-port").value_or("");
  if ((address || host == "localhost" || host.starts_with("sandbox.")) && (!id.empty() || !port.empty())) {
    if (id.empty() || port.empty()) {
      return {"", "", std::string("Missing header: ") + (id.empty() ? "E2b-Sandbox-Id" : "E2b-Sandbox-Port")};
    }
    return {id, port, ""};
  }
  const size_t dot = host.find('.');
  const std::string label = host.substr(0, dot);
  const size_t dash = label.find('-');
  if (dot == std::string::npos || dash == std::string::npos) {
    return {"", "", "Invalid host"};
  }
  return {label.substr(dash + 1), label.substr(0, dash), ""};
}

void ReplyBadGateway(Exchange& exchange, const std::string& sandbox_id, const std::string& message) {
  if (exchange.Header("user-agent").value_or("").find("Mozilla") != std::string::npos) {
    exchange.Reply(502, {{"content-type", "text/html; charset=utf-8"}},
                   "<!DOCTYPE html><html><body>" + message + "</body></html>");
    return;
  }
  JsonText json;
  json.BeginObject()
      .Field("sandboxId", sandbox_id)
      .Field("message", message)
      .Field("code", int64_t{502})
      .EndObject();
  exchange.Reply(502, {{"content-type", "application/json; charset=utf-8"}}, json.text());
}

EnvdOptions EnvdOptionsOf(const SandboxOptions& options) {
  EnvdOptions envd;
  envd.root = options.root;
  envd.version = options.envd_version;
  envd.access_token = options.access_token;
  envd.default_user = options.default_user;
  envd.log_file = options.log_file;
  envd.command_path = options.command_path;
  envd.environment = options.environment;
  envd.max_watches = options.max_watches;
  return envd;
}

}  // namespace

class Sandbox::Impl {
 public:
  explicit Impl(const SandboxOptions& options)
      : options_(options),
        envd_(EnvdOptionsOf(options)),
        control_plane_(options),
        server_(std::make_unique<Server>(options.server, [this](Exchange& exchange) { Handle(exchange); })) {}

  ~Impl() {
    envd_.Stop();
    server_.reset();
  }

  void Handle(Exchange& exchange) {
    if (control_plane_.Handle(exchange)) {
      return;
    }
    if (options_.edge_routing) {
      const RouteTarget target = FindTarget(exchange);
      if (!target.error.empty()) {
        exchange.Reply(400, {{"content-type", "text/plain; charset=utf-8"}}, target.error + "\n");
        return;
      }
      if (control_plane_.State(target.sandbox_id).value_or("") != "running") {
        ReplyBadGateway(exchange, target.sandbox_id, "The sandbox was not found");
        return;
      }
      if (target.port != kEnvdPort) {
        ReplyBadGateway(exchange, target.sandbox_id, "The sandbox is running but port is not open");
        return;
      }
    }
    envd_.Handle(exchange);
  }

  const SandboxOptions options_;
  Envd envd_;
  ControlPlane control_plane_;
  std::unique_ptr<Server> server_;
};

Sandbox::Sandbox(SandboxOptions options) {
  // A command may close its standard input while it is written to.
  (void)std::signal(SIGPIPE, SIG_IGN);
  impl_ = std::make_unique<Impl>(options);
}

Sandbox::~Sandbox() = default;

Server& Sandbox::server() { return *impl_->server_; }
std::string Sandbox::base_url() const { return "http://127.0.0.1:" + std::to_string(impl_->server_->port()); }
std::string Sandbox::tls_base_url() const {
  return "https://localhost:" + std::to_string(impl_->server_->tls_port());
}
std::string Sandbox::log_text() const { return impl_->envd_.context().log().text(); }
void Sandbox::SetState(const std::string& sandbox_id, const std::string& state) {
  impl_->control_plane_.SetState(sandbox_id, state);
}

}  // namespace e2bfs::sandbox
