"""Parity of metadata: modes, owners, times, extended attributes, numbers."""
import errno, os, socket, stat, time

import calls
from calls import UTIME_NOW, UTIME_OMIT, XATTR_CREATE, XATTR_REPLACE, statx, utimensat
from conftest import TIER, parity_test
from parity import NO_XATTRS, Cannot, case

HIDDEN = Cannot("ids are hidden: everything is shown as the mounting user's, and giving it away is EPERM", r"^l?chown\('[fdl]', .*: EPERM in place of None$|^owner(s|s inside| of the link): |^inside the sandbox: '[fdl]': owner: ")


def mtime_only(shows):
    return Cannot("atime and ctime are shown as the mtime", shows, "access and change times")


# --- modes
@case("chmod", "every bit, of files, by name and by descriptor")
def _(t):
    t.file("f")
    fd = t.open("f", os.O_RDWR)
    for mode in (0, 0o400, 0o777, 0o4755, 0o2755, 0o2644, 0o6755, 0o1644, 0o7777, 0o10644, 0o644):
        t(os.chmod, "f", mode), t.stat("f")
        t(os.fchmod, fd, mode ^ 0o111), t.stat(fd)
    t(os.chmod, "missing", 0o600), t(os.chmod, "f/x", 0o600)


@case("chmod", "every bit, of directories")
def _(t):
    os.mkdir("d")
    for mode in (0, 0o700, 0o777, 0o1777, 0o2775, 0o4755, 0o7777, 0o755):
        t(os.chmod, "d", mode), t.stat("d")
    fd = t.open("d", os.O_RDONLY)
    t(os.fchmod, fd, 0o711), t.stat("d"), t(os.chmod, ".", 0o750), t.stat(".")


@case("chmod", "of fifos; links are followed")
def _(t):
    os.mkfifo("p"), t.file("f"), os.symlink("f", "l"), os.symlink("p", "lp")
    t(os.chmod, "p", 0o604), t(os.chmod, "l", 0o601), t(os.chmod, "lp", 0o602), t.stat("p"), t.stat("f"), t.stat("l")


@case("chmod", "changed inside", inside=True)
def _(t):
    t.file("f")
    t.stat("f"), os.chmod(t.inside("f"), 0o4711), t.stat("f"), t(os.chmod, "f", 0o600), t.stat(t.inside("f"))


@case("umask", "of everything that is made")
def _(t):
    # What has no permissions at all keeps the service tier's listings from a test sandbox that is no root, as envd is.
    for mask in (0, 0o022, 0o027, 0o077, *([0o777] if os.getuid() == 0 else [])):
        os.umask(mask)
        for mode in (0o777, 0o666, 0o4755, 0o1777, 0o2770):
            name = f"{mask:o}-{mode:o}"
            fd = t.open(f"f{name}", os.O_CREAT | os.O_WRONLY, mode)
            t(os.close, fd), t(os.mkdir, f"d{name}", mode), t(os.mkfifo, f"p{name}", mode), t(os.mknod, f"n{name}", mode | stat.S_IFREG)
            for kind in "fdpn":
                t.stat(kind + name)
    os.umask(0o022)
    t(os.symlink, "x", "l"), t(os.open, "f0-666", os.O_CREAT | os.O_WRONLY, 0o123, value=False), t.stat("f0-666")


@case("umask", "a file without permissions is still written by who made it")
def _(t):
    for mode in (0, 0o444, 0o200):
        fd = t.open(f"f{mode}", os.O_CREAT | os.O_RDWR, mode)
        t(os.write, fd, b"content"), t(os.pread, fd, 10, 0), t(os.fsync, fd), t(os.write, fd, b" more"), t.stat(fd), t(os.close, fd), t.stat(f"f{mode}")


