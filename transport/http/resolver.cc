#include "transport/http/resolver.h"

#include <netdb.h>
#include <pthread.h>
#include <csignal>

#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

namespace e2bfs::transport::http {
namespace {

Result<std::vector<SocketAddress>> LookUpAddresses(const std::string& host, int port, int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int code = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (code != 0) {
    return Failure(ErrorKind::kConnect, EHOSTUNREACH, "the name " + host + " is not known: " + gai_strerror(code));
  }
  std::vector<SocketAddress> first_family;
  std::vector<SocketAddress> others;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    if (entry->ai_addrlen > sizeof(sockaddr_storage)) continue;
    SocketAddress address;
    std::memcpy(&address.storage, entry->ai_addr, entry->ai_addrlen);
    address.length = entry->ai_addrlen;
    (entry->ai_family == list->ai_family ? first_family : others).push_back(address);
  }
  freeaddrinfo(list);
  std::vector<SocketAddress> addresses;
  for (size_t i = 0; i < std::max(first_family.size(), others.size()); ++i) {
    if (i < first_family.size()) addresses.push_back(first_family[i]);
    if (i < others.size()) addresses.push_back(others[i]);
  }
  if (addresses.empty()) return Failure(ErrorKind::kConnect, EHOSTUNREACH, "the name " + host + " has no address");
  return addresses;
}

}  // namespace

void Resolver::Resolve(const std::string& host, int port, Done done) {
  if (auto literal = LookUpAddresses(host, port, AI_NUMERICHOST)) {
    queue_->Post([done = std::move(done), literal = std::move(literal)] { done(literal); });
    return;
  }
  // A thread for each lookup, and nobody joins it: getaddrinfo cannot be interrupted and may take many seconds, which
  // no unmount should wait for. It touches nothing but what it owns, and the queue.
  auto shared_done = std::make_shared<Done>(std::move(done));
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // the new thread takes no signal away from the others
  try {
    std::thread([host, port, shared_done, queue = queue_]() mutable {
      auto result = std::make_shared<Result<std::vector<SocketAddress>>>(LookUpAddresses(host, port, 0));
      // `done` may own what only the loop may free: it travels there, or is dropped with the closed queue.
      queue->Post([done = std::move(shared_done), result] { (*done)(std::move(*result)); });
    }).detach();
  } catch (const std::system_error&) {
    queue_->Post([shared_done] {
      (*shared_done)(Failure(ErrorKind::kLocal, EAGAIN, "no thread could be started to look up a name"));
    });
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace e2bfs::transport::http
