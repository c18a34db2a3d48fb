#!/bin/sh
# Reads the #include lines: fuse -> cache -> transport -> http -> base, one direction, and each layer only what is its own.
# Usage: layering.sh PROJECT_ROOT. Prints each line that breaks a rule; exit status 1 if there is one.
cd "$1" || exit 1
bad=0

judge() {
  if [ -n "$2" ]; then
    printf '%s\n%s\n' "$1:" "$2"
    bad=1
  fi
}

# allow FILES PATTERN REASON: of the project's headers the files may include only those whose path begins with what the pattern (extended) matches.
allow() {
  judge "$3" "$(grep -HnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*("|<(cache|fuse|tests|transport)/)' $1 | grep -vE "include \"($2)")"
}

# deny FILES PATTERN REASON: nor any header, of libraries too, that it matches.
deny() { judge "$3" "$(grep -HnE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($2)" $1)"; }

allow 'transport/base/*.h transport/base/*.cc' 'transport/base/' 'base is below everything'
allow 'transport/http/*.h transport/http/*.cc' 'transport/(base|http)/' 'http knows nothing of envd'
allow 'transport/envd/*.h transport/envd/*.cc' 'transport/(base|http|envd)/|transport/(remote_fs|retry|sandbox_endpoint)\.h"' 'envd is below the tiers'
allow 'transport/syscall/*.h transport/syscall/*.cc' 'transport/(base|http|envd|syscall)/|transport/(remote_fs|retry|service_names|service_stream|stage_upload)\.h"' \
  'the syscall tier has little of the other one'
allow 'transport/*.h transport/*.cc' 'transport/(base|http|envd)/|transport/[a-z_]+\.h"' 'transport does not look up, and the service tier not at the other one'
allow 'cache/*.h cache/*.cc' 'cache/|transport/base/|transport/remote_fs\.h"' 'cache sees transport through remote_fs.h only'
deny 'cache/*.h cache/*.cc' 'nlohmann|curl|nghttp2|openssl' 'cache speaks no protocol'
commands='fuse/commands_*.h fuse/commands_*.cc'
allow "$commands" '(fuse|cache|transport)/' 'tests are for tests'
allow "$(ls fuse/*.h fuse/*.cc | grep -v /commands_)" '(fuse|cache)/|transport/base/|transport/remote_fs\.h"' 'only the composition root of fuse sees the transport'
deny "$(ls fuse/*.h fuse/*.cc | grep -v '/fuse_bridge\|/mount\.cc\|/kernel_notify\.cc')" 'fuse3?/fuse|fuse_lowlevel' 'libfuse is the bridge'"'"'s'
allow 'tests/sandbox/*.h tests/sandbox/*.cc' 'tests/sandbox/' 'the test sandbox shares no code with the client'
exit $bad