@case("setgid", "a directory gives its group and its bit", needs_root=True, ids=Cannot("ids are hidden: the group is set inside", r"^chown\('d', -1, 12345\): EPERM in place of None$|^group of d/\w+: |^inside the sandbox: 'd(/\w+)?': owner: '0:0' in place of '0:12345'$"))
def _(t):
    os.mkdir("d")
    t(os.chown, "d", -1, 12345), t(os.chmod, "d", 0o2775)
    t(os.mkdir, "d/sub"), t.file("d/f"), t(os.symlink, "x", "d/l"), t(os.mkfifo, "d/p")
    for name in ("d/sub", "d/f", "d/l", "d/p"):
        t.stat(name), t(lambda name: os.lstat(name).st_gid, name, label=f"group of {name}")


@case("setgid", "a directory made inside gives its group and its bit", needs_root=True, inside=True)
def _(t):
    os.mkdir(t.inside("d")), os.chown(t.inside("d"), -1, 12345), os.chmod(t.inside("d"), 0o2775)
    t(os.mkdir, "d/sub"), t.file("d/f"), t(os.symlink, "x", "d/l"), t(os.mkfifo, "d/p")
    for name in ("d/sub", "d/f", "d/l", "d/p"):
        t.stat(name), t(lambda name: os.lstat(t.inside(name)).st_gid, name, label=f"group of {name} inside")


def cleared(t, what):
    """Which of the bits remain after a change, here and inside."""
    for mode in (0o6777, 0o6755, 0o2764, 0o4644):
        name = f"f{mode:o}"
        t.file(name, b"0123456789")
        os.chmod(name, mode)
        t(what, name, label=f"{mode:o}")
        t.stat(name)


@case("setuid", "a write as root keeps the bits", needs_root=True)
def _(t):
    def write(name):
        fd = os.open(name, os.O_WRONLY)
        os.write(fd, b"x")
        os.close(fd)
    cleared(t, write)


@case("setuid", "a truncate as root keeps the bits", needs_root=True)
def _(t):
    cleared(t, lambda name: os.truncate(name, 3))


@case("setuid", "chown clears them", needs_root=True)
def _(t):
    cleared(t, lambda name: os.chown(name, os.getuid(), os.getgid()))


@case("setuid", "rename, link, utimes and overwriting keep them")
def _(t):
    def change(name):
        os.link(name, "l"), os.rename(name, "g"), os.utime("g", ns=(0, 0)), os.unlink("l"), os.rename("g", name)
    cleared(t, change)


# --- owners
@case("chown", "to who owns it, and not at all")
def _(t):
    t.file("f"), os.symlink("f", "l"), os.symlink("nowhere", "n"), os.mkdir("d")
    for name in ("f", "d", "l", "missing", "n"):
        t(os.chown, name, os.getuid(), os.getgid()), t(os.chown, name, -1, -1), t(os.lchown, name, os.getuid(), -1), t(os.chown, name, -1, os.getgid())
    fd = t.open("f", os.O_RDONLY)
    t(os.fchown, fd, os.getuid(), os.getgid()), t(lambda: (os.stat("f").st_uid == os.getuid(), os.stat("f").st_gid == os.getgid()), label="owner")


@case("chown", "to another user and group", needs_root=True, ids=HIDDEN)
def _(t):
    t.file("f"), os.symlink("f", "l"), os.mkdir("d")
    for name, uid, gid in (("f", 12345, -1), ("f", -1, 54321), ("d", 1, 2), ("l", 7, 8), ("f", 0, 0), ("f", (1 << 32) - 2, 4_000_000_000)):
        t(os.chown, name, uid, gid)
        t(lambda: [(os.lstat(n).st_uid, os.lstat(n).st_gid) for n in ("f", "l", "d")], label="owners")
        t(lambda: [(os.lstat(t.inside(n)).st_uid, os.lstat(t.inside(n)).st_gid) for n in ("f", "l", "d")], label="owners inside")
    t(os.lchown, "l", 5, 6), t(lambda: (os.lstat("l").st_uid, os.lstat("l").st_gid), label="owner of the link")


