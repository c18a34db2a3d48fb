# The syscall server of e2bfs: makes real system calls in the sandbox, as the user that it was started for.
#
# It runs inside the sandbox and needs nothing but perl-base. It comes in by its own standard input (see channel.h: a loader of
# a few hundred bytes reads it and calls eval), so that its text is in nobody's log. Requests come by standard input, replies
# go to standard output, in frames; frame.h describes them, and the two files change together.
#
# Rules of this file, each paid for:
#   - syscall() passes a scalar that was ever used as a number as one: strings go in as fresh copies "$x", numbers as 0+$x.
#   - Buffers that the kernel fills are whole, fresh and long enough.
#   - $! is looked at only after -1. No call may block: opens are O_NONBLOCK after a look at the type; what can take
#     long runs in a forked child.
#   - Bytes only: no string here has the UTF-8 flag.
use strict;
use warnings;
use Config;

our $ID;    # eight bytes that every frame of this server carries; set by the loader

# --- numbers

my $ARM = $Config{archname} =~ /^aarch64/;
die "e2bfs: no numbers for $Config{archname}\n" unless $Config{ptrsize} == 8 && ($ARM || $Config{archname} =~ /^x86_64/);
my %NR;
{
  my @table = (    # name, x86_64, aarch64
    [statx => 332, 291], [openat => 257, 56], [openat2 => 437, 437], [close => 3, 57], [mkdirat => 258, 34], [mknodat => 259, 33],
    [unlinkat => 263, 35], [symlinkat => 266, 36], [linkat => 265, 37], [renameat2 => 316, 276], [readlinkat => 267, 78],
    [truncate => 76, 45], [ftruncate => 77, 46], [fchownat => 260, 54], [fchmodat => 268, 53], [utimensat => 280, 88],
    [faccessat => 269, 48], [fallocate => 285, 47], [lseek => 8, 62], [pread64 => 17, 67], [pwrite64 => 18, 68],
    [copy_file_range => 326, 285], [fsync => 74, 82], [fcntl => 72, 25], [fstatfs => 138, 44], [setxattr => 188, 5],
    [getxattr => 191, 8], [listxattr => 194, 11], [removexattr => 197, 14], [setfsuid => 122, 151], [setfsgid => 123, 152],
    [dup3 => 292, 24], [capget => 125, 90], [capset => 126, 91], [prlimit64 => 302, 261], [prctl => 157, 167], [clock_gettime => 228, 113], [exit_group => 231, 94], [read => 0, 63], [write => 1, 64], [getdents64 => 217, 61],
    [inotify_init1 => 294, 26], [inotify_add_watch => 254, 27], [inotify_rm_watch => 255, 28],
  );
  $NR{$_->[0]} = $_->[$ARM ? 2 : 1] for @table;
}
my ($O_RDONLY, $O_WRONLY, $O_RDWR, $O_CREAT, $O_EXCL, $O_NOCTTY) = (0, 1, 2, 0100, 0200, 0400);
my ($O_APPEND, $O_NONBLOCK, $O_CLOEXEC, $O_PATH) = (02000, 04000, 02000000, 010000000);
my ($O_DIRECTORY, $O_NOFOLLOW) = $ARM ? (040000, 0100000) : (0200000, 0400000);
my $O_TMPFILE = 020000000 | $O_DIRECTORY;
my $O_OURS = $O_CLOEXEC | $O_NONBLOCK | $O_NOCTTY;
my ($AT_FDCWD, $AT_NOFOLLOW, $AT_FOLLOW, $AT_EMPTY_PATH, $AT_REMOVEDIR) = (-100, 0x100, 0x400, 0x1000, 0x200);
my ($EPERM, $ENOENT, $EINTR, $EIO, $EBADF, $EAGAIN, $EACCES, $EEXIST, $EXDEV, $ENODEV, $ENOTDIR, $EISDIR, $EINVAL, $ENOSPC, $EROFS)
  = (1, 2, 4, 5, 9, 11, 13, 17, 18, 19, 20, 21, 22, 28, 30);
my ($ENXIO, $EFBIG, $ESPIPE, $ENAMETOOLONG, $ENOSYS, $ELOOP, $EOPNOTSUPP, $ESTALE, $EDQUOT) = (6, 27, 29, 36, 38, 40, 95, 116, 122);
my ($S_IFMT, $S_IFREG, $S_IFDIR, $S_IFLNK) = (0170000, 0100000, 0040000, 0120000);
my ($FALLOC_KEEP_SIZE, $FALLOC_PUNCH_HOLE) = (1, 2);
my $F_SETLEASE = 1024;

# --- limits; frame.h has the same

my $MAX_BODY = 256 << 10;
my $MAX_READ = 192 << 10;
my $CHUNK = 1 << 20;            # copied at once
my $INLINE_COPY = 1 << 20;      # more than this is copied by a child
my $MAX_DIRECTORIES = 1024;     # kept open, and at most a quarter of what may be
my $HELD_OF_LISTING = 64;       # directories that are held when the one that they are in is listed
my $FIRST_HANDLE_FD = 64;       # handles' numbers only grow, up to the limit: a late request must not meet another file
my $KEPT_BYTES = 8 << 20;       # of replies to changes
my $MAX_WATCHES = 8192;         # and at most a quarter of what the user may have
my $WRITTEN_FOR = 2;            # seconds after a write that was not followed by a close
my $STEP_TIME = 0.02;           # seconds that a job works at once: others are answered between its steps
my $MAX_GUESSED = 2000;         # entries of a directory that is listed only because it may be asked for next
my $EVENT_PAUSE = 0.01;         # seconds between two looks at the events, if nothing is asked: a busy writer is one event then

# --- state

my ($root, $root_path, $silence) = (-1, '', 3600);
my ($uid, $gid) = ($>, 0 + (split / /, $))[0]);
my %directories;                # identity -> [fd, when it was last used]
my %handles;                    # number -> [fd, its rights (1: reading, 2: writing), the rights that it was opened with]
my %own_writing;                # descriptors that are open for writing for one operation, which may take long
my $next_fd = $FIRST_HANDLE_FD;
my $max_fd = 1024;
my ($low, %kept, %running, %barred) = (0);    # kept: the bodies of the replies to a change
my ($kept_bytes, $forgotten) = (0, 0);    # changes up to number $forgotten have no kept replies any more
my %children;                   # fd of its pipe -> [pid, sequence number, what to do with its answer, what it said]
my ($in, $out, $heard) = ('', '', 0);
my ($openat2_works, $use_counter) = (1, 0);
my @jobs;                       # operations that go on in steps: [sequence number, step, what is called at their end, whether it is a change]
my %sizeless;                   # device -> whether its files have no true size
# Its file; "number point" of what is mounted -> [device, point]; the devices, and those that nobody writes to.
my ($mount_table, %mounts, %mounted, %read_only);

# Directories that we hold are watched, so that the client need not ask again what it knows of them.
my $inotify = -1;
my $watch_limit = 0;
my (%watch_of, %watched);       # identity -> [number of the watch, when it was last used]; the other way
my %descriptor_identity;        # of the directories' descriptors
# What the replies at hand tell: the events of our own changes are no news. Only replies to changes count: an answer to a question may be
# given up by who asked, since news overtook it, and what an open says is not looked at.
my (%told_object, %told_gone);  # identity -> statx; "identity name" of what is gone
my %told_name;                  # "identity name" -> identity of what has the name: that an object is known says nothing of its names
my %told_last;                  # of regular files: the same, beyond the replies at hand
# Regular files that somebody else has begun to write and not closed, as far as events tell: what is said of them is true for the moment only,
# until later events would have been told.
my %written;                    # identity -> when
my %written_name;               # "identity name" in the events -> identity of the file
my $telling = 0;                # the operation at hand is a change
my $replies = '';               # they go out after the news that is older

# --- what the kernel is asked

