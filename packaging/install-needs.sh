# Sourced by demo.sh and test.sh: brings in the Debian packages that are missing, and says clearly what cannot work.

say() { printf '%s\n' "$*" >&2; }

# The packages of the arguments that are not installed, one a line.
missing_packages() {
  local package
  for package in "$@"; do
    dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || printf '%s\n' "$package"
  done
}

# As root: by itself or by sudo (which may ask for a password on a terminal).
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null 2>&1; then
    # It asks on the terminal itself, whatever standard input is.
    if { : </dev/tty; } 2>/dev/null; then sudo "$@"; else sudo -n "$@" </dev/null; fi
  else
    say "$0: this needs root, and there is no sudo here: run as root: $*"
    return 1
  fi
}

# install_packages PACKAGE...: with apt-get, only if something is missing.
install_packages() {
  local missing attempt
  if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
    say "$0: no apt-get here, so nothing was installed. Needed, by their Debian names: $*"
    return 0
  fi
  missing=$(missing_packages "$@" | tr '\n' ' ')
  [ -n "$missing" ] || return 0
  say "Installing what is missing: $missing"
  for attempt in 1 2 3; do
    # Package lists first: those of a fresh machine are absent, those of an old one point to files that are gone.
    # shellcheck disable=SC2086
    if as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2 &&
       as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing </dev/null >/dev/null; then
      return 0
    fi
    [ "$attempt" = 3 ] || sleep $((attempt * 5))
  done
  say "$0: apt-get could not install: $missing"
  return 1
}

# Says what keeps a mount from working on this machine; fails if something does.
check_fuse() {
  if [ ! -e /dev/fuse ]; then as_root modprobe fuse >/dev/null 2>&1 || true; fi
  if [ ! -e /dev/fuse ]; then
    say "$0: /dev/fuse is missing: this kernel or container has no FUSE, and nothing can be mounted."
    say "  On a machine: sudo modprobe fuse. In a container: start it with --device /dev/fuse --cap-add SYS_ADMIN."
    return 1
  fi
  if ! { : <>/dev/fuse; } 2>/dev/null; then
    say "$0: /dev/fuse cannot be opened by $(id -un): sudo chmod 666 /dev/fuse (as distributions have it); in a container: start it with --device /dev/fuse."
    return 1
  fi
  # CAP_SYS_ADMIN is bit 21; others than root have fusermount3's.
  if [ "$(id -u)" = 0 ] && [ $(($(awk '/^CapEff:/ {print "0x" $2}' /proc/self/status) >> 21 & 1)) = 0 ]; then
    say "$0: this root may not mount (no CAP_SYS_ADMIN). In a container: start it with --device /dev/fuse --cap-add SYS_ADMIN."
    return 1
  fi
  if ! command -v fusermount3 >/dev/null 2>&1; then
    say "$0: fusermount3 is missing: install the package fuse3."
    return 1
  fi
}

# Compilers take up to 1 GiB each here; more of them at once than memory allows get killed.
parallel_jobs() {
  local cpus memory
  cpus=$(nproc 2>/dev/null || echo 2)
  memory=$(awk '/^MemAvailable:/ {print int($2 / 1200000)}' /proc/meminfo 2>/dev/null)
  [ -n "$memory" ] && [ "$memory" -ge 1 ] || memory=1
  [ "$cpus" -lt "$memory" ] && echo "$cpus" || echo "$memory"
}

build_packages='cmake ninja-build g++ pkg-config libfuse3-dev fuse3 libcurl4-openssl-dev libnghttp2-dev libssl-dev
zlib1g-dev libxxhash-dev nlohmann-json3-dev libcli11-dev libfmt-dev libexpected-dev'