@case("chown", "overwriting keeps owner, mode, links and inode", needs_root=True, inside=True)
def _(t):
    t.file("f", b"old content, rather long"), os.link(t.inside("f"), t.inside("g"))
    os.chown(t.inside("f"), 12345, 54321), os.chmod(t.inside("f"), 0o640)
    before = os.stat(t.inside("f")).st_ino
    for flags, data in ((os.O_WRONLY | os.O_TRUNC, b"new"), (os.O_WRONLY, b"N"), (os.O_WRONLY | os.O_APPEND, b"+"), (os.O_WRONLY | os.O_TRUNC, b"large" * 300_000)):
        fd = t.open("f", flags)
        t(os.write, fd, data), t(os.close, fd)
        after = os.stat(t.inside("f"))
        t.note("kept", (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode), after.st_nlink, after.st_ino == before))


# --- times
def times(path):
    status = os.lstat(path)
    return status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns


@case("utimes", "nanoseconds, the distant past and future, links, directories")
def _(t):
    t.file("f"), os.mkdir("d"), os.symlink("f", "l"), os.mkfifo("p")
    for name in ("f", "d", "p"):
        for mtime in (0, 1, 999_999_999, 1_000_000_002_222_222_222, 4_102_444_800_123_456_789, -1_500_000_000, -1):
            t(os.utime, name, ns=(mtime, mtime)), t(lambda name: os.lstat(name).st_mtime_ns, name, label=f"mtime of {name}")
    t(os.utime, "l", ns=(5, 6_000_000_007)), t(os.utime, "l", ns=(7, 8_000_000_009), follow_symlinks=False)
    t(lambda: (os.lstat("f").st_mtime_ns, os.lstat("l").st_mtime_ns), label="mtimes"), t(os.utime, "missing", ns=(0, 0))
    fd = t.open("f", os.O_RDONLY)
    t(os.utime, fd, ns=(1, 2_000_000_003)), t(lambda: os.fstat(fd).st_mtime_ns, label="by descriptor")


@case("utimes", "atime by itself", service=mtime_only(r"^times: "))
def _(t):
    t.file("f")
    for atime, mtime in ((1_000_000_001, 2_000_000_002), (3_000_000_003, 1_000_000_001)):
        t(os.utime, "f", ns=(atime, mtime)), t(lambda: times("f")[:2], label="times"), t(lambda: times(t.inside("f"))[:2], label="times inside")


@case("utimes", "atime inside")
def _(t):
    t.file("f")
    t(os.utime, "f", ns=(1_000_000_001, 2_000_000_002)), t(lambda: times(t.inside("f"))[:2], label="times inside")


@case("utimes", "UTIME_NOW and UTIME_OMIT of the mtime")
def _(t):
    t.file("f")
    for atime, mtime in (((10, 1), (20, 2)), ((0, UTIME_OMIT), (30, 3)), ((0, UTIME_OMIT), (0, UTIME_OMIT)), ((0, UTIME_NOW), (40, 4)), ((0, UTIME_NOW), (0, UTIME_OMIT))):
        t(utimensat, "f", atime, mtime), t(lambda: times("f")[1], label="mtime"), t(lambda: times(t.inside("f"))[1], label="mtime inside")
    t(utimensat, "f", (0, UTIME_OMIT), (0, UTIME_NOW)), t(lambda: abs(times("f")[1] - time.time_ns()) < 60e9, label="mtime is now")
    t(utimensat, "f", (10, 1), (20, 2)), t(utimensat, "f", None, None), t(lambda: abs(times(t.inside("f"))[1] - time.time_ns()) < 60e9, label="mtime is now")
    t(utimensat, "f", (0, 1_000_000_000), (0, 0)), t(utimensat, "f", (0, -1), (0, 0)), t(utimensat, "missing", (0, UTIME_OMIT), (0, UTIME_OMIT))


