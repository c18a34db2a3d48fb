"""Parity of permissions: an ordinary user's calls on what root made, EACCES and EPERM included.

On the local side the caller is nobody. On the mount the caller is nobody too, and what is done in the sandbox is done as nobody (user=nobody) or, with
ids=real, as root after the kernel here has checked the caller.
"""
import errno, os, signal, stat, time

import pytest

import calls
import parity
from calls import RENAME_NOREPLACE
from conftest import NOBODY, code, eventually, is_dead, parity_test
from parity import NO_XATTRS, PATIENCE, Cannot, case


def as_root(shows):
    return Cannot("envd's own calls are done as root, and search permission of the directories above is not checked", shows, "search permission")


def cleared_by_chmod(shows):
    return Cannot("of a file of another user that may be written, the kernel clears the bits by a chmod, which is EPERM", shows, "set-id bits")


def by_link(shows):
    return Cannot("without replacing: done by link and unlink, and whatever refuses the link (fs.protected_hardlinks, too) is EINVAL", shows, "without replacing")


def make(name, mode, uid=0, gid=0, content=b"content", directory=False):
    if directory:
        os.mkdir(name)
    else:
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, content)
        os.close(fd)
    os.chown(name, uid, gid)
    os.chmod(name, mode)


def own():
    os.chown(".", NOBODY, NOBODY)


def foreign_files():
    own()
    for mode in (0o000, 0o400, 0o644, 0o604, 0o606, 0o622, 0o666, 0o755, 0o711, 0o777):
        make(f"root-{mode:03o}", mode)
        make(f"mine-{mode:03o}", mode, NOBODY, NOBODY)
        make(f"group-{mode:03o}", mode & 0o770 | mode >> 3 & 0o7, 0, NOBODY)


@case("permissions", "open of files of every mode", setup=foreign_files)
def _(t):
    for name in sorted(os.listdir(".")):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            fd = t.open(name, flags)
            if fd is not None:
                t(os.close, fd)


@case("permissions", "access(2) of files of every mode", setup=foreign_files)
def _(t):
    for name in sorted(os.listdir(".")):
        t.note(name, [os.access(name, what) for what in (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK)])
        t.note(f"{name} effective", [os.access(name, what, effective_ids=True) for what in (os.R_OK, os.W_OK, os.X_OK)])


@case("permissions", "write, append and truncate files of every mode", setup=foreign_files)
def _(t):
    def write(name, flags):
        fd = os.open(name, flags)
        try:
            os.write(fd, b"w")
        finally:
            os.close(fd)
    for name in sorted(os.listdir(".")):
        t(write, name, os.O_WRONLY | os.O_APPEND), t(os.truncate, name, 3), t(write, name, os.O_WRONLY), t(write, name, os.O_WRONLY | os.O_TRUNC)


NOT_ONES_OWN = ("root-644", "root-666", "group-777", "mine-000")


@case("permissions", "chmod and utimes of what is not one's own", setup=foreign_files)
def _(t):
    for name in NOT_ONES_OWN:
        t(os.chmod, name, 0o600), t(os.utime, name, ns=(0, 5_000_000_000)), t(os.utime, name)
        t(calls.utimensat, name, (0, calls.UTIME_NOW), (0, calls.UTIME_NOW)), t(calls.utimensat, name, (0, calls.UTIME_OMIT), (0, calls.UTIME_NOW))


@case("permissions", "chown of what is not one's own, to somebody else", setup=foreign_files)
def _(t):
    for name in NOT_ONES_OWN:
        t(os.chown, name, 0, 0), t(os.chown, name, 1, -1), t(os.chown, name, -1, 0)


@case("permissions", "chown of what is not one's own, to oneself", setup=foreign_files,
      ids=Cannot("ids are hidden: giving it to who is shown as the owner succeeds and does nothing", r"^chown\('(root|group)-\d+', 65534, 65534\): None in place of EPERM$"))
def _(t):
    for name in NOT_ONES_OWN:
        t(os.chown, name, NOBODY, NOBODY)


def writable_files():
    own()
    for name in ("small", "large", "truncated", "appended"):
        make(name, 0o666, 0, 12345, b"root's" * (20_000 if name == "large" else 10))
        os.link(name, f"{name}-too"), os.setxattr(name, "user.kept", b"1")


