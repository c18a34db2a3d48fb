// filesystem.Filesystem but for the watches: Stat, ListDir, MakeDir, Move, Remove.
#pragma once

#include "tests/sandbox/envd.h"

namespace e2bfs::sandbox {

class FilesystemService {
 public:
  explicit FilesystemService(EnvdContext& context) : context_(context) {}
  // False if there is no such method.
  bool Handle(Exchange& exchange, const std::string& method);

 private:
  RpcResult<std::string> Stat(const JsonMessage& request, const Account& account);
  RpcResult<std::string> ListDir(const JsonMessage& request, const Account& account);
  RpcResult<std::string> MakeDir(const JsonMessage& request, const Account& account);
  RpcResult<std::string> Move(const JsonMessage& request, const Account& account);
  RpcResult<std::string> Remove(const JsonMessage& request, const Account& account);
  RpcResult<std::string> EntryMessage(const std::string& path);
  EnvdContext& context_;
};

}  // namespace e2bfs::sandbox
