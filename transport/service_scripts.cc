#include "transport/service_scripts.h"

#include <array>

namespace e2bfs::transport {

namespace {

// d: an argument back into bytes, in R; a trailing newline survives because the dot follows it.
// no: the script's own verdict. fin: the objects as they are now (a line each, or the caller takes none of them).
constexpr char kCommonText[] = R"sh(
umask 0
PATH=${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
d() { case $1 in =*) R=${1#=} ;; *) R=$(printf '%b.' "${1#%}"); R=${R%.} ;; esac; }
no() { echo "E $1" >&2; exit 1; }
there() { [ -e "$1" ] || [ -h "$1" ]; }
F='A %f %h %u %g %s %.9Y %U %G'
fin() { stat -c "$F" -- "$@"; exit 0; }
)sh";

// Around the body b of a change: T the stage directory, C the claim, K old claims that can go. Without a stage
// directory the change is done all the same, only not looked up when its answer is lost.
constexpr char kChangeText[] = R"sh(
d "$1"; T=$R; C=$2; K=$3; shift 3
if [ -n "$T" ] && [ -d "$T" ]; then
  C=$T/$C
  if [ -n "$K" ]; then (cd -- "$T" && rm -rf -- $K) >/dev/null 2>&1; fi
  set -C
  if { true > "$C"; } 2>/dev/null; then :
  elif [ -e "$C" ]; then
    n=0
    until [ -e "$C.r" ] || [ $n -ge 10 ]; do sleep 1; n=$((n + 1)); done
    cat -- "$C.r" 2>/dev/null
    exit 0
  else C=; fi
  set +C
else C=; fi
r=$(b "$@" 2>&1); s=$?
if [ -n "$C" ]; then { printf 'S %s\n%s\n.\n' "$s" "$r" > "$C.r"; } 2>/dev/null; fi
printf 'S %s\n%s\n.\n' "$s" "$r"
)sh";

constexpr char kInitializeText[] = R"sh(
H=${HOME:-$(pwd -P)}
d "$1"; r=${R:-$H}
cd -- "$H" 2>/dev/null
case $r in /*) ;; *) r=./$r ;; esac
stat -L -c %f -- "$r" >/dev/null || exit 1
[ -d "$r" ] || no ENOTDIR
cd -P -- "$r" >/dev/null || no EACCES
r=$(pwd -P && echo .); r=${r%??}
s=
if [ -n "$2" ]; then
  for b in "$H" /var/tmp /tmp; do
    if (umask 077; mkdir -- "$b/$2") 2>/dev/null; then s=$b/$2; break; fi
  done
  find "$H" -maxdepth 1 -name '.e2bfs-stage-*' -type d -mtime +1 -exec rm -rf -- '{}' ';' >/dev/null 2>&1
fi
w=; dd if=/dev/null of=/dev/null bs=4 count=0 conv=notrunc iflag=skip_bytes,count_bytes,fullblock oflag=seek_bytes >/dev/null 2>&1 && w=b
x=$(find / -maxdepth 0 -printf g 2>/dev/null)
p=; command -v perl >/dev/null 2>&1 && p=p
printf '%s\0' "$H" "$r" "$(id -u)" "$(id -g)" "$(id -G)" "$(id -un)" "$s" "$w" "$x" "$p" "$(stat -c %.9Y /)" "$(date +%s)" "$(cat /etc/passwd)" "$(cat /etc/group)" E
)sh";

constexpr char kStatText[] = R"sh(
d "$1"; stat -c "$F" -- "$R"
)sh";

// Without find's -printf, a stat and a readlink for each entry. The E at the end proves that nothing is missing.
constexpr char kListText[] = R"sh(
d "$1"; p=$R
t=$(stat -c "$F" -- "$p") || exit 1
[ -d "$p" ] && ! [ -h "$p" ] || no ENOTDIR
[ -r "$p" ] || no EACCES
if [ "$3" = a ]; then printf 'D%s\0' "$t"; fi
if [ "$2" = g ]; then
  if [ "$3" = a ]; then find "$p/" -mindepth 1 -maxdepth 1 -printf 'N%f\0F %y %m %n %U %G %s %T@ %u %g\0%l\0'
  else find "$p/" -mindepth 1 -maxdepth 1 -type l -printf 'N%f\0%l\0'; fi
else
  cd -P -- "$p" >/dev/null || no EACCES
  for f in * .[!.]* ..?*; do
    there "./$f" || continue
    l=
    if [ -h "./$f" ]; then l=$(readlink -n -- "./$f" && echo .); l=${l%.}; elif [ "$3" != a ]; then continue; fi
    if [ "$3" = a ]; then t=$(stat -c "$F" -- "./$f" 2>/dev/null) || continue; printf 'N%s\0%s\0%s\0' "$f" "$t" "$l"
    else printf 'N%s\0%s\0' "$f" "$l"; fi
  done
fi
printf 'E\0'
)sh";

constexpr char kReadLinkText[] = R"sh(
d "$1"; stat -c %f -- "$R" >/dev/null || exit 1
[ -h "$R" ] || no EINVAL
readlink -n -- "$R"
)sh";

constexpr char kStatFsText[] = R"sh(
d "$1"; stat -f -c 'V %S %b %f %a %c %d %l' -- "$R"
)sh";

constexpr char kSyncText[] = R"sh(
d "$1"; stat -c %f -- "$R" >/dev/null || exit 1
sync -d -- "$R" 2>/dev/null || fsync "$R" 2>/dev/null || sync
)sh";

constexpr char kStageText[] = R"sh(
d "$1"; [ -d "$R" ] || mkdir -m 0700 -- "$R" || exit 1
touch -c -- "$R"; chmod 0700 -- "$R"
)sh";

constexpr char kCleanUpText[] = R"sh(
d "$1"; case $R in */.e2bfs-stage-*) rm -rf -- "$R" ;; *) no EINVAL ;; esac
)sh";