@case("utimes", "UTIME_NOW and UTIME_OMIT of the atime", service=mtime_only(r"^times: "))
def _(t):
    t.file("f")
    for atime, mtime in (((10, 1), (20, 2)), ((0, UTIME_OMIT), (30, 3)), ((40, 4), (0, UTIME_OMIT)), ((0, UTIME_NOW), (0, UTIME_OMIT))):
        t(utimensat, "f", atime, mtime)
        for path, label in (("f", "times"), (t.inside("f"), "times inside")):
            t(lambda path: [each if each < 1_000 * 10**9 else "now" for each in times(path)[:2]], path, label=label)


@case("utimes", "of a file that was just written, and is written on")
def _(t):
    fd = t.open("f", os.O_CREAT | os.O_RDWR)
    t(os.write, fd, b"content"), t(os.utime, fd, ns=(1_000_000_000, 2_000_000_000)), t(lambda: os.fstat(fd).st_mtime_ns, label="fstat"), t(os.close, fd)
    t(lambda: (times("f")[1], times(t.inside("f"))[1]), label="after close")
    fd = t.open("f", os.O_WRONLY)
    t(os.write, fd, b"C"), t(os.close, fd), t(lambda: times("f")[1] > 10**18, label="a write takes it away")
    t.file("g", b"tar does this")
    os.utime("g", ns=(3_000_000_000, 4_000_000_000)), os.chmod("g", 0o640), t(lambda: (times("g")[1], times(t.inside("g"))[1]), label="tar")


@case("utimes", "fstat after the last write stays true after close")
def _(t):
    fd = t.open("f", os.O_CREAT | os.O_WRONLY)
    t(os.write, fd, b"content")
    before = os.fstat(fd)
    t(os.close, fd)
    after = os.stat("f")
    t.note("same", (before.st_size == after.st_size, before.st_mtime_ns == after.st_mtime_ns, before.st_ino == after.st_ino, after.st_mtime_ns == os.stat(t.inside("f")).st_mtime_ns))


def write_to(path, flags=os.O_WRONLY):
    fd = os.open(path, flags)
    os.write(fd, b"x")
    os.close(fd)


def read_from(path):
    with open(path, "rb", buffering=0) as file:
        file.read()


# operation -> what is called; f, g (files), d (a directory with a file), e (an empty one), l (a link), and the directory itself are looked at
TIMED = {
    "read": lambda: read_from("f"), "write": lambda: write_to("f"), "append": lambda: write_to("f", os.O_WRONLY | os.O_APPEND),
    "open for writing, nothing written": lambda: os.close(os.open("f", os.O_WRONLY)), "open with O_TRUNC": lambda: os.close(os.open("f", os.O_WRONLY | os.O_TRUNC)),
    "truncate shorter": lambda: os.truncate("f", 3), "truncate to the same": lambda: os.truncate("f", 10), "chmod": lambda: os.chmod("f", 0o600),
    "chown to the owner": lambda: os.chown("f", os.getuid(), os.getgid()), "link": lambda: os.link("f", "d/new"), "unlink": lambda: os.unlink("g"),
    "rename": lambda: os.rename("f", "d/f"), "rename in place": lambda: os.rename("f", "h"), "rename over": lambda: os.rename("f", "g"), "rename of a directory": lambda: os.rename("e", "d/e"),
    "create": lambda: os.close(os.open("new", os.O_CREAT | os.O_WRONLY)), "mkdir": lambda: os.mkdir("d/new"), "rmdir": lambda: os.rmdir("e"), "symlink": lambda: os.symlink("x", "d/l"),
    "mkfifo": lambda: os.mkfifo("d/p"), "a failed create": lambda: os.path.exists("d/missing/x"),
}
SUBJECTS = ("f", "g", "d", "e", "l", ".", "d/f", "h")