@case("permissions", "overwriting somebody else's file keeps owner, group, mode, links and attributes", setup=writable_files)
def _(t):
    for name, flags, content in (("small", 0, b"new"), ("large", 0, b"new" * 50_000), ("truncated", os.O_TRUNC, b"new" * 50_000), ("appended", os.O_APPEND, b"new" * 50_000)):
        before = os.lstat(t.inside(name))
        fd = t.open(name, os.O_WRONLY | flags)
        t(os.write, fd, content), t(os.close, fd)
        after = os.lstat(t.inside(name))
        t.note("kept", (after.st_uid, after.st_gid, oct(after.st_mode), after.st_nlink, after.st_ino == before.st_ino, after.st_size, os.getxattr(t.inside(name), "user.kept")))
        t.read(name)


@case("permissions", "chmod of one's own, setgid of a foreign group", setup=lambda: (own(), make("mine", 0o644, NOBODY, NOBODY), make("foreign-group", 0o644, NOBODY, 0)))
def _(t):
    for mode in (0o600, 0o4755, 0o2755, 0o7777):
        t(os.chmod, "mine", mode), t.stat("mine"), t(os.chmod, "foreign-group", mode), t.stat("foreign-group")


@case("permissions", "chown by an ordinary user", setup=lambda: (own(), make("mine", 0o644, NOBODY, NOBODY)))
def _(t):
    for uid, gid in ((0, -1), (-1, 0), (1, 1), (-1, -1), (NOBODY, NOBODY), (-1, NOBODY)):
        t(os.chown, "mine", uid, gid)


def directories():
    own()
    for mode in (0o000, 0o444, 0o111, 0o555, 0o333, 0o777, 0o1777):
        make(f"d{mode:04o}", 0o777, directory=True)
        make(f"d{mode:04o}/f", 0o666)
        make(f"d{mode:04o}/mine", 0o666, NOBODY, NOBODY)
        os.mkdir(f"d{mode:04o}/empty")
        os.symlink("f", f"d{mode:04o}/l")
        os.chmod(f"d{mode:04o}", mode)


def in_directories(name, *operations, **marks):
    def run(t):
        for directory in sorted(os.listdir(".")):
            for label, operation in operations:
                t(operation, directory, label=f"{label} {directory}", value=False)
    run.__module__ = __name__
    case("permissions", name, setup=directories, **marks)(run)


in_directories("look into directories of every mode", ("list", os.listdir), ("stat", lambda d: os.stat(f"{d}/f")), ("stat missing", lambda d: os.stat(f"{d}/missing")), ("readlink", lambda d: os.readlink(f"{d}/l")),
               ("read", lambda d: os.close(os.open(f"{d}/f", os.O_RDONLY))), ("chdir", lambda d: (os.chdir(d), os.chdir(".."))),
               service=as_root(r"^(stat|stat missing|read) d\d+: (ok|ENOENT) in place of EACCES$"))