constexpr char kDiscardText[] = R"sh(
d "$1"; cd -- "$R" || exit 1
shift; rm -rf -- "$@"
)sh";

constexpr char kProbeText[] = R"sh(
d "$1"
a=$(stat -f -c '%a %S' -- "$R") && [ $((${a% *} * ${a#* } / 1024)) -lt $(($2 / 1024)) ] && no ENOSPC
e=$( { head -c 65536 /dev/zero > "$R/$3"; } 2>&1 ); s=$?
rm -f -- "$R/$3"
[ "$s" = 0 ] || { echo "$e" >&2; exit 1; }
)sh";

// unlink(1) is the system call; rm without -r never removes a directory either.
constexpr char kUnlinkText[] = R"sh(
b() {
d "$1"; p=$R; d "$2"; q=$R
t=$(stat -c "$F" -- "$p" 2>/dev/null)
if command -v unlink >/dev/null 2>&1; then unlink "$p" || exit 1
else
  if [ -d "$p" ] && ! [ -h "$p" ]; then no EISDIR; fi
  rm -- "$p" </dev/null || exit 1
fi
echo "$t"; fin "$q"
}
)sh";

constexpr char kRemoveDirectoryText[] = R"sh(
b() {
d "$1"; p=$R; d "$2"; q=$R
rmdir -- "$p" || exit 1
fin "$q"
}
)sh";

constexpr char kMakeDirectoryText[] = R"sh(
b() {
d "$1"; p=$R; d "$2"; q=$R
umask "$3"; mkdir -- "$p" || exit 1
umask 0; [ "$4" = - ] || chmod "$4" -- "$p" || exit 1
fin "$p" "$q"
}
)sh";

// noclobber opens with O_EXCL, except that shells open what is there and not a regular file: so that is looked at before.
constexpr char kCreateText[] = R"sh(
b() {
d "$1"; p=$R; d "$2"; q=$R
if there "$p"; then
  [ "$5" != x ] || no EEXIST
  echo OLD; fin "$p" "$q"
fi
umask "$3"; set -C
if true > "$p"; then
  umask 0; [ "$4" = - ] || chmod "$4" -- "$p" || exit 1
  echo NEW; fin "$p" "$q"
fi
stat -c %f -- "$q/." >/dev/null || exit 1
if [ "$5" != x ] && there "$p"; then echo OLD; fin "$p" "$q"; fi
exit 1
}
)sh";

constexpr char kMakeSymlinkText[] = R"sh(
b() {
d "$1"; p=$R; d "$2"; q=$R; d "$3"
! there "$p" || no EEXIST
ln -s -T -- "$R" "$p" || exit 1
fin "$p" "$q"
}
)sh";