def times_case(name, call, inside):
    def which(t):
        t.file("f", b"0123456789"), t.file("g", b"g"), os.mkdir("d"), t.file("d/inner"), os.mkdir("e"), os.symlink("f", "l")
        for subject in ("f", "g", "d", "e"):
            os.utime(subject, ns=(10**18, 2 * 10**17))
        where = t.inside_top if inside else "."

        def look():
            return {subject: times(os.path.join(where, subject)) for subject in SUBJECTS if os.path.lexists(os.path.join(where, subject))}
        before = look()
        time.sleep(0.02)
        t(call, label=name, value=False)
        after = look()
        for subject in SUBJECTS:
            if subject in after:
                # A file that was renamed is followed.
                old = before.get(subject) or before.get({"d/f": "f", "h": "f"}.get(subject))
                if subject == "g" and name == "rename over":
                    old = before["f"]
                changed = [what for what, b, a in zip(("atime", "mtime", "ctime"), old, after[subject]) if a > b]
                t.note(f"{subject} has new", changed)
    which.__module__ = __name__
    return which


# What the service tier shows: mtime in place of all three. It differs wherever ctime changes without mtime or atime by itself does.
SHOWN_AS_MTIME = {"read", "write", "append", "open with O_TRUNC", "truncate shorter", "truncate to the same", "chmod", "chown to the owner", "link", "unlink", "rename", "rename in place", "rename over",
                  "rename of a directory", "create", "mkdir", "rmdir", "symlink", "mkfifo"}
for name, call in TIMED.items():
    does_nothing = Cannot("ids are hidden: chown to the shown owner does nothing", r"^f has new: \[\] in place of \['ctime'\]$") if name.startswith("chown") else None
    case("times", f"{name}, seen here", ids=does_nothing, service=mtime_only(r"^\S+ has new: (\[\]|\['atime', 'mtime', 'ctime'\]) in place of ") if name in SHOWN_AS_MTIME else None)(times_case(name, call, False))
    case("times", f"{name}, seen inside", ids=does_nothing)(times_case(name, call, True))


def all_times(name):
    status = os.lstat(name)
    return status.st_mtime_ns, status.st_ctime_ns


# What changes mtime or ctime; the file that is looked at then.
EXACT = {
    "write": (lambda: write_to("f"), "f"), "append": (lambda: write_to("f", os.O_WRONLY | os.O_APPEND), "f"), "chmod": (lambda: os.chmod("f", 0o600), "f"),
    "truncate": (lambda: os.truncate("f", 3), "f"), "link": (lambda: os.link("f", "d/l"), "d/l"), "unlink of one of two names": (lambda: os.unlink("d/l"), "f"),
    "rename": (lambda: os.rename("f", "d/f"), "d/f"), "utimes": (lambda: os.utime("d/f", ns=(1, 2_000_000_003)), "d/f"), "large write": (lambda: write_large("d/f"), "d/f"),
    "rename of a directory": (lambda: os.rename("d", "e"), "e"),
}


def write_large(path):
    with open(path, "r+b") as file:
        file.write(b"large" * 40_000)


@case("times", "to the nanosecond as inside, ctime included", service=mtime_only(r"^\w.*: .*False"))
def _(t):
    t.file("f", b"0123456789"), os.mkdir("d")
    for name, (change, looked_at) in EXACT.items():
        time.sleep(0.01)
        change()
        for path in (looked_at, "."):
            t.note(f"{name}: {path}: mtime and ctime", [here == inside for here, inside in zip(all_times(path), all_times(t.inside(path)))])


# --- extended attributes
@case("xattrs", "set, get, list, remove", service=NO_XATTRS)
def _(t):
    t.file("f"), os.mkdir("d")
    for name in ("f", "d"):
        t(os.listxattr, name), t(os.getxattr, name, "user.a"), t(os.removexattr, name, "user.a"), t(os.setxattr, name, "user.a", b"value"), t(os.getxattr, name, "user.a")
        t(os.setxattr, name, "user.empty", b""), t(os.getxattr, name, "user.empty"), t(os.setxattr, name, "user.bytes", bytes(range(256))), t(os.getxattr, name, "user.bytes")
        t(lambda name: sorted(os.listxattr(name)), name, label="list"), t(os.removexattr, name, "user.a"), t(lambda name: sorted(os.listxattr(name)), name, label="list")
        t(os.setxattr, name, "user.empty", b"longer"), t(os.getxattr, name, "user.empty")


