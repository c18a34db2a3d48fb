#!/bin/sh
# Reads the #include lines: fuse -> cache -> transport -> http -> base, one direction, and each layer only what is its own.
# Usage: layering.sh PROJECT_ROOT. Prints each line that breaks a rule; exit status 1 if there is one.
cd "$1" || exit 1
bad=0

# deny FILES PATTERN REASON: no file of the glob may include what the pattern (extended, on the path) matches.
deny() {
  found=$(grep -nE "^#include [<\"]($2)" $1 2>/dev/null)
  if [ -n "$found" ]; then
    printf '%s\n%s\n' "$3:" "$found"
    bad=1
  fi
}

deny 'transport/base/*.h transport/base/*.cc' '(cache|fuse|tests)/|transport/([^b]|b[^a])' 'base is below everything'
deny 'transport/http/*.h transport/http/*.cc' '(cache|fuse|tests)/|transport/(envd/|[a-z_]+\.h)' 'http knows nothing of envd'
deny 'transport/*.h transport/*.cc transport/envd/* transport/syscall/*' '(cache|fuse|tests)/' 'transport does not look up'
deny 'cache/*.h cache/*.cc' '(fuse|tests)/|transport/(http|envd|syscall)/|transport/(service|control|sandbox_endpoint|credentials)|nlohmann|curl|nghttp2|openssl' \
  'cache sees transport through remote_fs.h only'
cache_users=$(ls fuse/*.h fuse/*.cc | grep -v '/commands_\|/main\.cc')
deny "$cache_users" 'tests/|transport/(http|envd|syscall)/|transport/(service|control|sandbox_endpoint|credentials)' \
  'only the composition root of fuse sees the transport'
not_bridge=$(ls fuse/*.h fuse/*.cc | grep -v '/fuse_bridge\|/mount\.cc\|/kernel_notify\.cc')
deny "$not_bridge" 'fuse3?/fuse|fuse_lowlevel' 'libfuse is the bridge'"'"'s'
deny 'tests/sandbox/*' '(cache|fuse|transport)/' 'the test sandbox shares no code with the client'
exit $bad