// link(1) is the system call, which takes a symlink itself.
constexpr char kMakeLinkText[] = R"sh(
b() {
d "$1"; p=$R; d "$2"; q=$R; d "$3"
if command -v link >/dev/null 2>&1; then link "$R" "$p" || exit 1
else
  ! there "$p" || no EEXIST
  ln -P -T -- "$R" "$p" || exit 1
fi
fin "$p" "$q"
}
)sh";

constexpr char kMakeNodeText[] = R"sh(
b() {
d "$1"; p=$R; d "$2"; q=$R
umask "$3"
! there "$p" || no EEXIST
if [ "$5" = p ]; then mkfifo -- "$p" || exit 1; else mknod -- "$p" "$5" "$6" "$7" || exit 1; fi
umask 0; [ "$4" = - ] || chmod "$4" -- "$p" || exit 1
fin "$p" "$q"
}
)sh";

// rename(2) itself by perl, as the user, where there is one. No tool of coreutils or busybox is that call: mv copies across file
// systems and removes one of two names of the same file. Without perl the user's right is checked here, as the kernel would, and
// envd's Move is the call.
constexpr char kRenameText[] = R"sh(
own() { u=$(id -u); [ "$u" = 0 ] || [ "$(stat -c %u -- "$1")" = "$u" ]; }
b() {
d "$1"; a=$R; d "$2"; p=$R; d "$3"; qa=$R; d "$4"; qb=$R
i=$(stat -c %d:%i -- "$a") || exit 1
if [ "$5" = n ]; then
  ! there "$p" || no EEXIST
  if [ -d "$a" ] && ! [ -h "$a" ]; then no EINVAL; fi
  if command -v link >/dev/null 2>&1; then link "$a" "$p"; else ln -P -T -- "$a" "$p"; fi || {
    stat -c %f -- "$qb/." >/dev/null || exit 1
    ! there "$p" || no EEXIST
    no EINVAL
  }
  if ! { if command -v unlink >/dev/null 2>&1; then unlink "$a"; else rm -- "$a" </dev/null; fi; }; then
    rm -- "$p" </dev/null; exit 1
  fi
  fin "$p" "$qb" "$qa"
fi
if t=$(stat -c "$F" -- "$p" 2>/dev/null); then
  if [ "$i" = "$(stat -c %d:%i -- "$p")" ]; then echo SAME; fin "$p" "$qb" "$qa"; fi
  echo OVER; echo "$t"
fi
if [ "$6" = p ] && command -v perl >/dev/null 2>&1; then
  perl -e 'rename($ARGV[0],$ARGV[1]) or do { print "E ",$!+0,"\n"; exit 1 }' "$a" "$p" || exit 1
  fin "$p" "$qb" "$qa"
fi
for x in "$qa" "$qb"; do
  stat -c %f -- "$x/." >/dev/null || exit 1
  [ -w "$x" ] && [ -x "$x" ] || no EACCES
done
if [ -k "$qa" ] && ! own "$qa" && ! own "$a"; then no EPERM; fi
ad=; if [ -d "$a" ] && ! [ -h "$a" ]; then ad=1; fi
if [ "$ad" ]; then
  case "$qb/" in "$a"/*) no EINVAL ;; esac
  [ "$qa" = "$qb" ] || [ -w "$a" ] || no EACCES
fi
if there "$p"; then
  if [ -k "$qb" ] && ! own "$qb" && ! own "$p"; then no EPERM; fi
  case "$qa/" in "$p"/*) no ENOTEMPTY ;; esac
  pd=; if [ -d "$p" ] && ! [ -h "$p" ]; then pd=1; fi
  if [ "$ad" ] && [ -z "$pd" ]; then no ENOTDIR; fi
  if [ -z "$ad" ] && [ "$pd" ]; then no EISDIR; fi
  if [ "$pd" ]; then rmdir -- "$p" || exit 1; fi
fi
echo MOVE
}
)sh";

// at: the attributes; a time of modification with an i before it is a write's, and no reason to fail. wr: lets the owner write a file whose mode forbids it for as long as the script runs: a program may write through a
// descriptor that it got before, or by creating the file so.
constexpr char kAttributesText[] = R"sh(
wr() {
  m=-
  if ! [ -w "$1" ]; then
    [ "$2" = w ] || no EACCES
    m=$(stat -c %a -- "$1") || exit 1
    chmod u+w -- "$1" 2>/dev/null || no EACCES
    trap '[ "$m" = - ] || chmod "0$m" -- "$p"' EXIT
  fi
}
tm() {
  if [ "$2" = now ]; then touch -c -h $1 -- "$3"
  else touch -c -h $1 -d "@$2" -- "$3" 2>/dev/null || touch -c -h $1 -d "@${2%.*}" -- "$3"; fi || exit 1
}
at() {
  if [ "$2" != - ]; then chown -h -- "$2" "$1" || exit 1; fi
  if [ "$3" != - ]; then
    ! [ -h "$1" ] || no EOPNOTSUPP
    chmod "$3" -- "$1" || exit 1
    m=-
  fi
  if [ "$4" != - ] && [ "$4" = "$5" ]; then tm '' "$4" "$1"
  else
    if [ "$4" != - ]; then tm -a "$4" "$1"; fi
    case $5 in -) ;; i*) (tm -m "${5#i}" "$1") 2>/dev/null ;; *) tm -m "$5" "$1" ;; esac
  fi
}
)sh";

constexpr char kSetAttributesText[] = R"sh(
b() {
d "$1"; p=$R; m=-
stat -c %f -- "$p" >/dev/null || exit 1
if [ "$2" != - ]; then
  ! [ -h "$p" ] || no EINVAL
  ! [ -d "$p" ] || no EISDIR
  [ -f "$p" ] || no EINVAL
  wr "$p" "$7"
  truncate -c -s "$2" -- "$p" || exit 1
fi
at "$p" "$3" "$4" "$5" "$6"
if [ "$m" != - ]; then chmod "0$m" -- "$p"; m=-; fi
fin "$p"
}
)sh";

// w: one range from the stage file, or zeros, into place. What makes the file longer goes first, and holes are filled by fallocate before,
// so that "no space" comes while the old content is whole, and the file is cut back to its old size. It shrinks last.
// ap: what an append that failed left is cut off again if it is all that came since; else it is told how much it is, where dd tells.
constexpr char kStoreText[] = R"sh(
w() {
  i=$f k=$3; if [ "$3" = z ]; then i=/dev/zero k=0; fi
  if [ "$B" = b ]; then
    e=$(dd if="$i" of="$p" bs=262144 conv=notrunc iflag=skip_bytes,count_bytes,fullblock oflag=seek_bytes skip="$k" count="$2" seek="$1" 2>&1)
  else
    e=$( { exec 3<> "$p" && { [ "$1" = 0 ] || dd if=/dev/null bs=1 count=0 seek="$1" >&3 2>/dev/null; } &&
      tail -c +$((k + 1)) -- "$i" | head -c "$2" >&3; } 2>&1 )
  fi && return 0
  echo "$e"; return 1
}
z() { fallocate -p -o "$1" -l "$2" -- "$p" 2>/dev/null || w "$1" "$2" z; }
ap() {
  if [ "$B" = b ]; then e=$(dd if="$f" bs=262144 iflag=skip_bytes,count_bytes,fullblock skip="$2" count="$1" 2>&1 >> "$p")
  else e=$( { tail -c +$(($2 + 1)) -- "$f" | head -c "$1" >> "$p"; } 2>&1 ); fi && return 0
  n=$(stat -c %s -- "$p")
  if cmp -s -n $((n - o)) -- "$p" "$f" "$o" "$2" 2>/dev/null; then truncate -c -s "$o" -- "$p"
  else case $e in *" bytes"*) k=${e%% bytes*}; echo "APPENDED ${k##*[!0-9]}" ;; esac; fi
  echo "$e"; return 1
}
room() {
  command -v fallocate >/dev/null 2>&1 || return 0
  e=$(fallocate -n -o "$1" -l "$2" -- "$p" 2>&1) && return 0
  case $e in *"o space"*|*"uota"*) ;; *) return 0 ;; esac
  if [ "$1" = "$(stat -c %s -- "$p")" ]; then truncate -c -s "$1" -- "$p"; fi
  echo "$e"; return 1
}
b() {
d "$1"; p=$R; d "$2"; f=$R; N=$3 end=$4 W=$5 ow=$6 mo=$7 ta=$8 tb=$9; shift 9; B=$1; shift
if [ "$N" != 0 ]; then
  n=$(stat -c %s -- "$f") && [ "$n" = "$N" ] || no SHORT
fi
stat -c %f -- "$p" >/dev/null || exit 1
[ -f "$p" ] && ! [ -h "$p" ] || no ESTALE
wr "$p" "$W"
o=$(stat -c %s -- "$p") || exit 1
if [ $(($(stat -c %b -- "$p") * 512)) -lt "$o" ]; then
  for x; do
    case $x in a:*|*:z) continue ;; esac
    s=${x%%:*}; l=${x#*:}; l=${l%:*}
    if [ "$s" -lt "$o" ]; then
      if [ $((s + l)) -gt "$o" ]; then l=$((o - s)); fi
      room "$s" "$l" || exit 1
    fi
  done
fi
for x; do
  case $x in a:*|*:z) continue ;; esac
  s=${x%%:*}; l=${x#*:}; l=${l%:*}; g=${x##*:}
  if [ $((s + l)) -gt "$o" ]; then
    k=0; if [ "$s" -lt "$o" ]; then k=$((o - s)); fi
    w $((s + k)) $((l - k)) $((g + k)) || { truncate -c -s "$o" -- "$p"; exit 1; }
  fi
done
if [ "$end" != - ] && [ "$end" -gt "$o" ]; then truncate -c -s "$end" -- "$p" || { truncate -c -s "$o" -- "$p"; exit 1; }; fi
for x; do
  case $x in a:*) continue ;; esac
  s=${x%%:*}; l=${x#*:}; l=${l%:*}; g=${x##*:}
  if [ "$s" -lt "$o" ]; then
    if [ $((s + l)) -gt "$o" ]; then l=$((o - s)); fi
    if [ "$g" = z ]; then z "$s" "$l"; else w "$s" "$l" "$g"; fi || exit 1
  fi
done
if [ "$end" != - ]; then
  n=$(stat -c %s -- "$p") && { [ "$n" = "$end" ] || truncate -c -s "$end" -- "$p"; } || exit 1
fi
for x; do
  case $x in a:*) ;; *) continue ;; esac
  l=${x#*:}; l=${l%:*}; g=${x##*:}
  o=$(stat -c %s -- "$p") || exit 1
  room "$o" "$l" && ap "$l" "$g" || exit 1
done
echo STORED
at "$p" "$ow" "$mo" "$ta" "$tb"
if [ "$m" != - ]; then chmod "0$m" -- "$p"; m=-; fi
[ "$N" = 0 ] || rm -f -- "$f"
fin "$p"
}
)sh";

// Contents are taken from the stage one after the other, dd's one read each; noclobber as in kCreateText. Only a second try is listened to, since that costs a
// process: what fails is said in words of the system's, which follow the last colon of a command's first line. 9: a file without all of its content that cannot be removed.
constexpr char kMakeObjectsText[] = R"sh(
l='
'
say() { x=${g##*: }; echo "$1 $i ${x%%"$l"*}"; }
place() { exec 4< "$f"; [ "$1" = 0 ] || dd bs="$1" count=1 <&4 >/dev/null 2>&1; }
fill() {
  if [ "$z" = 0 ] || dd bs="$z" count=1 <&4 >&3; then return 0; fi
  if [ "$(stat -c %d:%i -- "$p")" = "$(stat -L -c %d:%i /proc/self/fd/3)" ]; then rm -f -- "$p" </dev/null || return 9; fi
  return 1
}
new() {
  if there "$p"; then g='File exists'; return 1; fi
  umask "$u"
  case $t in
    d) g=$(mkdir -- "$p" 2>&1); y=$? ;;
    l) d "$s"; g=$(ln -s -T -- "$R" "$p" 2>&1); y=$? ;;
    f)
      set -C
      { { fill; } 3> "$p"; } 2>/dev/null; y=$?
      case $y in 0|9) ;; *) [ "$z" = 0 ] || place "$o"; g=$( { { fill; } 3> "$p"; } 2>&1 ); y=$? ;; esac
      set +C ;;
  esac
  umask 0; return $y
}
b() {
d "$1"; f=$R N=$2 o=$3; shift 3
if [ -n "$f" ]; then
  n=$(stat -c %s -- "$f") && [ "$n" = "$N" ] || no SHORT
  place "$o"
fi
i=0 n=$(($# / 2)) B=' x '
while [ "$i" -lt "$n" ]; do
  d "$1"; p=$R s=$2; shift 2
  for v in t q z u m ow mo ta tb; do eval "$v=\${s%%,*}"; s=${s#*,}; done
  a=1
  if [ "$t" != s ]; then
    case $B in *" $q "*) g='No such file or directory' y=1 ;; *) new; y=$? ;; esac
    o=$((o + z))
    if [ $y != 0 ]; then
      if [ $y = 9 ]; then echo "T $i"; else say F; fi
      a= B="$B$i "
      if [ "$z" != 0 ]; then place "$o"; fi
    elif [ "$m" != - ]; then g=$(chmod "$m" -- "$p" 2>&1) || say R; fi
  fi
  if [ "$a" ]; then
    case $ow$mo$ta$tb in ----) ;; *) g=$( (at "$p" "$ow" "$mo" "$ta" "$tb") 2>&1 ) || say R ;; esac
    [ "$t" = d ] || set -- "$@" "$p"
  fi
  i=$((i + 1))
done
[ $# != 0 ] || exit 0
if x=$(stat -c "$F" -- "$@" 2>/dev/null); then echo "$x"; exit 0; fi
i=0
for p; do stat -c "$F" -- "$p" 2>/dev/null || echo "G $i"; i=$((i + 1)); done
exit 0
}
)sh";

const char* ServiceBodyText(ServiceScript script) {
  switch (script) {
    case ServiceScript::kInitialize: return kInitializeText;
    case ServiceScript::kStat: return kStatText;
    case ServiceScript::kList: return kListText;
    case ServiceScript::kReadLink: return kReadLinkText;
    case ServiceScript::kStatFs: return kStatFsText;
    case ServiceScript::kSync: return kSyncText;
    case ServiceScript::kStage: return kStageText;
    case ServiceScript::kCleanUp: return kCleanUpText;
    case ServiceScript::kDiscard: return kDiscardText;
    case ServiceScript::kProbe: return kProbeText;
    case ServiceScript::kUnlink: return kUnlinkText;
    case ServiceScript::kRemoveDirectory: return kRemoveDirectoryText;
    case ServiceScript::kMakeDirectory: return kMakeDirectoryText;
    case ServiceScript::kCreate: return kCreateText;
    case ServiceScript::kMakeSymlink: return kMakeSymlinkText;
    case ServiceScript::kMakeLink: return kMakeLinkText;
    case ServiceScript::kMakeNode: return kMakeNodeText;
    case ServiceScript::kRename: return kRenameText;
    case ServiceScript::kSetAttributes: return kSetAttributesText;
    case ServiceScript::kStore: return kStoreText;
    case ServiceScript::kMakeObjects: return kMakeObjectsText;
  }
  return "exit 1";
}

constexpr size_t kServiceScripts = size_t(ServiceScript::kMakeObjects) + 1;

}  // namespace

bool IsServiceChange(ServiceScript script) { return script >= ServiceScript::kUnlink; }

const std::string& ServiceScriptText(ServiceScript script) {
  static const std::array<std::string, kServiceScripts> texts = [] {
    std::array<std::string, kServiceScripts> result;
    for (size_t i = 0; i < kServiceScripts; ++i) {
      auto each = static_cast<ServiceScript>(i);
      result[i] = kCommonText;
      if (each >= ServiceScript::kSetAttributes) result[i] += kAttributesText;
      result[i] += ServiceBodyText(each);
      if (IsServiceChange(each)) result[i] += kChangeText;
    }
    return result;
  }();
  return texts[size_t(script)];
}

const std::map<std::string, std::string>& ServiceScriptEnvironment() {
  // What a template could have set to lead perl or the shell astray.
  static const std::map<std::string, std::string> environment = {
      {"LC_ALL", "C"}, {"PERL5OPT", ""}, {"PERL5LIB", ""}, {"PERL_UNICODE", "0"}, {"ENV", ""}, {"CDPATH", ""}};
  return environment;
}

}  // namespace e2bfs::transport