@case("xattrs", "by descriptor, of links, of fifos", service=NO_XATTRS)
def _(t):
    t.file("f"), os.symlink("f", "l"), os.symlink("nowhere", "n"), os.mkfifo("p")
    fd = t.open("f", os.O_RDONLY)
    t(os.setxattr, fd, "user.a", b"1"), t(os.getxattr, fd, "user.a"), t(os.listxattr, fd), t(os.setxattr, "l", "user.b", b"2"), t(os.getxattr, "f", "user.b")
    t(os.setxattr, "l", "user.c", b"3", follow_symlinks=False), t(os.getxattr, "l", "user.c", follow_symlinks=False), t(os.listxattr, "l", follow_symlinks=False), t(os.setxattr, "n", "user.a", b"1")
    t(os.setxattr, "p", "user.a", b"1"), t(os.listxattr, "p"), t(os.setxattr, "missing", "user.a", b"1"), t(os.getxattr, "missing", "user.a")


@case("xattrs", "create and replace", service=NO_XATTRS)
def _(t):
    t.file("f")
    t(os.setxattr, "f", "user.a", b"1", XATTR_REPLACE), t(os.setxattr, "f", "user.a", b"2", XATTR_CREATE), t(os.setxattr, "f", "user.a", b"3", XATTR_CREATE)
    t(os.setxattr, "f", "user.a", b"4", XATTR_REPLACE), t(os.getxattr, "f", "user.a"), t(os.setxattr, "f", "user.a", b"5", 8)
    t(os.setxattr, "f", "user.a", b"6", XATTR_CREATE | XATTR_REPLACE)


@case("xattrs", "limits of names and values", service=NO_XATTRS)
def _(t):
    t.file("f")
    for length in (2_000, 3_900, 5_000, 65_536, 65_537):
        t(os.setxattr, "f", "user.v", b"v" * length, label=f"a value of {length}"), t(lambda: len(os.getxattr("f", "user.v")), label="length")
    for length in (249, 250, 251):
        t(os.setxattr, "f", "user." + "n" * length, b"1", label=f"a name of {5 + length}")
    t(os.setxattr, "f", "user.", b"1"), t(os.setxattr, "f", "nothing", b"1"), t(os.setxattr, "f", "", b"1"), t(os.getxattr, "f", "")
    for number in range(120):
        t(os.setxattr, "f", f"user.many-{number:03}", b"m" * 40, label=f"number {number}")
    t(lambda: sorted(os.listxattr("f")), label="list")


@case("xattrs", "a buffer that is too small", service=NO_XATTRS)
def _(t):
    t.file("f"), t(os.setxattr, "f", "user.a", b"12345")
    buffer = calls.ctypes.create_string_buffer(100)
    for size in (0, 1, 4, 5, 6):
        t(lambda size: calls.checked(calls.libc.getxattr(b"f", b"user.a", buffer, size)), size, label=f"getxattr {size}")
        t(lambda size: calls.checked(calls.libc.listxattr(b"f", buffer, size)), size, label=f"listxattr {size}")


@case("xattrs", "other namespaces", needs_root=True, service=NO_XATTRS)
def _(t):
    t.file("f")
    for name in ("trusted.a", "security.a", "system.a", "system.posix_acl_access", "unknown.a", "user.e2b.key"):
        t(os.getxattr, "f", name), t(os.setxattr, "f", name, b"1"), t(os.getxattr, "f", name), t(os.removexattr, "f", name)