# Every call returns -1 on failure, with $! set; fail() makes it the operation's errno (and, rarely, says more).
sub fail { die {errno => $_[0], result => $_[1] // ''} }
sub check { $_[0] == -1 ? fail(0 + $!) : $_[0] }

sub sys_close { syscall $NR{close}, 0 + $_[0] }
# At once: nothing is flushed, no END is run.
sub leave { syscall $NR{exit_group}, 0 + $_[0] }
sub fd_path { "/proc/self/fd/$_[0]" }

sub sys_openat {
  my ($fd, $name, $flags, $mode) = @_;
  return syscall $NR{openat}, 0 + $fd, "$name", 0 + $flags, 0 + ($mode // 0);
}

# The first 144 bytes of struct statx, or undef. $name may be ''. $quick: without asking anybody on a network, and without mounting anything.
sub sys_statx {
  my ($fd, $name, $quick) = @_;
  my $buffer = "\0" x 256;
  my $flags = $AT_NOFOLLOW | ($name eq '' ? $AT_EMPTY_PATH : 0) | ($quick ? 0x4800 : 0);
  return undef if syscall($NR{statx}, 0 + $fd, "$name", $flags, 0xfff, $buffer) == -1;
  return substr $buffer, 0, 144;
}

sub mode_of { unpack 'x28 S', $_[0] }
sub type_of { $S_IFMT & unpack 'x28 S', $_[0] }
sub size_of { unpack 'x40 q', $_[0] }
sub blocks_of { unpack 'x48 Q', $_[0] }
sub links_of { unpack 'x16 L', $_[0] }
sub without_atime { substr($_[0], 0, 64) . substr $_[0], 80 }
# Device, inode number, birth time: inode numbers alone are used again at once. As frame.h's IdentityOf makes it.
sub identity_of { substr($_[0], 136, 8) . substr($_[0], 32, 8) . substr($_[0], 80, 12) }
# Whether what has this statx is where the directory of that identity is: what is mounted there is not held just because it was seen.
sub same_device { substr($_[0], 136, 8) eq substr $_[1], 0, 8 }

# --- objects

# Whether the files of the device that fd is on say how long they are: those of /proc, /sys and their kind do not.
my %NO_SIZES = map { $_ => 1 } (0x9fa0, 0x62656572, 0x27e0eb, 0x63677270, 0x64626720, 0x74726163, 0x73636673, 0x6165676c, 0xcafe4a11);

sub has_no_sizes {
  my ($fd, $device) = @_;
  return $sizeless{$device} if exists $sizeless{$device};
  my $buffer = "\0" x 256;
  return 0 if syscall($NR{fstatfs}, 0 + $fd, $buffer) == -1;
  return $sizeless{$device} = $NO_SIZES{unpack 'Q', $buffer} ? 1 : 0;
}

# Attributes as a reply carries them: statx, flags (1: sizeless, 2: names of extended attributes follow, 4: access follows, 8: a
# directory that is watched, 16: nothing but type, device and number is known, 32: somebody writes to it, 64: its file system is read-only).
# ($fd, $name) leads to the object.
sub attributes {
  my ($fd, $name, $statx) = @_;
  my ($flags, $more) = (0, '');
  my $type = type_of($statx);
  $flags |= 1 if $type == $S_IFREG && size_of($statx) <= 4096 && has_no_sizes($fd, substr $statx, 136, 8);
  my $identity = identity_of($statx);
  $flags |= 8 if $type == $S_IFDIR && $watch_of{$identity};
  note_told($fd, $name, $identity, $statx) if $telling && $inotify != -1;
  $flags |= 32 if is_written($identity);
  $flags |= 64 if $read_only{substr $statx, 136, 8};
  my $path = $name eq '' ? fd_path($fd) : fd_path($fd) . "/$name";
  my $names;
  if ($type == $S_IFLNK && $name ne '') {
    $names = '';    # nothing but trusted.* and security.* can be there
  } else {
    $names = list_xattrs($path);
  }
  if (defined $names) {
    $flags |= 2;
    $more = pack 'n/a*', $names;
    if (index($names, 'system.posix_acl_access') >= 0) {
      $flags |= 4;
      my $access = 0;
      for my $bit (4, 2, 1) {
        $access |= $bit if syscall($NR{faccessat}, $AT_FDCWD, "$path", $bit) == 0;
      }
      $more .= chr $access;
    }
  }
  return $statx . chr($flags) . $more;
}

# The reply to the change at hand says this of it.
sub note_told {
  my ($fd, $name, $identity, $statx) = @_;
  delete $written{$identity};
  $told_object{$identity} = $statx;
  $told_name{($descriptor_identity{$fd} // '') . $name} = $identity if $name ne '';
  %told_last = () if keys %told_last > 4096;
  $told_last{$identity} = $statx if type_of($statx) == $S_IFREG;
}

sub is_written {
  my ($identity) = @_;
  my $when = $written{$identity} // return 0;
  return 1 if seconds() < $when + $WRITTEN_FOR;
  delete $written{$identity};
  return 0;
}

sub note_writer {
  my ($identity, $name, $object) = @_;
  (%written, %written_name) = () if keys %written_name > 4096;
  $written{$object} = seconds();
  $written_name{$identity . $name} = $object;
}

sub note_close {
  my ($identity, $name) = @_;
  my $object = delete $written_name{$identity . $name};
  delete $written{$object} if defined $object;
}

# undef where they cannot be told.
sub list_xattrs {
  my ($path) = @_;
  my $buffer = "\0" x 1024;
  my $got = syscall $NR{listxattr}, "$path", $buffer, 1024;
  if ($got == -1) {
    return '' if $! == $EOPNOTSUPP;
    return undef unless $! == 34;    # ERANGE
    $buffer = "\0" x 65536;
    $got = syscall $NR{listxattr}, "$path", $buffer, 65536;
    return undef if $got == -1;
  }
  return substr $buffer, 0, $got;
}

sub attributes_of_fd {
  my ($fd) = @_;
  my $statx = sys_statx($fd, '');
  return defined $statx ? attributes($fd, '', $statx) : fail(0 + $!);
}

sub check_name {
  my ($name) = @_;
  fail($EINVAL) if $name eq '' || $name eq '.' || $name eq '..' || $name =~ m{[/\0]};
  fail($ENAMETOOLONG) if length $name > 255;
}

# Opens a path below the root, or below the directory $from and on its file system; component links are never followed. The path may be longer than
# one call takes.
sub open_below {
  my ($path, $flags, $from) = @_;
  my $resolve = defined $from ? 0x05 : 0x04;    # RESOLVE_NO_SYMLINKS, and RESOLVE_NO_XDEV
  fail($EINVAL) if $path =~ /\0/ || ($path ne '' && $path =~ m{(?:^|/)(?:\.\.?)?(?:/|\z)});
  $from //= $root;
  return check(sys_openat($from, '.', $flags | $O_CLOEXEC)) if $path eq '';
  my $at = $from;
  while (1) {
    my ($part, $rest) = ($path, '');
    if (length $path > 4000) {
      my $cut = rindex $path, '/', 4000;
      fail($ENAMETOOLONG) if $cut <= 0;
      ($part, $rest) = (substr($path, 0, $cut), substr $path, $cut + 1);
    }
    my $wanted = $rest eq '' ? $flags : $O_PATH | $O_DIRECTORY;
    my $fd = -1;
    for my $try (1 .. 4) {
      if (!$openat2_works) {
        $fd = sys_openat($at, $part, $wanted | $O_CLOEXEC);
        last;
      }
      # A link at the end is still had by O_PATH and O_NOFOLLOW.
      my $how = pack 'QQQ', $wanted | $O_CLOEXEC, 0, $resolve;
      $fd = syscall $NR{openat2}, 0 + $at, "$part", $how, 24;
      last unless $fd == -1 && ($! == $ENOSYS || $! == $EPERM || $! == $EAGAIN);
      $openat2_works = 0 if $! != $EAGAIN;
    }
    my $error = 0 + $!;
    sys_close($at) if $at != $from;
    fail($error == $ELOOP ? $ESTALE : $error) if $fd == -1;
    return $fd if $rest eq '';
    ($at, $path) = ($fd, $rest);
  }
}

# A directory by path and identity: a descriptor that stays ours. With the identity known, the path only finds it: what was
# renamed meanwhile is still itself, and something else there is ESTALE.
sub directory {
  my ($path, $identity) = @_;
  if ($path eq '' && ($identity eq '' || $directories{''} && $directories{''}[2] eq $identity)) {
    watch($directories{''}[2], $root);
    return $root;
  }
  if ($identity ne '' && (my $known = $directories{$identity})) {
    $known->[1] = ++$use_counter;
    watch($identity, $known->[0]);
    return $known->[0];
  }
  my $fd = eval { open_below($path, $O_PATH | $O_DIRECTORY | $O_NOFOLLOW) };
  if (my $error = $@) {
    die $error unless ref $error;
    # Whoever knows the directory knows that it was there.
    fail($identity ne '' && ($error->{errno} == $ENOENT || $error->{errno} == $ENOTDIR) ? $ESTALE : $error->{errno});
  }
  my $statx = sys_statx($fd, '');
  my $found = defined $statx ? identity_of($statx) : '';
  if ($identity ne '' && $found ne $identity) {
    sys_close($fd);
    fail($ESTALE);
  }
  return keep_directory($found, $fd);
}

# The descriptor becomes ours; another one that is known already is used in its place. $unwatched: until it is used.
sub keep_directory {
  my ($identity, $fd, $unwatched) = @_;
  if (my $known = $directories{$identity}) {    # an operation may be using that descriptor
    sys_close($fd) if $fd != $known->[0];
    $known->[1] = ++$use_counter;
    $fd = $known->[0];
  } else {
    forget_directories(keys(%directories) / 2) if keys %directories >= $MAX_DIRECTORIES;
    $directories{$identity} = [$fd, ++$use_counter];
    $descriptor_identity{$fd} = $identity;
  }
  watch($identity, $fd) unless $unwatched;
  return $fd;
}

sub close_directory {
  my ($identity) = @_;
  my $known = delete $directories{$identity} or return;
  delete $descriptor_identity{$known->[0]};
  sys_close($known->[0]);
}

# So many, those that were not used for longest: never what the operation at hand uses.
sub forget_directories {
  my ($count) = @_;
  my @old = sort { $directories{$a}[1] <=> $directories{$b}[1] } grep { $_ ne '' } keys %directories;
  close_directory($_) for grep { defined } @old[0 .. $count - 1];
}

# An object that is no handle: an O_PATH descriptor and its statx. The caller closes it. With its directory's identity known, the
# directory is found first: wherever it is by now, what has the name in it is meant.
sub node {
  my ($path, $identity, $parent) = @_;
  my $fd = -1;
  if ($parent ne '' && $identity ne '' && $path =~ m{^(?:(.*)/)?([^/]+)\z}s) {
    my ($above, $name) = ($1 // '', $2);
    my $directory = eval { directory($above, $parent) };
    if (defined $directory) {
      $fd = sys_openat($directory, $name, $O_PATH | $O_NOFOLLOW | $O_CLOEXEC);
      my $statx = $fd == -1 ? undef : sys_statx($fd, '');
      return ($fd, $statx) if defined $statx && identity_of($statx) eq $identity;
      my $error = $fd == -1 ? 0 + $! : $ESTALE;
      sys_close($fd) if $fd != -1;
      fail($error) unless $directories{$identity};
    }
  }
  $fd = -1;
  if ($path ne '' || $identity eq '' || !$directories{$identity}) {
    $fd = eval { open_below($path, $O_PATH | $O_NOFOLLOW) } // -1;
    if (my $error = $@) {
      die $error unless ref $error;
      # A directory that was moved is still known by what it is.
      my $known = $identity ne '' ? $directories{$identity} : undef;
      fail($error->{errno} == $ENOTDIR && $identity ne '' ? $ESTALE : $error->{errno}) unless $known;
    }
  }
  if ($fd != -1) {
    my $statx = sys_statx($fd, '') // do { my $e = 0 + $!; sys_close($fd); fail($e) };
    return ($fd, $statx) if $identity eq '' || identity_of($statx) eq $identity;
    sys_close($fd);
    fail($ESTALE) unless $directories{$identity};
  }
  my $copy = check(syscall $NR{fcntl}, 0 + $directories{$identity}[0], 1030, 0);    # F_DUPFD_CLOEXEC
  return ($copy, sys_statx($copy, '') // fail(0 + $!));
}

# The object of a request: {fd, statx, path} of a handle or of a node; $body gets it and may die.
sub with_object {
  my ($args, $body) = @_;
  my ($kind, $fd) = (number8($args));
  if ($kind == 1) {
    my $number = number64($args);
    my $handle = $handles{$number} or fail($EBADF);
    return $body->($handle->[0], sys_statx($handle->[0], '') // fail(0 + $!), $handle->[1] ? $handle : undef);
  }
  my ($path, $identity, $parent) = (text($args), text($args), text($args));
  ($fd, my $statx) = node($path, $identity, $parent);
  my @result = eval { $body->($fd, $statx, undef) };
  my $error = $@;
  sys_close($fd);
  die $error if $error;
  return $result[0];
}

# Opened for reading or writing by an O_PATH descriptor, after a look at its type. A high number that only grows.
sub open_object {
  my ($fd, $statx, $flags) = @_;
  my $type = type_of($statx);
  fail($type == $S_IFDIR ? $EISDIR : $type == $S_IFLNK ? $ELOOP : $ENXIO) if $type != $S_IFREG;
  my $opened = sys_openat($AT_FDCWD, fd_path($fd), $flags | $O_OURS);
  $opened = sys_openat($AT_FDCWD, fd_path($fd), $flags | $O_APPEND | $O_OURS) if $opened == -1 && $! == $EPERM && appends_only($statx);
  return high_fd(check($opened));
}

sub close_own { my ($fd) = @_; delete $own_writing{$fd}; sys_close($fd) }

sub appends_only { return unpack('x8 Q', $_[0]) & 0x20 }    # STATX_ATTR_APPEND

sub high_fd {
  my ($fd) = @_;
  $next_fd = $FIRST_HANDLE_FD if $next_fd >= $max_fd - 1;
  my $high = syscall $NR{fcntl}, 0 + $fd, 1030, 0 + $next_fd;
  my $error = 0 + $!;
  sys_close($fd);
  fail($error == $EINVAL ? 24 : $error) if $high == -1;
  $next_fd = $high + 1;
  return $high;
}

sub keep_handle {
  my ($number, $fd, $rights) = @_;
  close_handle($number);
  $handles{$number} = [$fd, $rights, $rights];
}

sub close_handle {
  my $handle = delete $handles{$_[0]} or return;
  expect_closed($handle);
  sys_close($handle->[0]);
}

# That a file open for writing was closed is an event: no news if it is as a change left it.
sub expect_closed {
  my ($handle) = @_;
  return unless $handle->[1] & 2 && $inotify != -1;
  my $statx = sys_statx($handle->[0], '');
  my $identity = defined $statx ? identity_of($statx) : '';
  my $told = delete $told_last{$identity};
  $told_object{$identity} = $statx if defined $told && without_atime($told) eq without_atime($statx);
}

# The same number with other rights; false where they are not to be had. With none it can still be opened for each use.
sub change_rights {
  my ($handle, $rights) = @_;
  my $flags = (($O_PATH, $O_RDONLY, $O_WRONLY, $O_RDWR)[$rights]) | ($rights ? $O_OURS : $O_CLOEXEC);
  my $fd = sys_openat($AT_FDCWD, fd_path($handle->[0]), $flags);
  return 0 if $fd == -1;
  expect_closed($handle);
  my $done = syscall $NR{dup3}, 0 + $fd, 0 + $handle->[0], $O_CLOEXEC;
  sys_close($fd);
  $handle->[1] = $rights if $done != -1;
  return $done != -1;
}

# Nothing more is expected to be written by it: a program that was written must not be busy (ETXTBSY) until the file is released, which is some
# time after close(2). Kept where the right could not be had again.
sub end_writing {
  my ($handle) = @_;
  change_rights($handle, $handle->[1] & 1) if $handle->[1] & 2 && may_write($handle->[0]);
}

sub may_write { return syscall($NR{faccessat}, $AT_FDCWD, my $path = fd_path($_[0]), 2) != -1 }

# Who had it open for writing may write whatever its mode becomes: the handles that have the right again.
sub keep_writable {
  my ($identity) = @_;
  return grep { $_->[2] & 2 && !($_->[1] & 2) && identity_of(sys_statx($_->[0], '') // '') eq $identity && change_rights($_, $_->[2]) } values %handles;
}

# --- watching: what changes in the directories that we hold is told without being asked for

# IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF; IN_EXCL_UNLINK, IN_ONLYDIR.
my $WATCHED_EVENTS = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x04000000 | 0x01000000;
my ($IN_Q_OVERFLOW, $IN_IGNORED, $IN_UNMOUNT, $IN_ISDIR) = (0x4000, 0x8000, 0x2000, 0x40000000);
# Others change what is there, and no event tells: NFS, SMB, FUSE, 9P, Ceph, AFS, and the kernel's own.
my %SILENT = map { $_ => 1 } (0x6969, 0x517b, 0xfe534d42, 0xff534d42, 0x65735546, 0x01021997, 0x00c36400, 0x5346414f, keys %NO_SIZES);
my %silent;    # device -> whether it is one of those

sub begin_watching {
  my $most = 0;
  if (open my $file, '<', '/proc/sys/fs/inotify/max_user_watches') { $most = int((<$file> // 0) / 4); close $file }
  $watch_limit = $most < $MAX_WATCHES ? $most : $MAX_WATCHES;
  return if $watch_limit < 1;
  $inotify = syscall $NR{inotify_init1}, $O_NONBLOCK | $O_CLOEXEC;
}

# Whether the directory is on one of those.
sub is_silent {
  my ($identity, $fd) = @_;
  my $device = substr $identity, 0, 8;
  if (!exists $silent{$device}) {
    my $buffer = "\0" x 256;
    $silent{$device} = syscall($NR{fstatfs}, 0 + $fd, $buffer) == -1 || $SILENT{unpack 'Q', $buffer} ? 1 : 0;
  }
  return $silent{$device};
}

sub watch {
  my ($identity, $fd) = @_;
  return if $inotify == -1;
  if (my $known = $watch_of{$identity}) { $known->[1] = $use_counter; return }
  return if is_silent($identity, $fd);
  unwatch_oldest() if keys %watch_of >= $watch_limit;
  my $path = fd_path($fd);
  my $number = syscall $NR{inotify_add_watch}, 0 + $inotify, "$path", $WATCHED_EVENTS;
  if ($number == -1) {
    $watch_limit = keys %watch_of if $! == $ENOSPC && keys %watch_of;    # others use theirs
    return;
  }
  $watch_of{$identity} = [$number, $use_counter];
  $watched{$number} = $identity;
}

sub unwatch {
  my ($identity) = @_;
  my ($number) = @{delete $watch_of{$identity} // return};
  delete $watched{$number};
  syscall $NR{inotify_rm_watch}, 0 + $inotify, 0 + $number;
  add_news(pack 'C a28', 3, $identity);
}

sub unwatch_oldest {
  my @old = sort { $watch_of{$a}[1] <=> $watch_of{$b}[1] } keys %watch_of;
  unwatch($_) for @old[0 .. @old / 8];
}

sub told_gone {
  my ($directory, $name) = @_;
  $told_gone{($descriptor_identity{$directory} // '') . $name} = 1;
}

my ($news, $news_count) = ('', 0);

sub add_news {
  $news .= $_[0];
  ++$news_count;
  send_news() if length $news > $MAX_READ / 2;
}

sub send_news {
  return unless $news_count;
  my $checked = $ID . pack('Q>', 0) . pack('Cn', 4, $news_count) . $news;
  $out .= 'e2R1' . pack('NN', length($checked) - 16, checksum($checked)) . $checked;
  ($news, $news_count) = ('', 0);
}

# All that has happened by now; then the replies, which may know of it.
sub send_all {
  look_at_events() if $inotify != -1;
  $out .= $replies;
  $replies = '';
  %told_object = ();
  %told_gone = ();
  %told_name = ();
}

# As much as the client takes now.
sub write_out {
  while (length $out) {
    my $wrote = syswrite STDOUT, $out, 65536;
    exit 0 if !defined $wrote && $! != $EAGAIN && $! != $EINTR;
    last unless $wrote;
    substr $out, 0, $wrote, '';
  }
}

sub look_at_events {
  my (%names, %begun, %changed);
  while (1) {
    my $buffer = "\0" x 8192;    # mostly there is little, and making it costs as much as reading
    my $got = syscall $NR{read}, 0 + $inotify, $buffer, 8192;
    last if $got == -1 || $got == 0;
    for (my $at = 0; $at + 16 <= $got;) {
      my ($number, $mask, undef, $length) = unpack 'l L L L', substr $buffer, $at, 16;
      my $name = $length ? unpack 'Z*', substr $buffer, $at + 16, $length : '';
      $at += 16 + $length;
      if ($mask & $IN_Q_OVERFLOW) { add_news(pack 'C', 4); next }
      my $identity = $watched{$number} // next;
      if ($mask & ($IN_IGNORED | $IN_UNMOUNT)) {
        delete $watch_of{$identity};
        delete $watched{$number};
        add_news(pack 'C a28', 3, $identity);
        next;
      }
      # What comes and goes changes the directory too; what is written to does not.
      $changed{$identity} ||= $name eq '' || $mask & (0x40 | 0x80 | 0x100 | 0x200) ? 1 : 0;
      # 1: what has the name may be another object.
      $names{$identity}{$name} |= $mask & (0x80 | 0x100) ? 1 : 0 if $name ne '';
      # 1: made, 2: written to, and not closed after it.
      if ($mask & 0x8) { $begun{$identity}{$name} = 0; note_close($identity, $name) }
      elsif ($mask & 0x102) { $begun{$identity}{$name} = $mask & 0x2 ? 2 : 1 }
    }
    last if $got < 4096;
  }
  for my $identity (keys %changed) {
    my $known = $directories{$identity} // ($directories{''}[2] eq $identity ? $directories{''} : undef);
    for my $name (keys %{$names{$identity}}) {
      if (!$known) { add_news(pack 'C a28 n/a* C', 1, $identity, $name, 2); next }    # it has to be asked for
      my $statx = sys_statx($known->[0], $name);
      if (!defined $statx) {
        my $state = $! == $ENOENT ? 0 : 2;
        add_news(pack 'C a28 n/a* C', 1, $identity, $name, $state) unless $state == 0 && $told_gone{$identity . $name};
        next;
      }
      my $object = identity_of($statx);
      if (type_of($statx) == $S_IFDIR && !$directories{$object} && same_device($statx, $identity)) {
        $known->[1] = ++$use_counter;    # not to be forgotten for it
        look_into($known->[0], $name, 1);
      }
      my $told = $told_object{$object};
      undef $told if $names{$identity}{$name} && ($told_name{$identity . $name} // '') ne $object;
      next if defined $told && $told eq $statx;
      # A name made by link(2) has nobody who would close it.
      my $begun = $begun{$identity}{$name} // 0;
      note_writer($identity, $name, $object)
        if type_of($statx) == $S_IFREG && ($begun == 2 || $begun == 1 && size_of($statx) == 0 && links_of($statx) == 1);
      add_news(pack('C a28 n/a* C', 1, $identity, $name, 1) . attributes($known->[0], $name, $statx) . link_text($known->[0], $name, $statx));
    }
    next unless $changed{$identity};
    my $statx = $known ? sys_statx($known->[0], '') : undef;
    if (!defined $statx) { unwatch($identity); next }
    my $told = $told_object{$identity};
    add_news(pack('C', 2) . attributes($known->[0], '', $statx)) unless defined $told && $told eq $statx;
  }
  send_news();
}

# --- mounts: what is mounted over a directory or taken away from there makes its name lead to something else, and no event tells

sub look_at_mounts {
  open my $file, '<', '/proc/self/mountinfo' or return;
  my (%now, %there, %writable);
  while (defined(my $line = <$file>)) {
    my ($number, undef, $device, undef, $point, $options, @more) = split ' ', $line;
    $device = pack 'LL', split /:/, $device;
    $point =~ s/\\([0-7]{3})/chr oct $1/ge;
    $now{"$number $point"} = [$device, $point];
    $there{$device} = 1;
    $writable{$device} = 1 unless grep { /^ro(?:,|$)/ } $options, $more[-1];
  }
  close $file;
  my %closed = map { $_ => 1 } grep { !$writable{$_} } keys %there;
  my @changed = ((map { $mounts{$_} } grep { !$now{$_} } keys %mounts), map { $now{$_} } grep { !$mounts{$_} } keys %now);
  my $changed = grep { $mounted{$_} && ($read_only{$_} xor $closed{$_}) } keys %there;
  my $first = !%mounts;
  %mounts = %now;
  %mounted = %there;
  %read_only = %closed;
  return if $first;
  (%silent, %sizeless) = ();    # the number of a device that is gone is given to the next one
  for (@changed) {
    my ($device, $point) = @$_;
    for my $identity (grep { $_ ne '' } keys %directories) {
      my $path = readlink(fd_path($directories{$identity}[0])) // '';
      next unless $path eq $point || index($path, "$point/") == 0 || !$there{$device} && substr($identity, 0, 8) eq $device;
      unwatch($identity);
      close_directory($identity);
    }
    next unless $point =~ m{^(.*)/([^/]+)\z}s;
    my $above = sys_statx($AT_FDCWD, $1 eq '' ? '/' : $1) // next;
    add_news(pack 'C a28 n/a* C', 1, identity_of($above), $2, 2) if $watch_of{identity_of($above)};
  }
  add_news(pack 'C', 4) if $changed;
  send_news();
}

# --- arguments of operations, taken from the front of $$args

sub take { my ($args, $count) = @_; fail($EINVAL) if length $$args < $count; return substr $$args, 0, $count, '' }
sub number8 { unpack 'C', take($_[0], 1) }
sub number32 { unpack 'N', take($_[0], 4) }
sub number16 { unpack 'n', take($_[0], 2) }
sub number64 { unpack 'q>', take($_[0], 8) }
sub text { take($_[0], number32($_[0])) }
sub short_text { take($_[0], number16($_[0])) }

# A name in a directory: (descriptor of the directory, name).
sub place {
  my ($args) = @_;
  my ($path, $identity, $name) = (text($args), text($args), text($args));
  check_name($name);
  return (directory($path, $identity), $name);
}

# What a change left: the object, its directory, the directory that it left.
sub changed {
  my (@attributes) = @_;
  my ($present, $all) = (0, '');
  for my $i (0 .. $#attributes) {
    next unless defined $attributes[$i];
    $present |= 1 << $i;
    $all .= $attributes[$i];
  }
  return chr($present) . $all;
}

sub attributes_at {
  my ($fd, $name) = @_;
  my $statx = sys_statx($fd, $name);
  return defined $statx ? attributes($fd, $name, $statx) : undef;
}

sub made { my ($fd, $name) = @_; return changed(attributes_at($fd, $name), attributes_at($fd, '')) }

# Runs $body as somebody else creates: the new object belongs to him. Root only; undone afterwards.
sub as_creator {
  my ($args, $body) = @_;
  return $body->() unless number8($args);
  my ($new_uid, $new_gid) = (number32($args), number32($args));
  my ($header, $data) = (pack('LL', 0x20080522, 0), "\0" x 24);
  check(syscall $NR{capget}, $header, $data);
  syscall $NR{setfsgid}, 0 + $new_gid;
  syscall $NR{setfsuid}, 0 + $new_uid;
  if ($new_uid != 0) {
    # Rights of root, but what CAP_FSETID allows: a setgid bit for somebody else's group.
    my @words = unpack 'L6', $data;
    my $all = pack 'L6', $words[1] & ~(1 << 4), $words[1], $words[2], $words[4], $words[4], $words[5];
    syscall $NR{capset}, my $again = pack('LL', 0x20080522, 0), $all;
  }
  my @result = eval { $body->() };
  my $error = $@;
  syscall $NR{setfsuid}, 0 + $uid;
  syscall $NR{setfsgid}, 0 + $gid;
  syscall $NR{capset}, my $last = pack('LL', 0x20080522, 0), $data;
  die $error if $error;
  return $result[0];
}

# What makes new objects; $args begins with whom they belong to.
sub new_directory {    # its statx, watched; $$made from when it is there
  my ($args, $directory, $name, $mode, $made) = @_;
  as_creator($args, sub { check(syscall $NR{mkdirat}, 0 + $directory, "$name", 0 + $mode) });
  $$made = 1 if $made;
  return look_into($directory, $name) // sys_statx($directory, $name);
}

sub new_link {
  my ($args, $directory, $name, $target) = @_;
  fail($EINVAL) if $target =~ /\0/;
  as_creator($args, sub { check(syscall $NR{symlinkat}, "$target", 0 + $directory, "$name") });
}

sub new_file {    # a descriptor, or -1
  my ($args, $directory, $name, $mode) = @_;
  return as_creator($args, sub { sys_openat($directory, $name, $O_RDWR | $O_CREAT | $O_EXCL | $O_NOFOLLOW | $O_OURS, $mode) });
}

# --- content

sub write_all {
  my ($fd, $bytes, $offset) = @_;
  my $done = 0;
  while ($done < length $bytes) {
    my $part = substr $bytes, $done;
    my $wrote = syscall $NR{pwrite64}, 0 + $fd, $part, length $part, 0 + ($offset + $done);
    next if $wrote == -1 && $! == $EINTR;
    if ($wrote == -1 && $! == $ESPIPE) {    # some of the kernel's own files have no places
      syscall $NR{lseek}, 0 + $fd, 0 + ($offset + $done), 0;
      $wrote = syscall $NR{write}, 0 + $fd, $part, length $part;
    }
    check($wrote);
    fail($EIO) if $wrote == 0;
    $done += $wrote;
  }
}

sub set_size { my ($fd, $size) = @_; check(syscall $NR{ftruncate}, 0 + $fd, 0 + $size) }

# Space for what is about to be written over holes or beyond the end: [where, length]. When there is none, nothing was touched yet, and what was got
# beyond the end is given back.
sub reserve {
  my ($fd, $before, @ranges) = @_;
  for my $range (grep { $_->[1] > 0 } @ranges) {
    next if syscall($NR{fallocate}, 0 + $fd, $FALLOC_KEEP_SIZE, 0 + $range->[0], 0 + $range->[1]) != -1;
    my $error = 0 + $!;
    redo if $error == $EINTR;
    last if $error != $ENOSPC && $error != $EDQUOT && $error != $EFBIG;    # not known there
    my $now = sys_statx($fd, '') // fail($error);
    syscall $NR{ftruncate}, 0 + $fd, 0 + size_of($now) if blocks_of($now) > blocks_of($before) && size_of($now) == size_of($before);
    fail($error);
  }
}

# New content for a file that may have old. Space for all of it first; then what makes it longer, which can be cut off again; then what goes over
# old bytes; then zeros where the file was cut ($cut, or -1) and nothing was written. It shrinks last ($size, or -1). Returns its size.
# @$pieces: [where, length, place in the source], in order; $write gets the descriptor and a piece.
sub write_content {
  my ($fd, $statx, $cut, $size, $pieces, $write, $append_length) = @_;
  my $old = size_of($statx);
  $cut = $old if $cut < 0 || $cut > $old;
  my $end = @$pieces ? $pieces->[-1][0] + $pieces->[-1][1] : 0;
  my $final = $size >= 0 ? $size : $end > $cut ? $end : $cut;
  reserve($fd, $statx, @$pieces, [$final, $append_length]);
  my (@over, @beyond);
  for (@$pieces) {
    my ($at, $length, $place) = @$_;
    my $inside = $at >= $old ? 0 : $old - $at < $length ? $old - $at : $length;
    push @over, [$at, $inside, $place] if $inside;
    push @beyond, [$at + $inside, $length - $inside, $place + $inside] if $inside < $length;
  }
  eval {
    $write->($fd, @$_) for @beyond;
    set_size($fd, $size) if $size > $old && $size > $end;
  };
  if (my $error = $@) {
    my $now = size_of(sys_statx($fd, '') // die $error);
    syscall $NR{ftruncate}, 0 + $fd, 0 + $old if $now > $old && $now <= ($end > $final ? $end : $final);
    die $error;
  }
  $write->($fd, @$_) for @over;
  my $from = $cut;
  for (@$pieces, [$final, 0]) {
    my $to = $_->[0] < $old ? $_->[0] : $old;
    write_zeros($fd, $from, $to - $from) if $from < $to;
    $from = $_->[0] + $_->[1] if $from < $_->[0] + $_->[1];
  }
  set_size($fd, $final) if $final <= $old && ($size >= 0 || $cut < $old);
  return $final;
}

sub write_zeros {
  my ($fd, $offset, $length) = @_;
  return if syscall($NR{fallocate}, 0 + $fd, $FALLOC_PUNCH_HOLE | $FALLOC_KEEP_SIZE, 0 + $offset, 0 + $length) != -1;
  for (my $done = 0; $done < $length; $done += $CHUNK) {
    write_all($fd, "\0" x ($length - $done > $CHUNK ? $CHUNK : $length - $done), $offset + $done);
  }
}

# At the end of whatever is there then, mostly $old; a short write goes on at the then end. $bytes_from gives some of the bytes from its argument on.
# What an append that fails left is cut off again if it is all that came since: who is told of the error sends all of it once more. Else the
# error says how much of it is there (\2 and the number of bytes).
sub append_all {
  my ($fd, $old, $length, $bytes_from) = @_;
  my $flags = check(syscall $NR{fcntl}, 0 + $fd, 3, 0);
  check(syscall $NR{fcntl}, 0 + $fd, 4, $flags | $O_APPEND);
  my ($done, $error) = (0, 0);
  while ($done < $length) {
    my $part = eval { $bytes_from->($done) } // '';
    my $wrote = length $part ? syscall($NR{pwrite64}, 0 + $fd, $part, length $part, 0) : 0;    # Linux: O_APPEND wins over the offset
    $wrote = syscall $NR{write}, 0 + $fd, $part, length $part if $wrote == -1 && $! == $ESPIPE;
    next if $wrote == -1 && $! == $EINTR;
    if ($wrote <= 0) { $error = $wrote == 0 ? $EIO : 0 + $!; last }
    $done += $wrote;
  }
  syscall $NR{fcntl}, 0 + $fd, 4, 0 + $flags;
  return unless $error;
  my $now = sys_statx($fd, '');
  $done = 0 if defined $now && size_of($now) == $old + $done && syscall($NR{ftruncate}, 0 + $fd, 0 + $old) != -1;
  fail($error, $done ? "\2" . pack 'q>', $done : '');
}

sub read_some {
  my ($fd, $offset, $length) = @_;
  my $buffer = "\0" x ($length > $CHUNK ? $CHUNK : $length);
  my $got;
  do { $got = syscall $NR{pread64}, 0 + $fd, $buffer, length $buffer, 0 + $offset } while $got == -1 && $! == $EINTR;
  return substr $buffer, 0, check($got);
}

# A range from one descriptor into another inside the sandbox: bytes copied.
sub copy_range {
  my ($from, $from_offset, $to, $to_offset, $length) = @_;
  my ($done, $in_kernel) = (0, 1);
  while ($done < $length) {
    my $part = $length - $done > $CHUNK ? $CHUNK : $length - $done;
    if ($in_kernel) {
      my ($at, $there) = (pack('q', $from_offset + $done), pack('q', $to_offset + $done));
      my $copied = syscall $NR{copy_file_range}, 0 + $from, $at, 0 + $to, $there, 0 + $part, 0;
      next if $copied == -1 && $! == $EINTR;
      if ($copied > 0) { $done += $copied; next }
      # Across file systems, for special files, or where the kernel is old: by hand. 0 can also be a file without a true size.
      fail(0 + $!) if $copied == -1 && ($! == $ENOSPC || $! == $EDQUOT || $! == $EFBIG || $! == $EBADF);
      fail(0 + $!) if $copied == -1 && $! == $EINVAL && $done == 0 && overlaps($from, $from_offset, $to, $to_offset, $length);
      $in_kernel = 0;
    }
    my $bytes = read_some($from, $from_offset + $done, $part);
    last if $bytes eq '';
    write_all($to, $bytes, $to_offset + $done);
    $done += length $bytes;
  }
  return $done;
}

sub overlaps {
  my ($from, $from_offset, $to, $to_offset, $length) = @_;
  return 0 unless $from_offset < $to_offset + $length && $to_offset < $from_offset + $length;
  return identity_of(sys_statx($from, '') // '') eq identity_of(sys_statx($to, '') // '');
}

# Permissions, owner, times; size if the object is a handle or can be opened. $args: as frame.h's AttributeChange.
sub set_attributes {
  my ($fd, $statx, $handle, $args) = @_;
  my $mask = number32($args);
  my $path = fd_path($fd);
  if ($mask & 8) {
    my $size = number64($args);
    my $type = type_of($statx);
    fail($type == $S_IFDIR ? $EISDIR : $EINVAL) if $type != $S_IFREG;
    if ($handle && $handle->[1] & 2) { set_size($fd, $size) } else { check(syscall $NR{truncate}, "$path", 0 + $size) }
  }
  if ($mask & 6) {
    my $new_uid = $mask & 2 ? number32($args) : 0xffffffff;
    my $new_gid = $mask & 4 ? number32($args) : 0xffffffff;
    check(syscall $NR{fchownat}, 0 + $fd, my $empty = '', 0 + $new_uid, 0 + $new_gid, $AT_EMPTY_PATH);
  }
  if ($mask & 1) {
    my $mode = number32($args);
    fail($EOPNOTSUPP) if type_of($statx) == $S_IFLNK;
    my @raised = $mode & 0200 ? () : keep_writable(identity_of($statx));
    my $done = syscall $NR{fchmodat}, $AT_FDCWD, "$path", 0 + $mode;
    my $error = 0 + $!;
    end_writing($_) for @raised;
    fail($error) if $done == -1;
  }
  if ($mask & 0xf0) {
    my ($now, $omit) = ((1 << 30) - 1, (1 << 30) - 2);
    my @times = (0, $omit, 0, $omit);
    @times[0, 1] = (number64($args), number32($args)) if $mask & 16;
    @times[0, 1] = (0, $now) if $mask & 32;
    @times[2, 3] = (number64($args), number32($args)) if $mask & 64;
    @times[2, 3] = (0, $now) if $mask & 128;
    my $buffer = pack 'qqqq', @times;
    my $done = syscall $NR{utimensat}, $AT_FDCWD, "$path", $buffer, 0;
    # A time that only follows from a write: who may write may still not set it.
    fail(0 + $!) if $done == -1 && !($mask & 256 && ($! == $EPERM || $! == $EACCES));
  }
}

# After new content: the attributes that come with it. When they are refused, the content is there all the same, and \1 says so.
sub attributes_of_stored {
  my ($fd, $statx, $args) = @_;
  eval { set_attributes($fd, $statx, [$fd, 2], $args) };
  fail(ref $@ ? $@->{errno} : $EIO, "\1") if $@;
  return attributes_of_fd($fd);
}

# A nameless file for what is on its way: beside the target, or wherever this user may write.
sub stage_file {
  my ($near) = @_;
  my $error = $EROFS;
  for my $directory ($near >= 0 ? fd_path($near) : (), fd_path($root), $ENV{HOME} // '/', '/var/tmp', '/tmp') {
    my $fd = sys_openat($AT_FDCWD, $directory, $O_TMPFILE | $O_RDWR | $O_OURS, 0600);
    if ($fd == -1 && $! != $EACCES && $! != $EROFS && $! != $ENOENT && $! != $ENOSPC && $! != $EDQUOT) {
      # No O_TMPFILE there: a name that is taken away at once.
      my $name = "$directory/.e2bfs-stage-" . unpack('H*', $ID) . "-$$-" . ++$use_counter;
      $fd = sys_openat($AT_FDCWD, $name, $O_RDWR | $O_CREAT | $O_EXCL | $O_NOFOLLOW | $O_OURS, 0600);
      syscall $NR{unlinkat}, $AT_FDCWD, "$name", 0 if $fd != -1;
    }
    return $fd if $fd != -1;
    $error = 0 + $!;
  }
  fail($error);
}

# --- children: what can take long

# $work runs in a child and returns bytes or dies; $finish gets them here and returns the operation's result. $always is
# called at the end, whatever came of it. @uses: the descriptors that it works with.
sub in_child {
  my ($work, $finish, $always, @uses) = @_;
  pipe(my $reader, my $writer) or fail(0 + $!);
  my $parent = $$;
  my $pid = fork;
  fail(0 + $!) unless defined $pid;
  if ($pid == 0) {
    syscall $NR{prctl}, 1, 9;    # PR_SET_PDEATHSIG, SIGKILL
    leave(1) if getppid() != $parent;
    sys_close($_) for 0 .. 2;
    my %used = map { $_ => 1 } @uses;
    # What it does not write must not be busy.
    sys_close($_) for grep { !$used{$_} } keys %own_writing, map { $_->[0] } grep { $_->[1] & 2 } values %handles;
    my $said = eval { pack('N', 0) . $work->() };
    $said = ref $@ ? pack 'N a*', $@->{errno}, $@->{result} : pack 'N', $EIO if $@;
    my $done = 0;
    while ($done < length $said) {
      my $wrote = syswrite $writer, $said, length($said) - $done, $done;
      last unless defined $wrote;
      $done += $wrote;
    }
    leave(0);
  }
  close $writer;
  die {child => [$pid, $reader, $finish, $always]};
}

sub child_said {
  my ($fd) = @_;
  my $child = $children{$fd};
  my $got = sysread $child->{pipe}, $child->{said}, 65536, length $child->{said};
  return if !defined $got && ($! == $EINTR || $! == $EAGAIN);
  return if $got;
  delete $children{$fd};
  close $child->{pipe};
  waitpid $child->{pid}, 0;
  my $said = $child->{said};
  my ($error, $result) = length $said >= 4 ? unpack('N a*', $said) : ($EIO, '');
  if (!$error) {
    $telling = 1;
    $result = eval { $child->{finish}->($result) };
    $telling = 0;
    ($error, $result) = ref $@ ? ($@->{errno}, $@->{result}) : ($EIO, '') if $@;
  }
  $child->{always}->() if $child->{always};
  delete $running{$child->{number}};
  reply($child->{number}, $child->{results} . pack('NN/a*', $error, $result), $child->{count} + 1, 1);
}

# --- operations. Each gets a reference to its arguments and returns the bytes of its result, or dies with an errno.

my @OPERATIONS;

$OPERATIONS[1] = sub {    # Stat
  my ($args) = @_;
  return with_object($args, sub { my ($fd, $statx) = @_; return attributes($fd, '', $statx) });
};

$OPERATIONS[2] = sub {    # Lookup: the object, a link's text
  my ($args) = @_;
  my ($directory, $name) = place($args);
  my $statx = sys_statx($directory, $name) // fail(0 + $!);
  $statx = look_into($directory, $name) // $statx if type_of($statx) == $S_IFDIR && !$watch_of{identity_of($statx)};
  return attributes($directory, $name, $statx) . link_text($directory, $name, $statx);
};

# A directory that was found will be looked into: it is held, so that it is found wherever it is moved to, and watched from now on, unless
# $unwatched. Its statx after that.
sub look_into {
  my ($directory, $name, $unwatched) = @_;
  my $fd = sys_openat($directory, $name, $O_PATH | $O_DIRECTORY | $O_NOFOLLOW | $O_CLOEXEC);
  return undef if $fd == -1;
  my $before = sys_statx($fd, '') // do { sys_close($fd); return undef };
  $fd = keep_directory(identity_of($before), $fd, $unwatched);
  return $unwatched ? $before : sys_statx($fd, '');
}

sub link_text {
  my ($fd, $name, $statx) = @_;
  return "\0" if type_of($statx) != $S_IFLNK;
  my $buffer = "\0" x 4097;
  my $got = syscall $NR{readlinkat}, 0 + $fd, "$name", $buffer, 4097;
  return $got == -1 ? "\0" : "\1" . pack 'N/a*', substr $buffer, 0, $got;
}

# Of a directory that may be read but not searched: name -> attributes with the type and the number, which are all that can be known.
sub types_in {
  my ($directory) = @_;
  my $device = substr sys_statx($directory, '') // fail(0 + $!), 136, 8;
  my $fd = check(sys_openat($AT_FDCWD, fd_path($directory), $O_DIRECTORY | $O_CLOEXEC));
  my %found;
  while (1) {
    my $buffer = "\0" x 65536;
    my $got = syscall $NR{getdents64}, 0 + $fd, $buffer, 65536;
    last if $got == -1 || $got == 0;
    for (my $at = 0; $at + 19 <= $got;) {
      my ($number, $length, $type) = unpack 'Q x8 S C', substr $buffer, $at, 19;
      my $name = unpack 'Z*', substr $buffer, $at + 19, $length - 19;
      my $statx = pack 'x28 S x2 Q x96 a8', ($type || 8) << 12, $number, $device;
      $found{$name} = $statx . "\x10";
      $at += $length;
    }
  }
  sys_close($fd);
  return \%found;
}

# List: the directory, then the entries, in as many replies as it takes. Not a plain result: see answer().
sub list_directory {
  my ($args, $emit) = @_;
  my ($path, $identity) = (text($args), text($args));
  my $directory = directory($path, $identity);
  opendir(my $stream, fd_path($directory)) or fail(0 + $!);
  my $piece = attributes_of_fd($directory);
  my $piece_device = substr $piece, 136, 8;
  my $count = 0;
  my ($entries, $held, $unsearched) = ('', 0);
  local $! = 0;
  while (defined(my $name = readdir $stream)) {
    next if $name eq '.' || $name eq '..';
    my $statx = sys_statx($directory, $name);
    if (defined $statx) {
      look_into($directory, $name, 1)
        if type_of($statx) == $S_IFDIR && same_device($statx, $piece_device) && $held++ < $HELD_OF_LISTING && !$directories{identity_of($statx)};
      $entries .= pack('n/a*', $name) . attributes($directory, $name, $statx) . link_text($directory, $name, $statx);
    } elsif ($! == $ENOENT) {
      next;    # gone meanwhile
    } elsif ($! == $EBADF) {
      fail($EIO);
    } else {    # it may be listed, but not searched (EACCES); or what is there does not answer
      $unsearched //= types_in($directory);
      $entries .= pack('n/a*', $name) . ($unsearched->{$name} // next) . "\0";
    }
    ++$count;
    next if length $entries < $MAX_READ;
    $emit->($piece . pack('N', $count) . $entries);
    ($piece, $count, $entries) = ('', 0, '');
  }
  closedir $stream;
  return ($piece, $count, $entries);
}

$OPERATIONS[4] = sub {    # ReadLink
  my ($args) = @_;
  return with_object($args, sub {
    my ($fd, $statx) = @_;
    fail($EINVAL) if type_of($statx) != $S_IFLNK;
    my $buffer = "\0" x 4097;
    my $got = check(syscall $NR{readlinkat}, 0 + $fd, my $empty = '', $buffer, 4097);
    return substr $buffer, 0, $got;
  });
};

$OPERATIONS[5] = sub {    # StatFs
  my $buffer = "\0" x 256;
  check(syscall $NR{fstatfs}, 0 + $root, $buffer);
  return substr $buffer, 0, 88;
};

$OPERATIONS[6] = sub {    # MakeDirectory
  my ($args) = @_;
  my ($directory, $name) = place($args);
  my $mode = number32($args);
  my $statx = new_directory($args, $directory, $name, $mode);
  return changed(defined $statx ? attributes($directory, $name, $statx) : undef, attributes_at($directory, ''));
};

$OPERATIONS[7] = sub {    # MakeNode
  my ($args) = @_;
  my ($directory, $name) = place($args);
  my ($mode, $major, $minor) = (number32($args), number32($args), number32($args));
  my $device = ($minor & 0xff) | (($major & 0xfff) << 8) | (($minor & ~0xff) << 12) | (($major & ~0xfff) << 32);
  as_creator($args, sub { check(syscall $NR{mknodat}, 0 + $directory, "$name", 0 + $mode, 0 + $device) });
  return made($directory, $name);
};

$OPERATIONS[8] = sub {    # MakeSymlink
  my ($args) = @_;
  my ($directory, $name) = place($args);
  my $target = text($args);
  new_link($args, $directory, $name, $target);
  return made($directory, $name);
};

$OPERATIONS[9] = sub {    # MakeLink
  my ($args) = @_;
  return with_object($args, sub {
    my ($fd, $statx) = @_;
    my ($directory, $name) = place($args);
    fail($EPERM) if type_of($statx) == $S_IFDIR;
    check(syscall $NR{linkat}, $AT_FDCWD, my $from = fd_path($fd), 0 + $directory, "$name", $AT_FOLLOW);
    return made($directory, $name);
  });
};

# What is about to lose its name: an O_PATH descriptor, or -1 where nothing is there.
sub hold { my ($directory, $name) = @_; return sys_openat($directory, $name, $O_PATH | $O_NOFOLLOW | $O_CLOEXEC) }

# Its attributes now, with the links that it still has; the descriptor is closed.
sub let_go {
  my ($fd) = @_;
  return undef if $fd == -1;
  my $attributes = attributes_at($fd, '');
  sys_close($fd);
  return $attributes;
}

$OPERATIONS[10] = sub {    # Unlink: never a directory
  my ($args) = @_;
  my ($directory, $name) = place($args);
  my $held = hold($directory, $name);
  if (syscall($NR{unlinkat}, 0 + $directory, "$name", 0) == -1) {
    my $error = 0 + $!;
    sys_close($held) if $held != -1;
    fail($error);
  }
  told_gone($directory, $name);
  return changed(let_go($held), attributes_at($directory, ''));
};

$OPERATIONS[11] = sub {    # RemoveDirectory
  my ($args) = @_;
  my ($directory, $name) = place($args);
  my $held = hold($directory, $name);
  if (syscall($NR{unlinkat}, 0 + $directory, "$name", $AT_REMOVEDIR) == -1) {
    my $error = 0 + $!;
    sys_close($held) if $held != -1;
    fail($error);
  }
  told_gone($directory, $name);
  my $statx = $held == -1 ? undef : sys_statx($held, '');
  my $object = let_go($held);
  close_directory(identity_of($statx)) if defined $statx;
  return changed($object, attributes_at($directory, ''));
};

$OPERATIONS[12] = sub {    # Rename: what was moved, both directories, what had the new name
  my ($args) = @_;
  my ($from_directory, $from) = place($args);
  my ($to_directory, $to) = place($args);
  my $flags = number32($args);
  my $held = hold($to_directory, $to);
  if (syscall($NR{renameat2}, 0 + $from_directory, "$from", 0 + $to_directory, "$to", 0 + $flags) == -1) {
    my $error = 0 + $!;
    sys_close($held) if $held != -1;
    fail($error);
  }
  told_gone($from_directory, $from) unless $flags & 2;
  my $statx = $held == -1 ? undef : sys_statx($held, '');
  my $replaced = let_go($held);
  close_directory(identity_of($statx)) if defined $statx && !($flags & 2) && type_of($statx) == $S_IFDIR;
  return changed(attributes_at($to_directory, $to), attributes_at($to_directory, ''),
    $from_directory != $to_directory ? attributes_at($from_directory, '') : undef, $replaced);
};

$OPERATIONS[13] = sub {    # SetAttributes
  my ($args) = @_;
  return with_object($args, sub {
    my ($fd, $statx, $handle) = @_;
    set_attributes($fd, $statx, $handle, $args);
    return attributes_of_fd($fd);
  });
};

$OPERATIONS[14] = sub {    # GetXattr
  my ($args) = @_;
  return with_object($args, sub {
    my ($fd) = @_;
    my $name = text($args);
    my $buffer = "\0" x 65536;
    my $got = check(syscall $NR{getxattr}, my $path = fd_path($fd), "$name", $buffer, 65536);
    return substr $buffer, 0, $got;
  });
};

$OPERATIONS[15] = sub {    # ListXattrs
  my ($args) = @_;
  return with_object($args, sub { my ($fd) = @_; return list_xattrs(fd_path($fd)) // fail(0 + $!) });
};

$OPERATIONS[16] = sub {    # SetXattr
  my ($args) = @_;
  return with_object($args, sub {
    my ($fd) = @_;
    my ($name, $value, $flags) = (text($args), text($args), number32($args));
    check(syscall $NR{setxattr}, my $path = fd_path($fd), "$name", "$value", length $value, 0 + $flags);
    return attributes_of_fd($fd);
  });
};

$OPERATIONS[17] = sub {    # RemoveXattr
  my ($args) = @_;
  return with_object($args, sub {
    my ($fd) = @_;
    my $name = text($args);
    check(syscall $NR{removexattr}, my $path = fd_path($fd), "$name");
    return attributes_of_fd($fd);
  });
};

$OPERATIONS[18] = sub {    # Open: the attributes, the descriptor
  my ($args) = @_;
  my ($number, $flags) = (number64($args), number8($args));
  my ($path, $identity, $parent) = (text($args), text($args), text($args));
  my ($old_pid, $old_fd) = (number32($args), number32($args));
  my ($fd, $statx);
  # A handle of a server that is gone or stuck: the very file, if it can still be had from there.
  if ($old_pid) {
    $fd = sys_openat($AT_FDCWD, "/proc/$old_pid/fd/$old_fd", $O_PATH | $O_CLOEXEC);
    $statx = sys_statx($fd, '') if $fd != -1;
    if ($fd != -1 && (!defined $statx || identity_of($statx) ne $identity)) {
      sys_close($fd);
      $fd = -1;
    }
  }
  ($fd, $statx) = node($path, $identity, $parent) if !defined $fd || $fd == -1;
  my $mode = $flags & 2 ? ($flags & 1 ? $O_RDWR : $O_WRONLY) : $O_RDONLY;
  my $rights = $flags & 3;
  my $opened = eval { open_object($fd, $statx, $mode) };
  my $error = $@;
  # Its writing had ended, and the file runs now.
  ($opened, $rights) = (eval { open_object($fd, $statx, $O_RDONLY) }, 1) if $error && $old_pid && $rights == 3;
  sys_close($fd);
  die $error unless defined $opened;
  set_size($opened, 0) if $flags & 4;
  keep_handle($number, $opened, $rights);
  $handles{$number}[2] = $flags & 3;
  end_writing($handles{$number}) if $old_pid;
  return pack('NN', $opened, $flags & 3) . attributes_of_fd($opened);
};

$OPERATIONS[19] = sub {    # Create: exclusively, or what is there as far as it may be used
  my ($args) = @_;
  my ($number, $flags) = (number64($args), number8($args));
  my ($directory, $name) = place($args);
  my $mode = number32($args);
  my $fd = new_file($args, $directory, $name, $mode);
  my ($created, $rights) = (1, 3);
  if ($fd == -1) {
    fail(0 + $!) if $! != $EEXIST || $flags & 1;
    $created = 0;
    my $there = check(sys_openat($directory, $name, $O_PATH | $O_NOFOLLOW | $O_CLOEXEC));
    my $statx = sys_statx($there, '');
    my $error = {errno => $EACCES};
    for my $try ([3, $O_RDWR], [2, $O_WRONLY], [1, $O_RDONLY]) {
      $fd = eval { open_object($there, $statx, $try->[1]) } // -1;
      $error = $@ if $fd == -1;
      $rights = $try->[0];
      last if $fd != -1 || !ref $error || $error->{errno} != $EACCES;
    }
    sys_close($there);
    die $error if $fd == -1;
  } else {
    $fd = high_fd($fd);
  }
  keep_handle($number, $fd, $rights);
  my $attributes = attributes_of_fd($fd);
  $told_name{($descriptor_identity{$directory} // '') . $name} = identity_of($attributes) if $created;
  return pack('NNC', $fd, $rights, $created) . $attributes . (attributes_at($directory, '') // fail($EIO));
};

$OPERATIONS[20] = sub {    # Read: bytes, the attributes after them
  my ($args) = @_;
  return with_object($args, sub {
    my ($fd, $statx, $handle) = @_;
    my ($offset, $length) = (number64($args), number32($args));
    $length = $MAX_READ if $length > $MAX_READ;
    my $own = -1;
    $fd = $own = open_object($fd, $statx, $O_RDONLY) unless $handle;
    my $buffer = "\0" x ($length || 1);
    my $got = 0;
    my $error = 0;
    # /proc gives less than asked for although more is there.
    while ($got < $length) {
      my $part = "\0" x ($length - $got);
      my $now = syscall $NR{pread64}, 0 + $fd, $part, length $part, 0 + ($offset + $got);
      next if $now == -1 && $! == $EINTR;
      $error = 0 + $! if $now == -1;
      last if $now <= 0;
      if ($now == $length) { $buffer = $part } else { substr $buffer, $got, $now, substr $part, 0, $now }
      $got += $now;
    }
    my $after = $error && !$got ? undef : eval { attributes_of_fd($fd) };
    sys_close($own) if $own != -1;
    fail($error || $EIO) unless defined $after;
    return $after . substr $buffer, 0, $got;
  });
};

# What Store and Commit do once they know what: by handle, or opened for it. By a child if it takes long. $last: the handle's writing ends with it.
# $stage: the handle of the pieces' source, closed at the end.
sub store {
  my ($object, $last, $cut, $size, $pieces, $write, $append_length, $bytes_from, $attributes, $stage) = @_;
  my ($fd, $statx, $handle) = @$object;
  my $own = -1;
  fail($EPERM) if appends_only($statx) && (@$pieces || $cut >= 0 || $size >= 0);    # its descriptor writes at the end, wherever it is told to
  $own_writing{$fd = $own = open_object($fd, $statx, $O_WRONLY)} = 1 unless $handle && $handle->[1] & 2;
  my $work = sub {
    my $end = write_content($fd, $statx, $cut, $size, $pieces, $write, $append_length);
    append_all($fd, $end, $append_length, $bytes_from) if $append_length;
    return '';
  };
  my $finish = sub {
    my $stored = attributes_of_stored($fd, $statx, \$attributes);
    end_writing($handle) if $last && $handle;
    return $stored;
  };
  my $close = sub {
    close_own($own) if $own != -1;
    close_handle($stage) if defined $stage;
  };
  my $bytes = $append_length;
  $bytes += $_->[1] for @$pieces;
  my $kept = $size >= 0 && $size < size_of($statx) ? $size : size_of($statx);
  $bytes += $kept - $cut if $cut >= 0 && $cut < $kept;    # for zeros
  in_child($work, $finish, $close, $fd, defined $stage ? $handles{$stage}[0] : ()) if $bytes > $INLINE_COPY;
  my $result = eval { $work->(); $finish->() };
  my $error = $@;
  $close->();
  die $error if $error;
  return $result;
}

$OPERATIONS[21] = sub {    # Store: whether it is the last, cut, extents, size, append, attributes
  my ($args) = @_;
  return with_object($args, sub {
    my ($last, $cut, $size, $count) = (number8($args), number64($args), number64($args), number32($args));
    my ($bytes, @pieces) = ('');
    for (1 .. $count) {
      my ($at, $text) = (number64($args), text($args));
      push @pieces, [$at, length $text, length $bytes];
      $bytes .= $text;
    }
    my $append = text($args);
    my $write = sub { my ($fd, $at, $length, $place) = @_; write_all($fd, substr($bytes, $place, $length), $at) };
    return store(\@_, $last, $cut, $size, \@pieces, $write, length $append, sub { substr $append, $_[0] }, $$args);
  });
};

$OPERATIONS[22] = sub {    # Stage: a nameless file to be filled by the files API
  my ($args) = @_;
  my ($number, $path, $identity) = (number64($args), text($args), text($args));
  my $near = eval { directory($path, $identity) } // -1;
  my $fd = high_fd(stage_file($near));
  keep_handle($number, $fd, 3);
  return pack 'N', $fd;
};

# StageInto: the file itself, to be filled by the files API, since it has nothing to lose, but what an earlier try left ($again). EOPNOTSUPP: where envd,
# which gives the file to the user, would change more than its content, or where Unwritten could not be told.
$OPERATIONS[31] = sub {
  my ($args) = @_;
  my ($number, $again) = (number64($args), number8($args));
  return with_object($args, sub {
    my ($fd, $statx) = @_;
    my ($owner, $group, $mode) = unpack 'x20 L L S', $statx;
    my $may = $owner == $uid && $group == $gid && !($mode & 06000) && ($again || size_of($statx) == 0) && may_write($fd);
    fail($EOPNOTSUPP) unless $may;
    my $own = open_object($fd, $statx, $O_RDWR);
    if (syscall($NR{fcntl}, 0 + $own, $F_SETLEASE, 0) != -1 || $! != $EAGAIN) {    # a file open for writing gives no read lease
      sys_close($own);
      fail($EOPNOTSUPP);
    }
    keep_handle($number, $own, 3);
    return pack 'N', $own;
  });
};

$OPERATIONS[32] = sub {    # Unwritten: 1 if nobody has it open for writing but by our handles, else 0
  my ($args) = @_;
  return with_object($args, sub {
    my ($fd, $statx) = @_;
    my $reading = open_object($fd, $statx, $O_RDONLY);
    my $identity = identity_of($statx);
    my @ours = grep { $_->[1] & 2 && identity_of(sys_statx($_->[0], '') // '') eq $identity } values %handles;
    if (@ours && !may_write($fd)) {    # they would not get the right again
      sys_close($reading);
      return "\0";
    }
    my @rights = map { $_->[1] } @ours;
    change_rights($_, $_->[1] & 1) for @ours;
    my $alone = syscall($NR{fcntl}, 0 + $reading, $F_SETLEASE, 0) != -1;    # given if nobody has
    syscall $NR{fcntl}, 0 + $reading, $F_SETLEASE, 2;
    sys_close($reading);
    change_rights($ours[$_], $rights[$_]) for 0 .. $#ours;
    return chr $alone;
  });
};

$OPERATIONS[23] = sub {    # Commit: what was staged goes into the file; the stage is gone afterwards
  my ($args) = @_;
  my ($stage, $expected) = (number64($args), number64($args));
  my $staged = $handles{$stage} or fail($EBADF);
  fail($ENODEV) if size_of(sys_statx($staged->[0], '') // fail(0 + $!)) != $expected;    # arrived torn
  return with_object($args, sub {
    my ($last, $cut, $size, $count) = (number8($args), number64($args), number64($args), number32($args));
    my @pieces;    # where, length, place in the stage
    if ($count == 0xffffffff) {    # many: their table is in the stage
      my ($table_at, $rows) = (number64($args), number32($args));
      my $table = "\0" x (24 * $rows);
      fail($EIO) if check(syscall $NR{pread64}, 0 + $staged->[0], $table, length $table, 0 + $table_at) != length $table;
      @pieces = map { [unpack 'q>q>q>', substr $table, 24 * $_, 24] } 0 .. $rows - 1;
    } else {
      @pieces = map { [number64($args), number64($args), number64($args)] } 1 .. $count;
    }
    my ($append, $append_place) = (number64($args), number64($args));
    my (undef, $statx) = @_;
    ($cut, @pieces) = (-1) if identity_of($statx) eq identity_of(sys_statx($staged->[0], ''));    # it is all there
    my $write = sub {
      my ($fd, $at, $length, $place) = @_;
      fail($EIO) if copy_range($staged->[0], $place, $fd, $at, $length) != $length;
    };
    my $bytes_from = sub { read_some($staged->[0], $append_place + $_[0], $append - $_[0]) };
    return store(\@_, $last, $cut, $size, \@pieces, $write, $append, $bytes_from, $$args, $stage);
  });
};

$OPERATIONS[24] = sub {    # Sync
  my ($args) = @_;
  return with_object($args, sub {
    my ($fd, $statx, $handle) = @_;
    my $own = -1;
    $fd = $own = open_object($fd, $statx, $O_RDONLY) unless $handle;
    in_child(sub { check(syscall $NR{fsync}, 0 + $fd); return '' }, sub { return '' }, sub { sys_close($own) if $own != -1 }, $fd);
  });
};

$OPERATIONS[25] = sub { my ($args) = @_; close_handle(number64($args)); return '' };    # Close

$OPERATIONS[26] = sub {    # Seek
  my ($args) = @_;
  return with_object($args, sub {
    my ($fd, $statx, $handle) = @_;
    my ($offset, $whence) = (number64($args), number8($args));
    my $own = -1;
    $fd = $own = open_object($fd, $statx, $O_RDONLY) unless $handle;
    my $found = syscall $NR{lseek}, 0 + $fd, 0 + $offset, 0 + $whence;
    my $error = 0 + $!;
    sys_close($own) if $own != -1;
    fail($error) if $found == -1;
    return pack 'q>', $found;
  });
};

$OPERATIONS[27] = sub {    # Allocate
  my ($args) = @_;
  return with_object($args, sub {
    my ($fd, $statx, $handle) = @_;
    my ($mode, $offset, $length) = (number32($args), number64($args), number64($args));
    my $own = -1;
    $fd = $own = open_object($fd, $statx, $O_RDWR) unless $handle && $handle->[1] & 2;
    my $done = syscall $NR{fallocate}, 0 + $fd, 0 + $mode, 0 + $offset, 0 + $length;
    my $error = 0 + $!;
    my $result = $done == -1 ? '' : attributes_of_fd($fd);
    sys_close($own) if $own != -1;
    fail($error) if $done == -1;
    return $result;
  });
};

$OPERATIONS[28] = sub {    # CopyRange: bytes copied, the target's attributes
  my ($args) = @_;
  return with_object($args, sub {
    my ($source, $source_statx, $source_handle) = @_;
    my $from_offset = number64($args);
    return with_object($args, sub {
      my ($target, $target_statx, $target_handle) = @_;
      my ($to_offset, $length) = (number64($args), number64($args));
      my @own;
      my $close = sub { close_own($_) for splice @own };
      my $result = eval {
        push @own, $source = open_object($source, $source_statx, $O_RDONLY) unless $source_handle;
        $own_writing{$target = open_object($target, $target_statx, $O_WRONLY)} = 1, push @own, $target unless $target_handle && $target_handle->[1] & 2;
        fail($EINVAL) if overlaps($source, $from_offset, $target, $to_offset, $length);
        my $left = size_of(sys_statx($source, '') // fail(0 + $!)) - $from_offset;
        $length = $left < 0 ? 0 : $left if $left < $length;
        my $copy = sub { return pack 'q>', copy_range($source, $from_offset, $target, $to_offset, $length) };
        my $finish = sub { return $_[0] . attributes_of_fd($target) };
        in_child($copy, $finish, $close, $source, $target) if $length > $INLINE_COPY;
        $finish->($copy->());
      };
      my $error = $@;
      $close->() unless ref $error && $error->{child};
      die $error if $error;
      return $result;
    });
  });
};

$OPERATIONS[29] = sub {    # Initialize: where the mount begins, and who we are
  my ($args) = @_;
  my ($wanted, $limit) = (text($args), number32($args));
  $silence = $limit if $limit;
  fail($EINVAL) if $wanted =~ /\0/;
  my $home = $ENV{HOME};
  $home = (getpwuid $>)[7] unless defined $home && $home =~ m{^/};
  $home = '/' unless defined $home;
  my $path = $wanted eq '' ? $home : $wanted =~ m{^/} ? $wanted : "$home/$wanted";
  $root = check(sys_openat($AT_FDCWD, $path, $O_PATH | $O_DIRECTORY | $O_CLOEXEC));
  fail($EACCES) if syscall($NR{faccessat}, $AT_FDCWD, my $itself = fd_path($root), 1) == -1;
  $root_path = readlink(fd_path($root)) // fail(0 + $!);
  my $statx = sys_statx($root, '') // fail(0 + $!);
  $directories{''} = [$root, 0, identity_of($statx)];
  $descriptor_identity{$root} = identity_of($statx);
  begin_watching();
  open $mount_table, '<', '/proc/self/mountinfo' or undef $mount_table;    # polled
  look_at_mounts();
  watch(identity_of($statx), $root);
  my $limits = "\0" x 16;
  if (syscall($NR{prlimit64}, 0, 7, 0, $limits) == 0) {    # RLIMIT_NOFILE: as many as may be
    my ($soft, $hard) = unpack 'QQ', $limits;
    $hard = 1 << 20 if $hard > 1 << 20;
    my $raised = pack 'QQ', $hard, (unpack 'QQ', $limits)[1];
    syscall $NR{prlimit64}, 0, 7, $raised, 0;
    $max_fd = $hard;
    $MAX_DIRECTORIES = int($max_fd / 4) if $MAX_DIRECTORIES > $max_fd / 4;
    $HELD_OF_LISTING = int($MAX_DIRECTORIES / 4) if $HELD_OF_LISTING > $MAX_DIRECTORIES / 4;
  }
  my @groups = split / /, $);
  my $name = (getpwuid $>)[0] // $>;
  my $perl = sprintf '%vd', $^V;
  return pack('NNN', $$, $uid, $gid) . pack('N/(N)', map { 0 + $_ } @groups) .
    pack('N/a* N/a* N/a* N/a* q>', $name, $home, $root_path, $perl, time) . attributes_of_fd($root);
};

$OPERATIONS[30] = sub {    # EndWriting
  my ($args) = @_;
  my $handle = $handles{number64($args)};
  end_writing($handle) if $handle;
  return '';
};

# ListDeep: several directories below one, and those in them to a depth; in steps. Each directory comes in parts: its path below that one, the number
# of the part, whether it is the last, with the first the directory's attributes, then entries. The first directory is wanted, and listed as List does;
# the others are guesses, and left out for any reason: no guess reaches into another file system, or into one that may not answer.
$OPERATIONS[33] = sub {
  my ($args) = @_;
  my ($path, $identity, $depth, $most, $entries_left) = (text($args), text($args), number8($args), number32($args), number32($args));
  my @queue = map { [short_text($args), $depth] } 1 .. number16($args);
  fail($EINVAL) unless @queue && $most;
  my $base = check(syscall $NR{fcntl}, 0 + directory($path, $identity), 1030, 0);    # F_DUPFD_CLOEXEC: ours, whatever is forgotten meanwhile
  my $statx = sys_statx($base, '') // do { my $error = 0 + $!; sys_close($base); fail($error) };
  my $device = substr $statx, 136, 8;
  $#queue = 0 if is_silent(identity_of($statx), $base) || !$openat2_works;    # a guess must not wait for anybody
  my ($wanted, $at) = (1);
  my $step = sub {
    my $until = seconds() + $STEP_TIME;
    my $piece = '';
    while (1) {
      if (!$at) {
        last unless @queue && $most > 0;
        my $next = shift @queue;
        $at = eval { begin_listing($base, $device, $next, $wanted, $entries_left) };
        die $@ if $@ && !ref $@;
        $wanted = 0;
        next unless $at;
        --$most;
        $entries_left -= @{$at->{names}} unless $at->{wanted};
      }
      my $ended = list_some($at, $until);
      if (!defined $ended) {
        end_listing($at);
        undef $at;
        next;
      }
      $piece .= pack('n/a* N C', $at->{path}, $at->{part}, $ended) . ($at->{part} ? '' : $at->{attributes}) . pack('N', $at->{count}) . $at->{entries}
        if $ended || $at->{count};
      ++$at->{part} if $at->{count};
      @$at{'count', 'entries'} = (0, '');
      if ($ended) {
        end_listing($at);
        unshift @queue, map { ["$at->{prefix}$_->[0]", $at->{depth} - 1, $_->[1]] } @{$at->{directories}} if $at->{depth} > 0;
        undef $at;
      }
      return (1, $piece) if length $piece >= $MAX_READ || seconds() >= $until;
    }
    return (0, $piece);
  };
  die {job => [$step, sub { end_listing($at) if $at; sys_close($base) }]};
};

# A directory that is about to be listed: watched, then its attributes, then its names. Undef, or dies, where it cannot or should not be.
sub begin_listing {
  my ($base, $device, $next, $wanted, $entries_left) = @_;
  my ($path, $depth, $expected) = @$next;
  my $fd = open_below($path, $O_PATH | $O_DIRECTORY | $O_NOFOLLOW, $base);    # what is mounted there is asked for by List
  my $statx = sys_statx($fd, '');
  my $identity = defined $statx ? identity_of($statx) : '';
  if (!defined $statx || defined $expected && $expected ne $identity || !$wanted && (substr($statx, 136, 8) ne $device || is_silent($identity, $fd))) {
    sys_close($fd);
    return undef;
  }
  # Guesses take nothing away from what was asked for.
  my $own = !$wanted && !$directories{$identity} && keys %directories >= $MAX_DIRECTORIES / 2;
  $fd = keep_directory($identity, $fd, 1) unless $own;
  watch($identity, $fd) if $wanted || $watch_of{$identity} || keys %watch_of < $watch_limit / 2;
  my $copy = $own ? $fd : syscall $NR{fcntl}, 0 + $fd, 1030, 0;    # what is held may be forgotten between two steps
  return undef if $copy == -1;
  my $at = {path => $path, prefix => $path eq '' ? '' : "$path/", depth => $depth, wanted => $wanted, fd => $copy, device => substr($statx, 136, 8),
    part => 0, count => 0, entries => '', directories => [], held => 0};
  my $begun = eval {
    opendir(my $stream, fd_path($copy)) or fail(0 + $!);
    $at->{attributes} = attributes_of_fd($copy);
    my $most = $MAX_GUESSED < $entries_left ? $MAX_GUESSED : $entries_left;
    my @names;
    while (defined(my $name = readdir $stream)) {
      next if $name eq '.' || $name eq '..';
      push @names, $name;
      fail($EFBIG) if !$wanted && @names > $most;
    }
    closedir $stream;
    $at->{names} = [sort @names];
    1;
  };
  return $at if $begun;
  end_listing($at);
  return undef;
}

sub end_listing { sys_close($_[0]{fd}) }

# Entries until the time is over or a piece is full: whether those were all. Undef: a guess that cannot be known whole.
sub list_some {
  my ($at, $until) = @_;
  my $directory = $at->{fd};
  while (defined(my $name = $at->{names}[$at->{next} // 0])) {
    ++$at->{next};
    my $statx = sys_statx($directory, $name, !$at->{wanted});
    if (defined $statx) {
      if (type_of($statx) == $S_IFDIR) {
        return undef if !$at->{wanted} && !same_device($statx, $at->{device});    # even its attributes may have to be waited for
        push @{$at->{directories}}, [$name, identity_of($statx)] if $at->{depth} > 0;
        look_into($directory, $name, 1)
          if $at->{wanted} && same_device($statx, $at->{device}) && $at->{held}++ < $HELD_OF_LISTING && !$directories{identity_of($statx)};
      }
      $at->{entries} .= pack('n/a*', $name) . attributes($directory, $name, $statx) . link_text($directory, $name, $statx);
    } elsif ($! == $ENOENT) {
      next;    # gone meanwhile
    } elsif (!$at->{wanted} || $! == $EBADF) {
      return undef;
    } else {    # as in List
      $at->{unsearched} //= types_in($directory);
      $at->{entries} .= pack('n/a*', $name) . ($at->{unsearched}{$name} // next) . "\0";
    }
    ++$at->{count};
    return 0 if length $at->{entries} >= $MAX_READ || ($at->{count} & 63) == 0 && seconds() >= $until;
  }
  return 1;
}

# ReadFiles: the content of several small files, which have a size that the client knows; in steps. Each comes with the number that it has in the
# request and its attributes after it was read. Left out: what is no regular file, has another size, or changes.
$OPERATIONS[34] = sub {
  my ($args) = @_;
  my ($number, @files) = (0);
  for (1 .. number16($args)) {
    my ($path, $identity) = (text($args), text($args));
    push @files, [$number++, $path, $identity, short_text($args), number32($args)] for 1 .. number16($args);
  }
  my $step = sub {
    my $until = seconds() + $STEP_TIME;
    my $piece = '';
    while (my $file = shift @files) {
      my ($number, $path, $identity, $name, $size) = @$file;
      my $content = eval { check_name($name); read_whole(directory($path, $identity), $name, $size) };
      die $@ if $@ && !ref $@;
      $piece .= pack('N', $number) . $content if defined $content;
      return (1, $piece) if length $piece >= $MAX_READ / 2 || seconds() >= $until;
    }
    return (0, $piece);
  };
  die {job => [$step, sub { }]};
};

# The attributes and the content of a file that stays the same, or undef.
sub read_whole {
  my ($directory, $name, $size) = @_;
  return undef if $size > $MAX_READ;
  my $fd = sys_openat($directory, $name, $O_PATH | $O_NOFOLLOW | $O_CLOEXEC);
  return undef if $fd == -1;
  my $statx = sys_statx($fd, '');
  my $good = defined $statx && type_of($statx) == $S_IFREG && size_of($statx) == $size;
  my $open = $good ? sys_openat($AT_FDCWD, fd_path($fd), $O_RDONLY | $O_OURS) : -1;
  sys_close($fd);
  return undef if $open == -1;
  my $content = '';
  while (length $content < $size) {
    my $part = "\0" x ($size - length $content);
    my $got = syscall $NR{pread64}, 0 + $open, $part, length $part, 0 + length $content;
    next if $got == -1 && $! == $EINTR;
    last if $got <= 0;
    $content .= substr $part, 0, $got;
  }
  my $after = sys_statx($open, '');
  my $same = defined $after && length $content == $size && without_atime($after) eq without_atime($statx);
  my $result = $same ? attributes($open, '', $after) . pack('N/a*', $content) : undef;
  sys_close($open);
  return $result;
}

# MakeObjects: a row of new objects, in the request or in a stage; in their order, and in steps. The row: the directories that are there (path and
# identity), then of each object, as a text: type (1 a file, 2 a directory, 3 a link), whether the directory that it goes into is of the row, the number of
# that, name, permissions, content or text, owner, attributes. The answer: of each object an errno, whether it was made (0, 1, 2: something of it may be
# there), and its attributes; then of each directory that was there whether it is, and its attributes. All of it as it is when the answer goes out, as that of any change.
$OPERATIONS[35] = sub {
  my ($args) = @_;
  my ($stage, $expected) = (number64($args), number64($args));
  my $row = $stage ? take_stage($stage, $expected) : $$args;
  my @old = map { [text(\$row), text(\$row)] } 1 .. number16(\$row);
  my @records = map { text(\$row) } 1 .. number16(\$row);
  fail($EINVAL) if length $row || !@records;
  my (@made, @left);
  my @old_now = map { {old => $_} } @old;
  my $step = sub {
    my $until = seconds() + $STEP_TIME;
    my %touched;    # directories, by identity
    while (@made < @records) {
      push @made, make_new(\$records[@made], \@old, \@made, \%touched);
      $records[$#made] = '';
      # The attributes of directories come last, since they may forbid to look into them; what is in one comes after it in the row.
      @left = ((grep { defined $_->{statx} && !$_->{place} } @made), (grep { $_->{place} } reverse @made), @old_now) if @made == @records;
      last if seconds() >= $until;
    }
    for (values %touched) {    # the news until the next step
      my $directory = eval { directory(@$_) } // next;
      my $statx = sys_statx($directory, '') // next;
      note_told($directory, '', identity_of($statx), $statx);
    }
    while (@left && seconds() < $until) { finish_new(shift @left) }
    return (1) if @made < @records || @left;
    look_again($_) for @made, @old_now;
    return (0, row_made(\@made, \@old_now));
  };
  die {job => [$step, sub { }]};
};

# All of a stage, which is closed.
sub take_stage {
  my ($number, $expected) = @_;
  my $handle = $handles{$number} or fail($EBADF);
  my $fd = $handle->[0];
  my $bytes = '';
  my $size = size_of(sys_statx($fd, '') // fail(0 + $!));
  fail($ENODEV) if $size != $expected;    # arrived torn
  while (length $bytes < $size) {
    my $part = read_some($fd, length $bytes, $size - length $bytes);
    fail($EIO) if $part eq '';
    $bytes .= $part;
  }
  close_handle($number);
  return $bytes;
}

# One object of a row: errno, maybe (something of it may be there all the same), and of what was made: in (its directory, as directory() takes it), name,
# statx, of a directory also place (as in) and attributes, which are still to be set.
sub make_new {
  my ($record, $old, $made, $touched) = @_;
  my $new = {errno => 0};
  eval {
    my ($type, $inside, $number, $name) = (number8($record), number8($record), number16($record), short_text($record));
    my ($mode, $content) = (number32($record), text($record));
    my $in = ($inside ? ($made->[$number] // {})->{place} : $old->[$number]) // fail($ENOENT);
    check_name($name);
    my $directory = directory(@$in);
    $in->[1] = $descriptor_identity{$directory};
    if ($type == 1) {
      my $fd = check(new_file($record, $directory, $name, $mode));
      $new->{maybe} = 1;
      eval { fill_new($fd, $directory, $name, $content, $record, $new) };
      my $error = $@;
      sys_close($fd);
      die $error if $error;
    } elsif ($type == 2) {
      my $statx = new_directory($record, $directory, $name, $mode, \$new->{maybe}) // fail(0 + $!);
      replaced($new) if type_of($statx) != $S_IFDIR;
      $new->{statx} = $statx;
      $new->{place} = [$in->[0] eq '' ? $name : "$in->[0]/$name", identity_of($statx)];
      $new->{attributes} = $$record;
    } else {
      new_link($record, $directory, $name, $content);
      $new->{maybe} = 1;
      my $fd = check(hold($directory, $name));
      eval { link_made($fd, $content, $record, $new) };
      my $error = $@;
      sys_close($fd);
      die $error if $error;
    }
    @$new{'in', 'name'} = ($in, $name);
    $touched->{$in->[1]} = $in;
    note_told($directory, $name, identity_of($new->{statx}), $new->{statx});
  };
  if ($@) {
    print STDERR $@ unless ref $@;
    $new = {errno => ref $@ ? $@->{errno} : $EIO, maybe => !ref $@ || $new->{maybe} && $@->{errno} != $ENOENT};
  }
  return $new;
}

# Somebody has put something else in its place before it was looked at.
sub replaced { $_[0]{maybe} = 0; fail($ESTALE) }

# The content of a file that was just made; without all of it the file goes again.
sub fill_new {
  my ($fd, $directory, $name, $content, $record, $new) = @_;
  eval { write_all($fd, $content, 0) };
  if (my $error = $@) {
    my ($ours, $there) = (sys_statx($fd, ''), sys_statx($directory, $name));
    $new->{maybe} = !defined $ours || !defined $there && $! != $ENOENT;
    if (defined $ours && defined $there && identity_of($ours) eq identity_of($there)) {
      if (syscall($NR{unlinkat}, 0 + $directory, "$name", 0) == -1) { $new->{maybe} = 1 }
      else { told_gone($directory, $name) }
    }
    die $error;
  }
  set_new($fd, $record, $new);
}

# No system call gives a descriptor of the link that it makes: what has the name has to be one, with the same text.
sub link_made {
  my ($fd, $content, $record, $new) = @_;
  my $statx = sys_statx($fd, '') // fail(0 + $!);
  replaced($new) if type_of($statx) != $S_IFLNK || link_text($fd, '', $statx) ne "\1" . pack 'N/a*', $content;
  set_new($fd, $record, $new);
}

# The attributes of something new; refused, it is there all the same.
sub set_new {
  my ($fd, $attributes, $new) = @_;
  my $statx = sys_statx($fd, '') // fail(0 + $!);
  if (changes_something($attributes)) {
    eval { set_attributes($fd, $statx, [$fd, 2], $attributes) };
    $new->{errno} = ref $@ ? $@->{errno} : $EIO if $@;
    $statx = sys_statx($fd, '') // $statx;
  }
  $new->{statx} = $statx;
}

sub changes_something { return ${$_[0]} ne "\0\0\0\0" }

# A directory of the row gets its attributes before it is looked at.
sub finish_new {
  my ($new) = @_;
  if ($new->{place} && changes_something(\$new->{attributes})) {
    # It was moved or removed, and is not known by what it is any more.
    eval { set_new(directory(@{$new->{place}}), \$new->{attributes}, $new); 1 } or $new->{errno} = $ESTALE;
  }
  look_at_new($new);
}

# now: its attributes, if it is where it was made; of a directory that was there, as the answer has them.
sub look_at_new {
  my ($new) = @_;
  my $place = $new->{old} // $new->{place} // $new->{in};
  my $directory = eval { directory(@$place) };
  my $now = defined $directory ? attributes_at($directory, $new->{old} || $new->{place} ? '' : $new->{name}) : undef;
  $new->{now} = !$new->{old} ? $now : defined $now ? "\1$now" : "\0";
}

# Mostly nothing has happened since, which takes less time to see.
sub look_again {
  my ($new) = @_;
  return unless $new->{old} || defined $new->{statx};
  my $directory = eval { directory(@{$new->{old} // $new->{in}}) };
  my $statx = defined $directory ? sys_statx($directory, $new->{old} ? '' : $new->{name}) : undef;
  look_at_new($new) unless defined $statx && defined $new->{now} && $statx eq substr $new->{now}, $new->{old} ? 1 : 0, 144;
}

# The answer, in pieces.
sub row_made {
  my ($made, $old) = @_;
  my @pieces = ('');
  for my $new (@$made) {
    my ($errno, $statx, $now) = @$new{'errno', 'statx', 'now'};
    # Somebody has moved it meanwhile.
    $now = "$statx\0" if defined $statx && !(defined $now && identity_of($now) eq identity_of($statx));
    $pieces[-1] .= pack('N', $errno) . (defined $statx ? "\1$now" : $new->{maybe} ? "\2" : "\0");
    push @pieces, '' if length $pieces[-1] >= $MAX_READ;
  }
  for my $directory (@$old) {
    $pieces[-1] .= $directory->{now};
    push @pieces, '' if length $pieces[-1] >= $MAX_READ;
  }
  return @pieces;
}

# Those that change something: their replies are kept, and they are never done twice.
# An open is one: done again, it would truncate again, and the client would know a descriptor that is closed.
my %CHANGES = map { $_ => 1 } (6 .. 13, 16 .. 19, 21 .. 23, 27, 28, 31, 35);

# --- frames

sub send_frame {
  my ($number, $body) = @_;
  my $checked = $ID . pack('Q>', $number) . $body;
  $replies .= 'e2R1' . pack('NN', length $body, checksum($checked)) . $checked;
}

sub checksum { my $bytes = $_[0] . "\0" x (-length($_[0]) & 3); return unpack '%32N*', $bytes }

# flags: 1: more replies to this number follow, 2: an echo.
sub reply {
  my ($number, $results, $count, $is_change, $more) = @_;
  my $body = pack('Cn', $more ? 1 : 0, $count) . $results;
  send_frame($number, $body);
  return unless $is_change;
  push @{$kept{$number}}, $body;
  $kept_bytes += length $body;
  # The client acknowledges long before; one that does not has lost interest.
  if ($kept_bytes > $KEPT_BYTES) {
    for my $old (sort { $a <=> $b } keys %kept) {
      last if $kept_bytes <= $KEPT_BYTES / 2;
      $forgotten = $old;
      forget_kept($old);
    }
  }
}

sub forget_kept { $kept_bytes -= length $_ for @{delete $kept{$_[0]}} }

sub answer {
  my ($number, $body) = @_;
  my ($done, $kind) = unpack 'Q> C', substr $body, 0, 9, '';
  if ($done > $low) {
    $low = $done;
    forget_kept($_) for grep { $_ <= $low } keys %kept;
    delete @barred{grep { $_ <= $low } keys %barred};
  }
  if ($kind == 1) { return send_frame($number, pack('Cn', 2, 0) . $body) }    # an echo
  if ($kind == 2) { $barred{$_} = 1 for unpack '(Q>)*', $body; return }       # cancelled: also if it comes later
  exit 0 if $kind == 3;
  my @calls = $kind == 0 && length $body >= 2 ? operations_of($body) : ();
  if (!@calls) { print STDERR "e2bfs: a bad request\n"; leave(3) }
  if ($number <= $low || $barred{$number} || $running{$number}) { return }
  if (exists $kept{$number}) { send_frame($number, $_) for @{$kept{$number}}; return }
  my ($results, $finished, $change) = ('', 0, scalar grep { $CHANGES{$_->[0]} } @calls);
  # It may have been done, and what came of it is not known any more.
  if ($change && $number <= $forgotten) { return reply($number, pack('NN', $EIO, 0), 1, 0) }
  for my $call (@calls) {
    my ($operation, $args) = @$call;
    $telling = $CHANGES{$operation} && $operation != 18;    # what an open says is not looked at
    my $result = eval {
      if ($operation == 3) {
        # A long one is sent as it is made: a client that hears nothing for as long as several of them take would believe us lost.
        my ($piece, $entries, $bytes) = list_directory(\$args, sub {
          local $!;
          reply($number, pack('NN/a*', 0, $_[0]), 1, 0, 1);
          send_all();
          write_out();
        });
        return $piece . pack('N', $entries) . $bytes;
      }
      my $code = $OPERATIONS[$operation] or fail($ENOSYS);
      return $code->(\$args);
    };
    my $error = $@;
    $telling = 0;
    if (ref $error && $error->{child}) {    # goes on by itself; always the last of its frame
      my ($pid, $pipe, $finish, $always) = @{$error->{child}};
      $children{fileno $pipe} = {pid => $pid, pipe => $pipe, number => $number, finish => $finish, always => $always, said => '', results => $results, count => $finished};
      $running{$number} = 1;
      return;
    }
    if (ref $error && $error->{job}) {    # goes on in the loop; always alone in its frame
      push @jobs, [$number, @{$error->{job}}, $change];
      $running{$number} = 1;
      return;
    }
    ++$finished;
    if ($error) {
      print STDERR $error unless ref $error;
      $results .= pack 'NN/a*', ref $error ? ($error->{errno}, $error->{result}) : ($EIO, '');
      last;
    }
    $results .= pack 'NN/a*', 0, $result;
  }
  reply($number, $results, $finished, $change);
}

# The next step of the job that waits for longest: whether there are more, and pieces of the answer. What nobody waits for any more ends.
sub run_job {
  my $job = shift @jobs;
  my ($number, $step, $end, $is_change) = @$job;
  my $more = 0;
  if ($number > $low && !$barred{$number}) {
    $telling = $is_change;
    ($more, my @pieces) = eval { $step->() };
    my $error = $@;
    $telling = 0;
    print STDERR $error if $error && !ref $error;
    if ($error) {
      $more = 0;
      # What a change did before it died is not known.
      reply($number, pack('NN', ref $error && !$is_change ? $error->{errno} : $EIO, 0), 1, $is_change);
    }
    while (defined(my $piece = shift @pieces)) {
      reply($number, pack('NN/a*', 0, $piece), 1, $is_change, $more || @pieces) if length $piece || !$more;
    }
  } elsif ($is_change) {
    add_news(pack 'C', 4);    # what it did was left out of the news
  }
  if ($more) { push @jobs, $job; return }
  $end->();
  delete $running{$number};
}

# [number, arguments] of each; none if the request does not hold what it says.
sub operations_of {
  my ($body) = @_;
  my $count = unpack 'n', substr $body, 0, 2, '';
  my @calls;
  for my $i (1 .. $count) {
    return () if length $body < 5;
    my ($operation, $length) = unpack 'C N', substr $body, 0, 5, '';
    return () if length $body < $length;
    push @calls, [$operation, substr $body, 0, $length, ''];
  }
  return length $body ? () : @calls;
}

# Takes whole frames from the front of what came in. A bad one ends the server: nobody knows what would follow.
sub take_frames {
  while (length $in >= 28) {
    my ($magic, $length, $sum) = unpack 'a4 N N', $in;
    if ($magic ne 'e2Q1' || $length < 9 || $length > $MAX_BODY) { print STDERR "e2bfs: a bad frame\n"; leave(3) }
    last if length $in < 28 + $length;
    my $frame = substr $in, 0, 28 + $length, '';
    if (checksum(substr $frame, 12) != $sum || substr($frame, 12, 8) ne $ID) { print STDERR "e2bfs: a frame of somebody else\n"; leave(3) }
    answer(unpack('x20 Q>', $frame), substr $frame, 28);
  }
}

sub seconds { my $now = "\0" x 16; syscall $NR{clock_gettime}, 1, $now; my ($s, $ns) = unpack 'qq', $now; return $s + $ns / 1e9 }    # monotonic

# --- the loop

umask 0;
binmode STDIN;
binmode STDOUT;
$SIG{PIPE} = 'IGNORE';
$SIG{HUP} = 'IGNORE';
$SIG{XFSZ} = 'IGNORE';    # EFBIG then
$SIG{IO} = 'IGNORE';      # somebody opens what we have a lease of, for a moment
{
  # Standard output must not block the loop; standard input is only read when something is there.
  my $flags = syscall $NR{fcntl}, 1, 3, 0;
  syscall $NR{fcntl}, 1, 4, $flags | $O_NONBLOCK if $flags != -1;
}
$heard = seconds();
my $now = $heard;
my $looked = 0;    # at the events, in seconds with a fraction
while (1) {
  my ($readable, $writable, $remounted) = ('', '', '');
  # A client that takes no replies gets no more of them.
  my $room = length $out < 4 << 20;
  vec($readable, 0, 1) = 1 if $room;
  vec($readable, $_, 1) = 1 for keys %children;
  my $pause = $looked + $EVENT_PAUSE - $now;
  vec($readable, $inotify, 1) = 1 if $inotify != -1 && $room && $pause <= 0;
  vec($writable, 1, 1) = 1 if length $out;
  vec($remounted, fileno $mount_table, 1) = 1 if $mount_table && $room;
  my $ready = select $readable, length $out ? $writable : undef, $remounted, @jobs && $room ? 0 : $pause > 0 && $inotify != -1 ? $pause : $silence < 60 ? $silence : 60;
  $now = seconds();
  exit 0 if $now - $heard > $silence;
  # What is kept open keeps file systems from being unmounted.
  forget_directories(scalar keys %directories) if $ready == 0 && $pause <= 0 && !@jobs;
  next if $ready < 0 || $ready == 0 && !@jobs;
  look_at_mounts() if $mount_table && vec $remounted, fileno $mount_table, 1;
  child_said($_) for grep { vec $readable, $_, 1 } keys %children;
  if (vec $readable, 0, 1) {
    my $got = sysread STDIN, $in, 65536, length $in;
    if (defined $got) {
      exit 0 if $got == 0;
      $heard = $now;
      take_frames();
    } elsif ($! != $EAGAIN && $! != $EINTR) { exit 0 }
  }
  run_job() if @jobs && $room;
  if (length $replies || $inotify != -1 && vec $readable, $inotify, 1) {
    send_all();
    $looked = $now;
  }
  write_out();
}