in_directories("make in directories of every mode", ("create", lambda d: os.close(os.open(f"{d}/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY))), ("mkdir", lambda d: os.mkdir(f"{d}/newd")),
               ("symlink", lambda d: os.symlink("x", f"{d}/newl")), ("mkfifo", lambda d: os.mkfifo(f"{d}/newp")), ("link", lambda d: os.link(f"{d}/mine", f"{d}/newh")))
in_directories("remove from directories of every mode", ("unlink", lambda d: os.unlink(f"{d}/f")), ("unlink own", lambda d: os.unlink(f"{d}/mine")), ("rmdir", lambda d: os.rmdir(f"{d}/empty")))
in_directories("rename in directories of every mode", ("rename", lambda d: os.rename(f"{d}/f", f"{d}/g")), ("rename own", lambda d: os.rename(f"{d}/mine", f"{d}/m")), ("over", lambda d: os.rename(f"{d}/m", f"{d}/g")),
               service=as_root(r"^over d\d+: ENOENT in place of EACCES$"))
in_directories("rename without replacing in directories of every mode", ("NOREPLACE", lambda d: calls.renameat2(f"{d}/mine", f"{d}/n", RENAME_NOREPLACE)),
               service=by_link(r"^NOREPLACE d\d+: EINVAL in place of EACCES$"))
in_directories("rename of somebody else's without replacing in directories of every mode", ("NOREPLACE", lambda d: calls.renameat2(f"{d}/l", f"{d}/n", RENAME_NOREPLACE)),
               service=by_link(r"^NOREPLACE d\d+: EINVAL in place of (EACCES|EPERM|ok)$|: 'd\d+/[ln]' is "))


def sticky():
    make("shared", 0o1777, directory=True)
    make("shared/theirs", 0o666), make("shared/mine", 0o666, NOBODY, NOBODY), make("shared/dir", 0o777, directory=True)
    make("open", 0o777, directory=True)


@case("permissions", "sticky directories keep others' files", setup=sticky)
def _(t):
    t(os.unlink, "shared/theirs"), t(os.rename, "shared/theirs", "shared/x"), t(os.rename, "shared/mine", "shared/theirs"), t(os.rename, "shared/theirs", "open/x"), t(os.rmdir, "shared/dir")
    t(os.rename, "shared/mine", "shared/renamed"), t(os.unlink, "shared/renamed")


def no_way_in():
    make("closed", 0o700, directory=True)
    make("closed/f", 0o666)
    os.mkdir("closed/d")
    make("writable", 0o777, directory=True)


@case("permissions", "below a directory without search", setup=no_way_in, service=as_root(r" in place of EACCES$"))
def _(t):
    for call in (os.stat, os.listdir, os.unlink, os.rmdir, os.readlink, os.mkdir):
        t(call, "closed/f", value=False), t(call, "closed/missing", value=False), t(call, "closed/d/x", value=False)
    t.open("closed/f", os.O_RDONLY), t.open("closed/new", os.O_CREAT | os.O_WRONLY), t(os.rename, "closed/f", "writable/f"), t(os.rename, "closed", "writable/c"), t(os.link, "closed/f", "writable/f")
    t(os.chdir, "closed"), t(os.listdir, "closed"), t(os.truncate, "closed/f", 0), t(os.chmod, "closed/f", 0o600)


@case("permissions", "of what one makes oneself", setup=own, service=as_root(r"^stat\('d/inner'\): ok in place of EACCES$"))
def _(t):
    t.file("f", b"content")
    os.mkdir("d"), t.file("d/inner")
    for mode in (0o000, 0o200, 0o400):
        t(os.chmod, "f", mode)
        for flags in (os.O_RDONLY, os.O_WRONLY):
            t.open("f", flags)
    for mode in (0o000, 0o500, 0o300, 0o100, 0o400):
        t(os.chmod, "d", mode), t(lambda: sorted(os.listdir("d")), label="list"), t(os.stat, "d/inner", value=False), t(os.close, t.open("d/new", os.O_CREAT | os.O_WRONLY)) if mode == 0o300 else t.open("d/new2", os.O_CREAT | os.O_WRONLY)
    t(os.chmod, "d", 0o700), t.note("left", sorted(os.listdir("d")))


@case("permissions", "a file that was opened before its mode went", setup=own)
def _(t):
    t.file("f", b"content")
    fd = t.open("f", os.O_RDWR)
    t(os.fchmod, fd, 0), t(os.pread, fd, 10, 0), t(os.pwrite, fd, b"C", 0), t(os.fsync, fd), t(os.ftruncate, fd, 3), t(os.pread, fd, 10, 0), t(os.close, fd), t.open("f", os.O_RDONLY), t.stat("f")


@case("permissions", "who owns what an ordinary user makes", setup=lambda: (own(), make("sgid", 0o2777, 0, 12345, directory=True)))
def _(t):
    t.file("f"), os.mkdir("d"), os.symlink("x", "l"), os.mkfifo("p"), t.file("sgid/f"), os.mkdir("sgid/d")
    for name in ("f", "d", "l", "p", "sgid/f", "sgid/d"):
        t(lambda name: (os.lstat(t.inside(name)).st_uid, os.lstat(t.inside(name)).st_gid, stat.S_IMODE(os.lstat(t.inside(name)).st_mode)), name, label=f"owner of {name}")


@case("permissions", "owners as they are shown", setup=foreign_files,
      ids=Cannot("ids are hidden: what is not nobody's is shown as nobody's", r"^owner of (root|group)-644: \(65534, 65534\) in place of "))
def _(t):
    for name in ("root-644", "mine-644", "group-644"):
        t(lambda name: (os.stat(name).st_uid, os.stat(name).st_gid), name, label=f"owner of {name}")


def suid_files():
    own()
    for mode in (0o6777, 0o4766, 0o2776, 0o2766):
        make(f"f{mode:o}", mode)
        make(f"m{mode:o}", mode, NOBODY, NOBODY)


@case("setuid", "a write by an ordinary user clears them", setup=suid_files, service=cleared_by_chmod(r"^write\(fd, b'x'\): EPERM in place of 1$|'f\d+'"))
def _(t):
    for name in sorted(os.listdir(".")):
        fd = t.open(name, os.O_WRONLY)
        if fd is not None:
            t(os.write, fd, b"x"), t(os.close, fd)
        t.stat(name)


@case("setuid", "a truncate by an ordinary user clears them", setup=suid_files, service=cleared_by_chmod(r"^truncate\('f\d+', 2\): EPERM in place of None$"))
def _(t):
    for name in sorted(os.listdir(".")):
        t(os.truncate, name, 2), t.stat(name)


@case("mknod", "devices by an ordinary user", setup=own)
def _(t):
    t(os.mknod, "null", stat.S_IFCHR | 0o666, os.makedev(1, 3)), t(os.mknod, "block", stat.S_IFBLK | 0o666, os.makedev(7, 0)), t(os.mkfifo, "p"), t(os.listdir, ".")


@case("link", "of what one may not write is the kernel's protected_hardlinks", setup=lambda: (own(), make("theirs", 0o644), make("writable", 0o666)))
def _(t):
    t(os.link, "theirs", "a"), t(os.link, "writable", "b"), t(os.listdir, ".", value=False)


@case("xattrs", "by an ordinary user", setup=foreign_files, service=NO_XATTRS)
def _(t):
    for name in ("root-000", "root-644", "root-666", "mine-000", "mine-644"):
        t(os.setxattr, name, "user.a", b"1"), t(os.getxattr, name, "user.a"), t(os.listxattr, name), t(os.removexattr, name, "user.a"), t(os.setxattr, name, "trusted.a", b"1"), t(os.getxattr, name, "trusted.a")


test_parity = parity_test(__name__)


# --- a mode that is not in the sandbox yet (-o writeback): as if it were

def write(path, content=b"content", flags=os.O_CREAT | os.O_EXCL, mode=0o644):
    fd = os.open(path, os.O_WRONLY | flags, mode)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def read(path):
    with open(path, "rb", buffering=0) as file:
        return file.read()


def closed_directories(sent):
    """What a chmod takes of a directory, with something in it that is there already, or not."""
    os.makedirs("d/sub"), write("d/f"), write("d/g", b"g" * 500_000)
    sent()
    os.chmod("d", 0o500)
    said = [code(os.mkdir, "d/x"), code(write, "d/new"), code(os.symlink, "x", "d/l"), code(os.mkfifo, "d/p"), code(os.link, "d/f", "d/h"), code(os.link, "d/f", "h"), code(os.unlink, "d/f"),
            code(os.rmdir, "d/sub"), code(os.rename, "d/f", "d/x"), code(os.rename, "d/f", "out"), code(os.rename, "h", "d/h"), os.access("d", os.W_OK), sorted(os.listdir("d")), code(write, "d/f", b"C", 0)]
    os.chmod("d", 0o300)
    said += [code(os.listdir, "d"), code(write, "d/new"), code(os.unlink, "d/new"), os.access("d", os.R_OK), os.access("d", os.W_OK | os.X_OK)]
    os.chmod("d", 0o000)
    said += [code(os.listdir, "d"), code(os.mkdir, "d/y"), os.access("d", os.X_OK)]
    os.chmod("d", 0o700)
    os.mkdir("d/y")
    os.chmod("d", 0o000)
    return said


def closed_files(sent):
    for mode in (0o000, 0o200, 0o400, 0o444):
        write(f"f{mode:o}"), os.chmod(f"f{mode:o}", mode)
        write(f"n{mode:o}", mode=mode)
    sent()
    for mode in (0o000, 0o200, 0o400, 0o444):
        write(f"l{mode:o}"), os.chmod(f"l{mode:o}", mode)
    return [(name, code(read, name), code(write, name, b"C", 0), code(os.truncate, name, 3), [os.access(name, what) for what in (os.R_OK, os.W_OK, os.X_OK)]) for name in sorted(os.listdir("."))]


def opened_again(sent):
    """What a chmod gives is there for what is done next."""
    os.mkdir("d", 0o500), write("f", mode=0o400), write("script"), write("secret", mode=0)
    sent()
    os.chmod("d", 0o700), os.chmod("f", 0o600), os.chmod("script", 0o755), os.chmod("secret", 0o600)
    said = [code(write, "d/f"), code(os.mkdir, "d/sub", 0o500), code(os.mkdir, "d/sub/no"), code(write, "f", b"C", 0), os.access("script", os.X_OK), code(read, "secret")]
    os.chmod("d/sub", 0o700)
    said += [code(write, "d/sub/f"), code(os.unlink, "d/sub/f")]
    os.chmod("d/sub", 0o500), os.chmod("d/sub", 0o700)
    return [*said, code(write, "d/sub/g"), code(os.unlink, "d/f"), read("f")]


def open_descriptors(sent):
    """They keep their rights."""
    files = [os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode) for name, mode in (("made", 0o444), ("closed", 0o644), ("empty", 0o400), ("large", 0o444))]
    os.write(files[3], b"L" * 600_000)
    sent()
    os.write(files[0], b"one"), os.write(files[1], b"two")
    os.fchmod(files[1], 0)
    sent()
    os.write(files[0], b" more"), os.write(files[1], b" more"), os.fsync(files[0]), os.write(files[0], b"."), os.write(files[3], b"M" * 600_000)
    said = [os.pread(each, 10, 0) for each in files]
    for each in files:
        os.close(each)
    write("at once", b"A" * 600_000, mode=0o444)
    return said, [code(os.open, name, os.O_WRONLY) for name in ("made", "closed", "empty", "large", "at once")]


def closed_above(sent):
    """All of it arrives, whatever was closed over it meanwhile."""
    os.makedirs("d/e/f"), write("d/e/f/large", b"L" * 900_000), write("d/e/small"), write("d/e/f/small", mode=0o444)
    os.chmod("d/e/f", 0), os.chmod("d/e", 0o100), os.utime("d", ns=(10**18, 10**18)), os.chmod("d", 0)


@pytest.mark.parametrize("before", ["nothing sent", "sent", "on its way"])
@pytest.mark.parametrize("program", [closed_directories, closed_files, opened_again, open_descriptors, closed_above], ids=lambda each: each.__name__)
def test_a_mode_that_waits(mounts, scratch, program, before):
    if os.getuid() != 0:
        pytest.skip("needs root to look at what is closed")
    mount = mounts.ordinary_behind
    name = f"{program.__name__}-{before.replace(' ', '-')}"
    local, there = scratch / f"local-{name}", mount.inside / name
    made = mount.double.root / f"made-{name}"  # seen by the mount when it is nobody's
    for place in (local, made):
        place.mkdir(mode=0o700), os.chown(place, NOBODY, NOBODY)
    made.rename(there)
    eventually((mount.path / name).exists, "the new directory is seen through the mount")

    def sent():
        if before == "sent":
            directory = os.open(".", os.O_RDONLY)
            os.fsync(directory), os.close(directory)
        elif before == "on its way":
            time.sleep(0.15)

    def play(place):
        def run():
            os.umask(0o022), os.chdir(place), os.mkdir("top"), os.chdir("top")
            try:
                return program(sent)
            finally:
                os.chdir("/")
        return parity.in_child(run, PATIENCE, NOBODY)
    expected = play(local)
    assert play(mount.path / name) == expected
    mount.e2bfs("flush", mount.path)
    assert not parity.tree_differences("inside the sandbox", parity.snapshot(local / "top"), parity.snapshot(there / "top"))


@pytest.mark.parametrize("wait", [0, 0.11])
def test_what_is_read_only_is_sent_by_the_next_mount(mounts, wait):
    if os.getuid() != 0:
        pytest.skip("needs root to play another user in the sandbox")
    mount = mounts.ordinary_behind
    made, top = mount.double.root / f"made-{wait}", mount.path / f"killed-{wait}"
    made.mkdir(mode=0o700), os.chown(made, NOBODY, NOBODY), made.rename(mount.inside / top.name)
    eventually(top.exists, "the new directory is seen through the mount")

    def run():
        os.mkdir(top / "d")
        for size in (0, 900, 600_000):
            write(top / f"d/{size}", b"r" * size, mode=0o444)
    parity.in_child(run, PATIENCE, NOBODY)
    time.sleep(wait)
    process = mount.status()["pid"]
    os.kill(process, signal.SIGKILL)
    eventually(lambda: is_dead(process), "it is dead")
    mount.mount()
    found = {path.name: (path.stat().st_size, stat.S_IMODE(path.stat().st_mode)) for path in (mount.inside / top.name / "d").iterdir()}
    assert found == {str(size): (size, 0o444) for size in (0, 900, 600_000)}
