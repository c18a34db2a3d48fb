// Rows of new objects on the service tier: all contents into one staged file, then a few commands that make the objects, one after the other.
#pragma once

#include <vector>

#include "transport/base/context.h"
#include "transport/base/error.h"
#include "transport/remote_fs.h"

namespace e2bfs::transport {

class ServiceSession;

// As RemoteFs::MakeObjects.
Result<MadeObjects> MakeNewObjects(ServiceSession& session, const std::vector<NewObject>& objects, const OpContext& ctx);

}  // namespace e2bfs::transport
