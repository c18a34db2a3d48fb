#!/usr/bin/env bash
# Shows e2bfs at work with no account: installs what is missing to build it, builds the command and the test sandbox, and runs
# `e2bfs demo`, which starts the sandbox, mounts it, and from a terminal stays up until Ctrl-C. Options go to `e2bfs demo`.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
. packaging/install-needs.sh

# shellcheck disable=SC2086
install_packages $build_packages
check_fuse
build=${E2BFS_DEMO_BUILD:-build/demo}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
say "Building in $build (the first time takes some minutes)..."
if ! { cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=16 \
         -DE2BFS_BUILD_TESTS=OFF &&
       cmake --build "$build" --target e2bfs e2bfs-test-sandbox --parallel "$(parallel_jobs)"; } >"$log" 2>&1; then
  tail -n 60 "$log" >&2
  say "$0: the build failed (its last lines are above)"
  exit 1
fi
rm -f "$log"
exec "$build/bin/e2bfs" demo "$@"
