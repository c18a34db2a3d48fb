#!/bin/sh
# `cmake --install` puts everything in place. Usage: install.sh CMAKE BUILD-DIRECTORY
set -eu
cmake=$1 build=$2
top=$(mktemp -d "${TMPDIR:-/tmp}/e2bfs-install.XXXXXX")
trap 'rm -rf "$top"' EXIT
failed=0
wrong() { echo "install: $1" >&2; failed=1; }

DESTDIR=$top "$cmake" --install "$build" >"$top/log" 2>&1 || { cat "$top/log" >&2; exit 1; }
prefix=$(sed -n 's/^CMAKE_INSTALL_PREFIX:PATH=//p' "$build/CMakeCache.txt")
root=$top$prefix
for program in e2bfs e2bfs-test-sandbox; do
  [ -x "$root/bin/$program" ] || wrong "no bin/$program"
done
version=$("$root/bin/e2bfs" --version) || wrong "e2bfs --version fails"
case $version in e2bfs\ [0-9]*) ;; *) wrong "e2bfs --version says: $version" ;; esac
"$root/bin/e2bfs-test-sandbox" --help >/dev/null || wrong "e2bfs-test-sandbox --help fails"

if grep -q '^E2BFS_SANITIZE:[A-Z]*=.' "$build/CMakeCache.txt"; then
  echo "SKIPPED: the manual page: a sanitizer build has none (packaging/CMakeLists.txt)"
else
  manual=$root/share/man/man1/e2bfs.1
  [ -f "$manual" ] || wrong "no manual page"
  if grep -q '@[A-Z_]*@' "$manual"; then wrong "the manual page has places that nobody filled in"; fi
  for option in symlinks transfer_timeout allow_other tier ids; do
    grep -q "$option" "$manual" || wrong "the manual page does not know $option"
  done
fi

unit=$root/lib/systemd/system/e2bfs@.service
[ -f "$unit" ] || wrong "no unit"
grep -qx "ExecStart=$prefix/bin/e2bfs mount -f .*" "$unit" || wrong "the unit starts another program than was installed"
if command -v systemd-analyze >/dev/null 2>&1; then
  # As an instance, of a program that is there.
  mkdir "$top/units"
  sed "s,$prefix/bin/e2bfs,$root/bin/e2bfs," "$unit" >"$top/units/e2bfs@test.service"
  said=$(systemd-analyze verify --man=no "$top/units/e2bfs@test.service" 2>&1 | grep 'e2bfs@test' || true)
  [ -z "$said" ] || wrong "the unit: $said"
else
  echo "SKIPPED: the unit is not verified: no systemd-analyze here"
fi
for text in README.md LICENSE CHANGELOG.md semantics.md syscall-tier.md; do
  [ -n "$(find "$root/share/doc" -name "$text" 2>/dev/null)" ] || wrong "no $text"
done
exit "$failed"
