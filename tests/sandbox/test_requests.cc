// /_test/...: faults, counts and latency over HTTP, for tests in other processes and languages.
#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "tests/sandbox/fault_book.h"
#include "tests/sandbox/server.h"

namespace e2bfs::sandbox {
namespace {

using Json = nlohmann::json;

// Throws what nlohmann throws for a wrong type, and std::runtime_error for a wrong word.
Fault FaultFromJson(const Json& json) {
  Fault fault;
  for (const auto& [key, value] : json.items()) {
    if (key == "match") {
      fault.match = value.get<std::string>();
    } else if (key == "skip") {
      fault.skip = value.get<int>();
    } else if (key == "count") {
      fault.count = value.get<int>();
    } else if (key == "action") {
      fault.action = value.get<std::string>();
    } else if (key == "at_byte") {
      fault.at_byte = value.get<int64_t>();
    } else if (key == "status") {
      fault.status = value.get<int>();
    } else if (key == "body") {
      fault.body = value.get<std::string>();
    } else if (key == "content_type") {
      fault.content_type = value.get<std::string>();
    } else if (key == "delay_ms") {
      fault.delay_ms = value.get<int64_t>();
    } else {
      throw std::runtime_error("unknown field " + key);
    }
  }
  if (!IsFaultAction(fault.action)) {
    throw std::runtime_error("unknown action '" + fault.action + "'");
  }
  return fault;
}

Json CountsToJson(const ServerCounts& counts) {
  return {{"requests", counts.requests},
          {"total_requests", counts.total_requests},
          {"sequence", counts.sequence},
          {"connections_opened", counts.connections_opened},
          {"connections_now", counts.connections_now},
          {"max_connections", counts.max_connections},
          {"connections_closed_busy", counts.connections_closed_busy},
          {"request_body_bytes", counts.request_body_bytes},
          {"response_body_bytes", counts.response_body_bytes},
          {"input_frames", counts.input_frames},
          {"input_bytes", counts.input_bytes},
          {"requests_now", counts.requests_now},
          {"max_requests", counts.max_requests},
          {"by_sandbox", counts.by_sandbox},
          {"http2_requests", counts.http2_requests}};
}

void AddFaultsFromBody(Server& server, Exchange& exchange) {
  std::string why = "the body is torn";
  if (const std::optional<std::string> body = exchange.ReadWholeBody()) {
    try {
      const Json json = Json::parse(*body);
      std::vector<Fault> faults;
      for (const Json& item : json.is_array() ? json : Json::array({json})) {
        faults.push_back(FaultFromJson(item));
      }
      for (Fault& fault : faults) {
        server.AddFault(std::move(fault));
      }
      exchange.Reply(204, {}, "");
      return;
    } catch (const std::exception& error) {
      why = error.what();
    }
  }
  exchange.Reply(400, {{"content-type", "text/plain"}}, why + "\n");
}

}  // namespace

bool HandleTestRequest(Server& server, Exchange& exchange) {
  const std::string& path = exchange.path();
  const bool is_get = exchange.method() == "GET";
  if (path == "/_test/faults") {
    if (exchange.method() == "DELETE") {
      server.ClearFaults();
      exchange.Reply(204, {}, "");
    } else {
      AddFaultsFromBody(server, exchange);
    }
  } else if (path == "/_test/counts") {
    if (is_get) {
      // Paths may hold any byte.
      const std::string text = CountsToJson(server.counts()).dump(-1, ' ', false, Json::error_handler_t::replace);
      exchange.Reply(200, {{"content-type", "application/json"}}, text + "\n");
    } else {
      server.ResetCounts();
      exchange.Reply(204, {}, "");
    }
  } else if (path == "/_test/latency") {
    const std::string text = exchange.Query("ms").value_or("");
    int64_t ms = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), ms);
    if (error != std::errc() || end != text.data() + text.size() || ms < 0) {
      exchange.Reply(400, {{"content-type", "text/plain"}}, "expected ?ms=N\n");
    } else {
      server.set_latency_ms(ms);
      exchange.Reply(204, {}, "");
    }
  } else if (path == "/_test/goaway") {
    server.GoAwayAll();  // this request was begun, so it is still answered
    exchange.Reply(204, {}, "");
  } else if (path == "/_test/reset") {
    server.ResetAll(exchange.connection_id());
    exchange.Reply(204, {}, "");
  } else {
    return false;
  }
  return true;
}

}  // namespace e2bfs::sandbox
