#!/usr/bin/env bash
# Installs what is missing, builds three times (plain, AddressSanitizer with UndefinedBehaviorSanitizer, ThreadSanitizer) and
# passes every test in each. Random tests and big files are smaller in the last two, which the summary lists with whatever was not run,
# and why. All parts run, whatever fails before them; the summary and the exit status tell.
#   ./test.sh [--quick] [CTEST-ARGUMENT...]     --quick: the plain build only
set -uo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" || exit 1
exec </dev/null
. packaging/install-needs.sh

variants='plain address thread'
if [ "${1:-}" = --quick ]; then variants=plain; shift; fi

results=() failed=0 begin=0
start() { say; say "=== $1"; begin=$SECONDS; }
finish() {  # finish NAME STATUS
  local verdict=passed
  [ "$2" = 0 ] || { verdict=FAILED; failed=1; }
  results+=("$(printf '%-28s %-7s %5d s' "$1" "$verdict" $((SECONDS - begin)))")
  say "=== $1: $verdict after $((SECONDS - begin)) s"
}
# What was not run in a variant, and why: whole ctests, parts of them, and shorter runs, as the tests said it.
skips=()
note_skips() {  # note_skips VARIANT LAST-TEST-LOG
  [ -f "$2" ] || return 0
  local line
  while IFS= read -r line; do skips+=("$1: $line"); done < <(awk '
    /^[0-9]+\/[0-9]+ Test: / { name = $3; after = 0; next }
    after { print name ": skipped: " $0; after = 0; next }
    /: Skipped$/ { after = 1; next }
    /^SKIPPED|^XFAIL|^a shorter run: / { print name ": " $0 }' "$2" | sort -u)
}
summary() {
  say; say "=== summary"
  [ ${#skips[@]} = 0 ] || { say "not run, or shorter:"; printf '  %s\n' "${skips[@]}" >&2; say; }
  printf '%s\n' "${results[@]}" >&2
  [ "$failed" = 0 ] && say "everything passed" || say "SOMETHING FAILED"
  exit "$failed"
}

# The tools that the tests use, and nothing that they do not.
test_packages='libgtest-dev libgmock-dev nghttp2-proxy openssl curl python3 python3-pytest python3-venv git make rsync sqlite3 util-linux e2fsprogs vim busybox bindfs'
# These come from elsewhere on some machines (NodeSource has npm inside nodejs), and Debian's would be in their way.
command -v node >/dev/null || test_packages+=' nodejs'
command -v npm >/dev/null || test_packages+=' npm'

start 'install what is missing'
# shellcheck disable=SC2086
install_packages $build_packages $test_packages
status=$?
finish 'install what is missing' $status
[ $status = 0 ] || summary

start 'FUSE works here'
check_fuse
status=$?
finish 'FUSE works here' $status
[ $status = 0 ] || summary

# Hundreds of connections, on both sides of them.
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
ulimit -c 0  # sanitized programs leave core files of gigabytes
# The tests set what they need; a proxy is for npm only.
unset E2B_API_KEY E2B_DOMAIN E2B_API_URL E2B_SANDBOX_URL E2B_DEBUG E2B_MAX_CONNECTIONS E2B_MAX_KEEPALIVE_CONNECTIONS E2B_KEEPALIVE_EXPIRY
export no_proxy="localhost,127.0.0.1,::1${no_proxy:+,$no_proxy}"
export NO_PROXY=$no_proxy
[ -n "${HOME:-}" ] || { HOME=$(getent passwd "$(id -u)" | cut -d: -f6); export HOME; }

jobs=$(parallel_jobs)
# The real time of many tests is waiting, not computing.
test_jobs=${E2BFS_TEST_JOBS:-10}

# What the tests make is about 1.2 GiB, of small files above all. In memory they are made and deleted faster than on a disk; what has to
# be on one is in /var/tmp.
memory_room=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)
if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ] && [ "${memory_room:-0}" -gt $((4 << 20)) ]; then
  TMPDIR=$(mktemp -d /dev/shm/e2bfs-tests.XXXXXX) && export TMPDIR && chmod 755 "$TMPDIR" && trap 'rm -rf "$TMPDIR"' EXIT
fi

export ASAN_OPTIONS=abort_on_error=0:exitcode=99:detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1:exitcode=99:second_deadlock_stack=1:history_size=4

# g++ 12's ThreadSanitizer cannot place its shadow memory where the kernel randomises addresses by more than 28 bits.
run_fixed_addresses() {
  if setarch -R true 2>/dev/null; then setarch -R "$@"; else "$@"; fi
}

for variant in $variants; do
  directory=build/$variant
  options=(-G Ninja -DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=16)
  case $variant in
    plain) options+=(-DCMAKE_BUILD_TYPE=RelWithDebInfo "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O2 -g1") ;;
    *) options+=(-DCMAKE_BUILD_TYPE=Debug "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g1" -DE2BFS_SANITIZE=$variant) ;;
  esac
  runner=()
  [ "$variant" = thread ] && runner=(run_fixed_addresses)

  start "build ($variant)"
  mkdir -p "$directory"
  { cmake -S . -B "$directory" "${options[@]}" && ${runner[@]+"${runner[@]}"} cmake --build "$directory" --parallel "$jobs"; } \
    >"$directory/build.log" 2>&1
  status=$?
  [ $status = 0 ] || tail -n 80 "$directory/build.log" >&2
  finish "build ($variant)" $status
  [ $status = 0 ] || continue

  # A sanitized process takes long to start others; what the sanitizers look at end to end is e2bfs.
  if [ "$variant" != plain ] && [ -x build/plain/bin/e2bfs-test-sandbox ]; then
    export E2BFS_TEST_SANDBOX=$PWD/build/plain/bin/e2bfs-test-sandbox
  fi
  start "tests ($variant)"
  (cd "$directory" && ${runner[@]+"${runner[@]}"} ctest --output-on-failure --no-tests=error --parallel "$test_jobs" "$@" >&2)
  status=$?
  note_skips "$variant" "$directory/Testing/Temporary/LastTest.log"
  finish "tests ($variant)" $status
done
summary