@case("xattrs", "E2B's metadata", inside=True, service=NO_XATTRS._replace(shows=NO_XATTRS.shows + r"|^getxattr\('<inside>/f', 'user\.e2b\.project'\): b'inside'|: xattrs: \{'user\.e2b\.project': b'inside'\}"))
def _(t):
    t.file("f")
    os.setxattr(t.inside("f"), "user.e2b.project", b"inside")
    t(os.getxattr, "f", "user.e2b.project"), t(os.listxattr, "f"), t(os.setxattr, "f", "user.e2b.project", b"here"), t(os.getxattr, t.inside("f"), "user.e2b.project")


@case("xattrs", "kept by overwriting, rename and truncate", inside=True)
def _(t):
    t.file("f", b"content")
    os.setxattr(t.inside("f"), "user.kept", b"1")
    for flags in (os.O_WRONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC):
        write_to("f", flags)
    t(os.rename, "f", "g"), t(os.truncate, "g", 0), t(os.chmod, "g", 0o600), t(os.getxattr, t.inside("g"), "user.kept")


@case("xattrs", "on a file with unsent writes, on one that was unlinked", service=NO_XATTRS)
def _(t):
    fd = t.open("f", os.O_CREAT | os.O_RDWR)
    t(os.write, fd, b"unsent"), t(os.setxattr, fd, "user.a", b"1"), t.stat(fd), t(os.getxattr, "f", "user.a"), t(os.unlink, "f"), t(os.getxattr, fd, "user.a"), t(os.setxattr, fd, "user.b", b"2")
    t(lambda: sorted(os.listxattr(fd)), label="list"), t(os.pread, fd, 10, 0)


@case("xattrs", "capabilities and ACLs are asked for without harm")
def _(t):
    t.file("f")
    for name in ("security.capability", "security.selinux"):
        t(os.getxattr, "f", name)


# --- numbers
@case("statfs", "the sandbox's numbers")
def _(t):
    t.file("f")
    for path in (".", "f"):
        here, inside = os.statvfs(path), os.statvfs(t.inside(path))
        t.note("sizes", (here.f_bsize, here.f_frsize, here.f_blocks, here.f_files, here.f_namemax))
        t.note("free", (abs(here.f_bfree - inside.f_bfree) * 100 < inside.f_blocks, abs(here.f_bavail - inside.f_bavail) * 100 < inside.f_blocks, abs(here.f_ffree - inside.f_ffree) * 100 < inside.f_files))
    t(os.pathconf, ".", "PC_NAME_MAX"), t(os.pathconf, ".", "PC_PATH_MAX"), t(os.statvfs, "missing")


@case("stat", "inode numbers are stable and unlike")
def _(t):
    t.file("f"), t.file("g"), os.mkdir("d")
    before = [os.stat(name).st_ino for name in ("f", "g", "d", ".")]
    t.note("unlike", len(set(before)))
    write_to("f"), os.chmod("f", 0o600), os.rename("f", "d/f"), os.rename("d", "e"), time.sleep(1.2)
    t.note("stable", before == [os.stat(name).st_ino for name in ("e/f", "g", "e", ".")])
    fd = t.open("e/f", os.O_RDONLY)
    t.note("fstat", os.fstat(fd).st_ino == before[0])
    os.unlink("e/f"), t.file("e/f"), t.note("a new file", os.stat("e/f").st_ino != before[0]), t.note("one device", len({os.lstat(name).st_dev for name in ("e", "e/f", ".")}))


@case("stat", "inode numbers through a rename inside", inside=True, service=Cannot("a file that was renamed inside is another one to the service tier", r"^stable: ", "removed, replaced or renamed inside"))
def _(t):
    t.file("f")
    before = os.stat("f").st_ino
    os.rename(t.inside("f"), t.inside("g")), t.note("stable", os.stat("g").st_ino == before)


@case("stat", "the sandbox's inode numbers", service=Cannot("the service tier does not tell inode numbers", r"^[fdl]: False in place of True$", "inode numbers"))
def _(t):
    t.file("f"), os.mkdir("d"), os.symlink("x", "l")
    for name in ("f", "d", "l"):
        t.note(name, os.lstat(name).st_ino == os.lstat(t.inside(name)).st_ino)


