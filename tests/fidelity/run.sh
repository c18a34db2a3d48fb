#!/bin/sh
# Asks the test sandbox the questions of envd_probe.py and compares its answers with those that were recorded from real
# envds, for each envd-VERSION.json here. Usage: run.sh PATH-OF-e2bfs-test-sandbox [SCRATCH-DIRECTORY]
#
# Needs root (or sudo without a password), since an envd acts as whatever user it is told to. Nothing is changed on the machine: the account that the
# questions need is made in a mount namespace of our own, over /etc/passwd and /etc/group; where no namespace is to be
# had, an account of the machine is taken that looks like a sandbox's user.
# Exit status: 0 no difference, 1 differences or a failure, 77 cannot be run here.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
account=e2bfs-probe

if [ "${1:-}" = --inside ]; then  # in the namespace: shift to the arguments of the outer call
  shift
  binary=$1 scratch=$2
  home=$scratch/home
  mkdir -p "$home"
  { cat /etc/passwd; echo "$account:x:54321:54321::/mnt/home:/bin/sh"; } >"$scratch/passwd"
  { cat /etc/group; echo "$account:x:54321:"; } >"$scratch/group"
  chmod 755 "$scratch" "$home"
  chmod 644 "$scratch/passwd" "$scratch/group"
  chown 54321:54321 "$home"
  mount --bind "$scratch/passwd" /etc/passwd
  mount --bind "$scratch/group" /etc/group
  mount --bind "$scratch" /mnt  # so that the account can reach it, wherever it is
  E2BFS_PROBE_ACCOUNT=$account E2BFS_PROBE_SCRATCH=/mnt exec "$here/run.sh" "$binary"
fi

binary=${1:?the path of e2bfs-test-sandbox}
case $binary in /*) ;; *) binary=$PWD/$binary ;; esac
[ -x "$binary" ] || { echo "fidelity: $binary is not there" >&2; exit 1; }
command -v python3 >/dev/null || { echo "fidelity: python3 is missing" >&2; exit 1; }
if [ "$(id -u)" != 0 ]; then
  if sudo -n true 2>/dev/null; then exec sudo -n "$here/run.sh" "$@"; fi
  echo "fidelity: skipped, only root can be asked to act as another user, and there is no sudo without a password"
  exit 77
fi

# Where files may have the attributes that envd keeps its metadata in: not every tmpfs.
has_xattrs() {
  python3 -c 'import os, sys; os.setxattr(sys.argv[1], "user.e2b.probe", b"x"); os.removexattr(sys.argv[1], "user.e2b.probe")' "$1" 2>/dev/null
}

if [ -z "${E2BFS_PROBE_ACCOUNT:-}" ]; then
  scratch=
  for parent in "${TMPDIR:-/tmp}" "${2:-/var/tmp}" /var/tmp; do
    candidate=$(mktemp -d "$parent/e2bfs-fidelity.XXXXXX" 2>/dev/null) || continue
    if has_xattrs "$candidate"; then
      [ -z "$scratch" ] || rmdir "$scratch"
      scratch=$candidate
      break
    elif [ -z "$scratch" ]; then
      scratch=$candidate
    else
      rmdir "$candidate"
    fi
  done
  [ -n "$scratch" ] || { echo "fidelity: no directory to work in" >&2; exit 1; }
  trap 'rm -rf "$scratch"' EXIT
  trap 'exit 1' INT TERM HUP
  if [ -d /mnt ] && unshare --mount --propagation private true 2>/dev/null; then
    status=0
    unshare --mount --propagation private "$here/run.sh" --inside "$binary" "$scratch" || status=$?
    exit "$status"
  fi
  # An account with a home of its own, mode 0755, and a group of the same name.
  found=
  while IFS=: read -r name _ uid _ _ home _; do
    if [ "$uid" -gt 0 ] && [ "$(stat -c %U:%G:%a "$home" 2>/dev/null)" = "$name:$name:755" ]; then
      found=$name
      break
    fi
  done </etc/passwd
  if [ -z "$found" ]; then
    echo "fidelity: skipped, no mount namespace can be made here and no account looks like a sandbox's user"
    exit 77
  fi
  chmod 755 "$scratch"
  E2BFS_PROBE_ACCOUNT=$found
  E2BFS_PROBE_SCRATCH=$scratch
fi
account=$E2BFS_PROBE_ACCOUNT
TMPDIR=$E2BFS_PROBE_SCRATCH
export TMPDIR

leave_out=
if ! has_xattrs "$TMPDIR"; then
  echo "SKIPPED: fidelity: no extended attributes for users in $TMPDIR, metadata is not compared"
  leave_out=yes
fi

pids=
stop() {
  for pid in $pids; do kill "$pid" 2>/dev/null || true; done
  for pid in $pids; do wait "$pid" 2>/dev/null || true; done
  pids=
}
trap 'stop; [ -z "${scratch:-}" ] || rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM HUP

# The versions are asked at the same time, each its own double.
for recording in "$here"/envd-*.json; do
  version=${recording##*/envd-}
  version=${version%.json}
  "$binary" --root / --listen 127.0.0.1:0 --user "$account" --envd-version "$version" >"$TMPDIR/url.$version" </dev/null &
  pids="$pids $!"
  waited=0
  until grep -q "^listening on " "$TMPDIR/url.$version" 2>/dev/null; do
    kill -0 "${pids##* }" 2>/dev/null || { echo "fidelity: the test sandbox ended" >&2; exit 1; }
    waited=$((waited + 1))
    [ "$waited" -lt 600 ] || { echo "fidelity: the test sandbox does not listen" >&2; exit 1; }
    sleep 0.1
  done
  url=$(sed -n 's/^listening on //p' "$TMPDIR/url.$version")
  (
    status=0
    if [ -n "$leave_out" ]; then
      python3 "$here/envd_probe.py" --url "$url" --user "$account" --compare "$recording" \
        --leave-out "post metadata" --leave-out "stat metadata" >"$TMPDIR/result.$version" 2>&1 || status=$?
    else
      python3 "$here/envd_probe.py" --url "$url" --user "$account" --compare "$recording" >"$TMPDIR/result.$version" 2>&1 || status=$?
    fi
    echo "$status" >"$TMPDIR/status.$version"
  ) &
  pids="$pids $!"
done
failed=0
for recording in "$here"/envd-*.json; do
  version=${recording##*/envd-}
  version=${version%.json}
  waited=0
  until [ -s "$TMPDIR/status.$version" ]; do
    waited=$((waited + 1))
    [ "$waited" -lt 1500 ] || { echo "fidelity: the questions take too long" >&2; exit 1; }
    sleep 0.2
  done
  echo "envd $version:"
  cat "$TMPDIR/result.$version"
  [ "$(cat "$TMPDIR/status.$version")" = 0 ] || failed=1
done
exit "$failed"