@case("stat", "st_blocks, st_blksize")
def _(t):
    t.file("f", b"x" * 10_000), t.file("empty", b""), os.mkdir("d")
    t.note("blocks", [os.stat(name).st_blocks > 0 for name in ("f", "empty", "d")])
    t.note("du", os.stat("f").st_blocks * 512 >= 10_000), t.note("block size", os.stat("f").st_blksize >= 4096)


@case("stat", "the sandbox's st_blocks of a sparse file", service=Cannot("the service tier makes st_blocks from the size", r"^blocks: ", "st_blocks"))
def _(t):
    fd = t.open("f", os.O_CREAT | os.O_WRONLY)
    t(os.pwrite, fd, b"x", 10 << 20), t(os.close, fd), t.note("blocks", os.stat("f").st_blocks < 1000)


@case("stat", "statx agrees with stat")
def _(t):
    t.file("f", b"12345"), os.symlink("f", "l")
    for name in ("f", "l", "."):
        found, status = statx(name), os.lstat(name)
        t.note(name, (found["size"] == status.st_size, found["mode"] == status.st_mode, found["nlink"] == status.st_nlink, found["mtime"] == status.st_mtime_ns, found["ino"] == status.st_ino,
                      found["mask"] & 0x7FF == 0x7FF))
    t(statx, "missing"), t(statx, "f/x"), t(statx, "f", 0x2000 | 0x4000), t(lambda: statx("f", 0x2000)["size"], label="AT_STATX_FORCE_SYNC"), t(lambda: statx("f", 0x4000)["size"], label="AT_STATX_DONT_SYNC")


@case("stat", "birth times", every=Cannot("FUSE has no birth times", r"^birth: "))
def _(t):
    t.file("f")
    t.note("birth", bool(statx("f")["mask"] & 0x800))


@case("stat", "file handles")
def _(t):
    t.file("f"), t.file("g")
    t(calls.name_to_handle_at, "f", value=False), t(calls.name_to_handle_at, "missing", value=False)
    t(lambda: calls.name_to_handle_at("f") != calls.name_to_handle_at("g"), label="unlike")


@case("access", "as root", needs_root=True)
def _(t):
    os.mkdir("d"), os.symlink("f000", "l")
    for mode in (0, 0o100, 0o644, 0o777, 0o001):
        t.file(f"f{mode:03o}"), os.chmod(f"f{mode:03o}", mode)
        for name in (f"f{mode:03o}", ):
            t.note(f"{name}", [os.access(name, what) for what in (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK)])
            t.note(f"{name} effective", [os.access(name, what, effective_ids=True) for what in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)])
    os.chmod("d", 0)
    t.note("d", [os.access("d", what) for what in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)]), t.note("missing", os.access("missing", os.F_OK)), t.note("l", os.access("l", os.X_OK))
    for name, mode, flags in (("f000", os.X_OK, 0), ("missing", os.F_OK, 0), ("f644", 99, 0), ("f644", os.R_OK, calls.AT_EACCESS), ("l", os.X_OK, calls.AT_SYMLINK_NOFOLLOW), ("f644/x", os.F_OK, 0)):
        t(calls.faccessat2, name, mode, flags)


@case("exec", "a script and a program")
def _(t):
    t.file("script", b"#!/bin/sh\necho \"$1\"\n", 0o755), t.file("plain", b"#!/bin/sh\n", 0o644)
    import subprocess
    t(lambda: subprocess.run(["./script", "ran"], stdout=subprocess.PIPE, check=False).stdout, label="run"), t(lambda: subprocess.run(["./plain"], check=False), label="run a plain file", value=False)
    fd = t.open("script", os.O_RDONLY)
    t(os.close, fd)


test_parity = parity_test(__name__)
