"""What system calls answer on a mount, beside what they answer on a local directory."""
import errno, mmap, os, stat, subprocess, threading, time

import pytest

from conftest import MOUNT_OPTIONS, Mount, code, eventually, renameat2, run

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


def furnish(top):
    (top / "file").write_text("content")
    (top / "other").write_text("other")
    (top / "empty").mkdir()
    (top / "empty2").mkdir()
    (top / "full").mkdir()
    (top / "full/inner").write_text("inner")
    os.symlink("nowhere", top / "dangling")
    os.symlink("file", top / "link")
    os.symlink("full", top / "dirlink")
    os.symlink("loop", top / "loop")


def open_close(path, flags, mode=0o644):
    os.close(os.open(path, flags, mode))


CASES = {
    "unlink a directory": lambda t: os.unlink(t / "empty"),
    "unlink nothing": lambda t: os.unlink(t / "missing"),
    "unlink a link": lambda t: os.unlink(t / "dirlink"),
    "unlink below a file": lambda t: os.unlink(t / "file/x"),
    "rmdir a file": lambda t: os.rmdir(t / "file"),
    "rmdir a full one": lambda t: os.rmdir(t / "full"),
    "rmdir nothing": lambda t: os.rmdir(t / "missing"),
    "rmdir a link to a directory": lambda t: os.rmdir(t / "dirlink"),
    "rmdir an empty one": lambda t: os.rmdir(t / "empty"),
    "mkdir over a file": lambda t: os.mkdir(t / "file"),
    "mkdir over a directory": lambda t: os.mkdir(t / "empty"),
    "mkdir over a dangling link": lambda t: os.mkdir(t / "dangling"),
    "mkdir without a parent": lambda t: os.mkdir(t / "missing/x"),
    "mkdir below a file": lambda t: os.mkdir(t / "file/x"),
    "symlink over a file": lambda t: os.symlink("x", t / "file"),
    "link over a file": lambda t: os.link(t / "other", t / "file"),
    "link of a directory": lambda t: os.link(t / "empty", t / "x"),
    "link of nothing": lambda t: os.link(t / "missing", t / "x"),
    "rename nothing": lambda t: os.rename(t / "missing", t / "x"),
    "rename over a file": lambda t: os.rename(t / "other", t / "file"),
    "rename a file over an empty directory": lambda t: os.rename(t / "file", t / "empty"),
    "rename a directory over a file": lambda t: os.rename(t / "empty", t / "file"),
    "rename a directory over an empty one": lambda t: os.rename(t / "full", t / "empty"),
    "rename a directory over a full one": lambda t: os.rename(t / "empty", t / "full"),
    "rename into itself": lambda t: os.rename(t / "full", t / "full/x"),
    "rename to no parent": lambda t: os.rename(t / "file", t / "missing/x"),
    "rename onto itself": lambda t: os.rename(t / "file", t / "file"),
    "rename a link": lambda t: os.rename(t / "dangling", t / "file"),
    "open nothing": lambda t: open_close(t / "missing", os.O_RDONLY),
    "open exclusively what exists": lambda t: open_close(t / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "open exclusively a dangling link": lambda t: open_close(t / "dangling", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "create through a dangling link": lambda t: open_close(t / "dangling", os.O_CREAT | os.O_WRONLY),
    "open a directory for writing": lambda t: open_close(t / "empty", os.O_WRONLY),
    "open a file as a directory": lambda t: open_close(t / "file", os.O_RDONLY | os.O_DIRECTORY),
    "open a link without following": lambda t: open_close(t / "link", os.O_RDONLY | os.O_NOFOLLOW),
    "open a loop": lambda t: open_close(t / "loop", os.O_RDONLY),
    "open below a file": lambda t: open_close(t / "file/x", os.O_RDONLY),
    "create without a parent": lambda t: open_close(t / "missing/x", os.O_CREAT | os.O_WRONLY),
    "create and truncate": lambda t: open_close(t / "file", os.O_CREAT | os.O_TRUNC | os.O_WRONLY),
    "list a file": lambda t: os.listdir(t / "file"),
    "readlink of a file": lambda t: os.readlink(t / "file"),
    "truncate a directory": lambda t: os.truncate(t / "empty", 0),
    "truncate nothing": lambda t: os.truncate(t / "missing", 0),
    "chmod nothing": lambda t: os.chmod(t / "missing", 0o600),
    "chmod": lambda t: os.chmod(t / "file", 0o640),
    "a name of 255 bytes": lambda t: (t / ("n" * 255)).write_text("x"),
    "a name of 256 bytes": lambda t: (t / ("n" * 256)).write_text("x"),
    "mkdir of 256 bytes": lambda t: os.mkdir(t / ("n" * 256)),
}


def outline(top):
    return sorted((os.fsencode(name), stat.S_IFMT(os.lstat(top / name).st_mode)) for name in os.listdir(top))


def test_errno_and_effect_are_those_of_a_local_disk(place):
    different = []
    for number, (name, call) in enumerate(CASES.items()):
        local, here = place.local / str(number), place.here / str(number)
        for top in (local, here):
            top.mkdir()
            furnish(top)
        expected, found = code(call, local), code(call, here)
        if (expected, outline(local)) != (found, outline(place.there / str(number))):
            different.append(f"{name}: {found} in place of {expected}, {outline(place.there / str(number))}")
        elif outline(here) != outline(local):
            different.append(f"{name}: the mount shows {outline(here)}")
    assert not different, "\n".join(different)


def test_rename_noreplace(place):
    furnish(place.here)
    assert renameat2(place.here / "file", place.here / "other", RENAME_NOREPLACE) == errno.EEXIST
    assert (place.there / "other").read_text() == "other"
    assert renameat2(place.here / "file", place.here / "fresh", RENAME_NOREPLACE) == 0
    assert (place.there / "fresh").read_text() == "content"
    assert not (place.there / "file").exists()


NAMES = [b"new\nline", b"back\\slash", b"'quote\"s`", b"-n", b"--help", b" lead", b"trail ", b"trail\n", b"$HOME", b"*", b"%41%2f", b"\xff\xfe bytes", b"caf\xe9",
         "日本語".encode(), b"...", b"a;b&c|d", b"\x01control\x7f"]


def test_odd_names(place):
    here, there = os.fsencode(place.here), os.fsencode(place.there)
    for name in NAMES:
        with open(os.path.join(here, name), "xb") as file:
            file.write(name)
        os.mkdir(os.path.join(here, name + b".d"))
    assert sorted(os.listdir(here)) == sorted(os.listdir(there)) == sorted(NAMES + [name + b".d" for name in NAMES])
    for name in NAMES:
        with open(os.path.join(there, name), "rb") as file:
            assert file.read() == name
        with open(os.path.join(here, name), "rb") as file:
            assert file.read() == name
        os.rename(os.path.join(here, name), os.path.join(here, name + b".d", name))
        with open(os.path.join(here, name + b".d", name), "ab") as file:
            file.write(b"+")
        with open(os.path.join(there, name + b".d", name), "rb") as file:
            assert file.read() == name + b"+"
        os.unlink(os.path.join(here, name + b".d", name))
        os.rmdir(os.path.join(here, name + b".d"))
    assert os.listdir(there) == []


def test_exclusive_create_is_the_sandboxes(place):
    (place.here / "warm").exists()
    assert not (place.here / "lock").exists()  # a negative entry that is about to be wrong
    (place.there / "lock").touch()
    assert code(open_close, place.here / "lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY) == "EEXIST"
    (place.there / "lockdir").mkdir()
    assert code(os.mkdir, place.here / "lockdir") == "EEXIST"


def test_a_created_file_is_there_before_it_is_closed(place):
    with open(place.here / "f", "x") as file:
        assert (place.there / "f").exists()
        file.write("later")
        file.flush()
    assert (place.there / "f").read_text() == "later"


def test_truncate_and_holes(place):
    path, there = place.here / "f", place.there / "f"
    path.write_bytes(b"x" * 10_000)
    os.truncate(path, 5_000)
    assert there.read_bytes() == b"x" * 5_000
    os.truncate(path, 8_000)
    assert there.read_bytes() == path.read_bytes() == b"x" * 5_000 + bytes(3_000)
    with open(path, "r+b") as file:
        file.truncate(100)
        file.seek(200)
        file.write(b"tail")
        file.flush()
        assert os.fstat(file.fileno()).st_size == 204
        file.seek(0)
        assert file.read() == b"x" * 100 + bytes(100) + b"tail"
    assert there.read_bytes() == b"x" * 100 + bytes(100) + b"tail"
    path.write_bytes(b"")
    assert there.read_bytes() == b""


def test_small_changes_of_a_large_file(place):
    content = bytearray(os.urandom(1 << 20))
    (place.there / "f").write_bytes(content)
    inode = os.stat(place.there / "f").st_ino
    eventually(lambda: (place.here / "f").exists(), "the file is seen")
    with open(place.here / "f", "r+b") as file:
        for offset in (0, 4_000, 70_001, 999_999):
            file.seek(offset)
            file.write(b"0123456789")
            content[offset:offset + 10] = b"0123456789"
        file.seek(0)
        assert file.read() == content
    assert (place.there / "f").read_bytes() == content
    assert os.stat(place.there / "f").st_ino == inode


def test_overwriting_keeps_the_inode_and_its_mode(place):
    (place.there / "f").write_text("old content that is longer")
    os.chmod(place.there / "f", 0o640)
    before = os.stat(place.there / "f")
    eventually(lambda: (place.here / "f").exists(), "the file is seen")
    (place.here / "f").write_text("new")
    after = os.stat(place.there / "f")
    assert (place.there / "f").read_text() == "new"
    assert (before.st_ino, before.st_mode, before.st_uid) == (after.st_ino, after.st_mode, after.st_uid)


def test_old_content_stays_until_the_new_is_there(place):
    """O_TRUNC and a pause before the write: a program in the sandbox never sees less than the old or the new."""
    (place.there / "f").write_text("old")
    eventually(lambda: (place.here / "f").exists(), "the file is seen")
    with open(place.here / "f", "w") as file:
        assert (place.there / "f").read_text() == "old"
        file.write("new")
    assert (place.there / "f").read_text() == "new"


def test_modes_and_umask(place):
    old = os.umask(0o027)
    try:
        open_close(place.here / "f", os.O_CREAT | os.O_WRONLY, 0o666)
        os.mkdir(place.here / "d", 0o777)
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(place.there / "f").st_mode) == 0o640
    assert stat.S_IMODE(os.stat(place.there / "d").st_mode) == 0o750
    for mode in (0o600, 0o755, 0o444, 0o1777):
        os.chmod(place.here / "d", mode)
        assert stat.S_IMODE(os.stat(place.there / "d").st_mode) == mode == stat.S_IMODE(os.stat(place.here / "d").st_mode)


def test_times(place):
    path, there = place.here / "f", place.there / "f"
    path.write_text("x")
    os.utime(path, ns=(1_000_000_000_111_111_111, 1_000_000_002_222_222_222))
    assert os.stat(there).st_mtime_ns == os.stat(path).st_mtime_ns == 1_000_000_002_222_222_222
    run("touch", path)
    assert abs(os.stat(there).st_mtime - os.stat(path).st_mtime) < 1e-6
    assert os.stat(there).st_mtime > 1_600_000_000
    os.symlink("f", place.here / "l")
    os.utime(place.here / "l", ns=(5_000_000_000, 6_000_000_000), follow_symlinks=False)
    assert os.lstat(place.there / "l").st_mtime_ns == 6_000_000_000


def test_fstat_after_the_last_write_stays_true(place):
    """git rehashes every file otherwise. A large file's ctime is told where all of it was sent meanwhile (docs/semantics.md)."""
    for size in 5_000, 3 << 20:
        with open(place.here / f"f{size}", "wb") as file:
            file.write(b"x" * size)
            file.flush()
            before = os.fstat(file.fileno())
        after = os.stat(place.here / f"f{size}")
        there = os.stat(place.there / f"f{size}")
        assert (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)
        assert there.st_mtime_ns == before.st_mtime_ns
        assert before.st_ctime_ns == after.st_ctime_ns
        if place.mount.status()["tier"] == "syscall":
            assert there.st_ctime_ns == before.st_ctime_ns


def test_changes_made_inside_are_seen(place):
    (place.there / "f").write_text("one")
    eventually(lambda: code(lambda: (place.here / "f").read_text()) == "ok", "the file is seen")
    assert (place.here / "f").read_text() == "one"
    (place.there / "f").write_text("two, longer")
    eventually(lambda: (place.here / "f").read_text() == "two, longer", "the new content is seen")
    os.rename(place.there / "f", place.there / "g")
    eventually(lambda: os.listdir(place.here) == ["g"], "the rename is seen")
    os.remove(place.there / "g")
    eventually(lambda: not (place.here / "g").exists(), "the removal is seen")


def test_a_file_that_a_program_inside_writes_is_never_shown_as_it_was(place):
    """As it creates it, too: who reads after the writer's close reads what was written."""
    name = place.there / "growing"
    with open(name, "w") as writer:
        eventually(lambda: (place.here / "growing").exists(), "it is seen")
        writer.write("x")
        writer.flush()
        eventually(lambda: (place.here / "growing").stat().st_size == 1, "it is seen to grow")
        if place.mount.status()["tier"] != "syscall":
            return  # believes attributes for a second
        for size in range(2, 100):
            writer.write("x")
            writer.flush()
            assert (place.here / "growing").stat().st_size == size
            assert (place.here / "growing").read_text() == "x" * size
    eventually(lambda: (place.here / "growing").read_text() == "x" * 99, "the close is seen")


def test_an_unlinked_file_is_still_written_and_read(place):
    with open(place.here / "f", "w+b") as file:
        file.write(b"kept")
        file.flush()
        os.unlink(place.here / "f")
        file.write(b" on")
        file.seek(0)
        assert file.read() == b"kept on"
        assert os.fstat(file.fileno()).st_size == 7
    assert os.listdir(place.there) == []


def test_a_file_renamed_while_it_is_written(place):
    (place.here / "a").mkdir()
    with open(place.here / "a/f", "wb") as file:
        file.write(b"one ")
        file.flush()
        os.rename(place.here / "a/f", place.here / "a/g")
        os.rename(place.here / "a", place.here / "b")
        file.write(b"two")
    assert (place.there / "b/g").read_bytes() == b"one two"
    assert os.listdir(place.there) == ["b"]


def test_links_that_lead_out_are_not_followed(place):
    os.symlink("/etc/passwd", place.there / "absolute")
    os.symlink("../" * 30 + "etc/passwd", place.there / "relative")
    os.symlink(place.there / "inside", place.there / "within")
    (place.there / "inside").write_text("inside")
    eventually(lambda: len(os.listdir(place.here)) == 4, "all entries are listed")
    for name in ("absolute", "relative"):
        assert not os.path.exists(place.here / name), os.readlink(place.here / name)
        assert os.path.islink(place.here / name)
    assert (place.here / "within").read_text() == "inside"
    # Creating the shown text gives the original back: cp -a keeps links.
    run("cp", "-a", place.here / "absolute", place.here / "copy")
    assert os.readlink(place.there / "copy") == "/etc/passwd"


def test_symlinks_are_raw_inside(place):
    for text in ("file", "./x", "../up", "nowhere", "d/e", "."):
        os.symlink(text, place.here / "l")
        assert os.readlink(place.there / "l") == text == os.readlink(place.here / "l")
        assert os.lstat(place.here / "l").st_size == len(text)
        os.unlink(place.here / "l")


def test_hard_links(place):
    (place.here / "a").write_text("shared")
    os.link(place.here / "a", place.here / "b")
    assert os.stat(place.there / "a").st_ino == os.stat(place.there / "b").st_ino
    assert (place.here / "b").read_text() == "shared"
    os.unlink(place.here / "a")
    assert (place.there / "b").read_text() == "shared"


def test_a_large_directory(place):
    names = [f"entry-{i:05}" for i in range(3_000)]
    for name in names:
        (place.there / name).touch()
    eventually(lambda: len(os.listdir(place.here)) == 3_000, "all entries are listed")
    assert sorted(os.listdir(place.here)) == names


def test_a_fifo_hangs_nobody(place):
    os.mkfifo(place.there / "pipe")
    eventually(lambda: (place.here / "pipe").exists(), "the fifo is seen")
    assert stat.S_ISFIFO(os.stat(place.here / "pipe").st_mode)
    os.close(os.open(place.here / "pipe", os.O_RDONLY | os.O_NONBLOCK))
    run("ls", "-l", place.here)
    run("rm", place.here / "pipe")
    assert os.listdir(place.there) == []


def test_chown(place):
    (place.here / "f").write_text("x")
    os.chown(place.here / "f", os.getuid(), os.getgid())
    assert code(os.chown, place.here / "f", 12345, 12345) == "EPERM"
    assert os.stat(place.here / "f").st_uid == os.getuid()


def test_a_descriptor_that_stays_open_shows_what_was_changed_inside(place):
    if "tier=service" in MOUNT_OPTIONS:
        pytest.skip("the service tier is not told of changes")
    (place.there / "f").write_bytes(b"old" * 1000)
    eventually(lambda: (place.here / "f").exists(), "the file is seen")
    with open(place.here / "f", "rb", buffering=0) as opened, mmap.mmap(opened.fileno(), 3000, prot=mmap.PROT_READ) as mapped:
        assert os.pread(opened.fileno(), 3, 0) == b"old" == mapped[:3]
        inside = os.open(place.there / "f", os.O_WRONLY)
        os.pwrite(inside, b"new", 0)
        os.close(inside)
        # Neither looked up nor stat'ed, which would ask.
        eventually(lambda: os.pread(opened.fileno(), 3, 0) == b"new", "read shows the change")
        eventually(lambda: mapped[:3] == b"new", "the mapping shows the change")


def test_what_was_written_runs_inside_at_once(place):
    """The kernel releases a file some time after close(2), and what is open for writing cannot be run (ETXTBSY): a copy of the descriptor
    keeps the release away. Also of a file that only root could open for writing again: others would lose what they may still write."""
    mode = 0o555 if os.geteuid() == 0 else 0o755
    for content in (b"#!/bin/sh\nexit 7\n", b"#!/bin/sh\nexit 7\n#" + b"-" * (2 << 20)):
        made = os.open(place.here / "script", os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        copy = os.dup(made)
        try:
            os.write(made, content)
            os.close(made)
            assert run(place.there / "script", check=False).returncode == 7
            os.write(copy, b"\n# more")  # although its mode allows it no longer
        finally:
            os.close(copy)
        assert run(place.there / "script", check=False).returncode == 7
        assert (place.there / "script").read_bytes() == content + b"\n# more"
        (place.here / "script").unlink()


def test_xattrs(place):
    if "tier=service" in MOUNT_OPTIONS:
        pytest.skip("the service tier has none: test_xattrs_are_refused_not_faked_by_the_service_tier")
    file = place.here / "f"
    file.write_text("x")
    os.setxattr(file, "user.e2b.test", b"1\0\xff")
    assert os.getxattr(place.there / "f", "user.e2b.test") == b"1\0\xff" == os.getxattr(file, "user.e2b.test")
    assert os.listxattr(file) == ["user.e2b.test"]
    os.removexattr(file, "user.e2b.test")
    assert os.listxattr(place.there / "f") == [] == os.listxattr(file)
    assert code(os.getxattr, file, "security.capability") in ("ENODATA", "ENOTSUP")


def test_xattrs_are_refused_not_faked_by_the_service_tier(double):
    mount = Mount(double, "service-xattrs", options=["tier=service"])
    try:
        (mount.path / "f").write_text("x")
        assert code(os.setxattr, mount.path / "f", "user.test", b"1") == "ENOTSUP"
        assert code(os.getxattr, mount.path / "f", "security.capability") in ("ENODATA", "ENOTSUP")
    finally:
        mount.close()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: marks files, and mounts inside the sandbox")


@needs_root
def test_what_may_not_be_written_is_refused_as_locally(place):
    if "tier=service" in MOUNT_OPTIONS:
        pytest.skip("envd does not tell the service tier of such marks")
    attempts = {
        "write": lambda path: open_close(path, os.O_WRONLY),
        "append": lambda path: open_close(path, os.O_WRONLY | os.O_APPEND),
        "truncate": lambda path: open_close(path, os.O_WRONLY | os.O_TRUNC | os.O_APPEND),
        "read": lambda path: open_close(path, os.O_RDONLY),
        "create": lambda path: open_close(path, os.O_WRONLY | os.O_CREAT),
        "access": lambda path: None if os.access(path, os.W_OK) else 1 / 0,
        "unlink": os.unlink,
        "chmod": lambda path: os.chmod(path, 0o600),
        "truncate by name": lambda path: os.truncate(path, 0),
    }

    def answer(call, path):
        try:
            return code(call, path)
        except ZeroDivisionError:
            return "no"

    for mark in "ia":
        # Before anybody looks: not every kernel tells of marks.
        name, tops = f"{mark}/file", (place.there, place.local)
        for top in tops:
            (top / mark).mkdir()
            (top / name).write_text("content")
            run("chattr", f"+{mark}", top / name)
        eventually((place.here / mark).is_dir, "the mount has been told of the new directory")
        try:
            for attempt, call in attempts.items():
                assert answer(call, place.here / name) == answer(call, place.local / name), (mark, attempt)
            if mark == "a":
                with open(place.here / name, "a") as file:
                    file.write(" and more")
            assert (place.there / name).read_text() == (place.here / name).read_text() == "content" + " and more" * (mark == "a")
        finally:
            for top in tops:
                run("chattr", f"-{mark}", top / name)
        eventually(lambda: answer(attempts["write"], place.here / name) == "ok", "it is seen that the mark is gone")


def answer_of(call, *arguments):
    """Who looks at what is no longer there is told so (ESTALE), until the name is looked up again: None."""
    try:
        return call(*arguments)
    except OSError as problem:
        assert problem.errno == errno.ESTALE
        return None


@needs_root
def test_what_is_mounted_inside_over_a_directory_in_use(place):
    if "tier=service" in MOUNT_OPTIONS:
        pytest.skip("the service tier is not told of changes")
    covered = place.there / "covered"
    (covered / "deep").mkdir(parents=True)
    (covered / "deep/below").write_text("below")
    eventually(lambda: (place.here / "covered/deep/below").exists(), "the file is seen")
    assert os.listdir(place.here / "covered") == ["deep"] and os.listdir(place.here / "covered/deep") == ["below"]

    def listed():
        return answer_of(os.listdir, place.here / "covered")
    run("mount", "-t", "tmpfs", "tmpfs", covered)
    try:
        eventually(lambda: listed() == [], "what is mounted there is seen")
        assert code(os.stat, place.here / "covered/deep/below") == "ENOENT"
        (place.here / "covered/new").write_text("new")
        assert (covered / "new").read_text() == "new"
        run("mount", "-o", "remount,ro", covered)
        eventually(lambda: not os.access(place.here / "covered/new", os.W_OK), "it is seen to be read-only")
        assert code(lambda: (place.here / "covered/new").write_text("x")) == "EROFS"
        assert code(lambda: (place.here / "covered/other").write_text("x")) == "EROFS"
        assert code(os.mkdir, place.here / "covered/d") == "EROFS"
        assert (place.here / "covered/new").read_text() == "new"
    finally:
        run("umount", "-l", covered)
    eventually(lambda: listed() == ["deep"], "what was below is seen again")
    assert (place.here / "covered/deep/below").read_text() == "below"


@needs_root
def test_what_changes_where_no_file_system_tells_is_seen_in_time(place, scratch):
    """Below a FUSE mount inside nobody is told of what is done behind it: there what is known is believed for attr_timeout only, and the kernel's
    pages go with it."""
    behind = scratch / f"behind-{place.here.name}"
    behind.mkdir()
    (behind / "f").write_text("old content")
    (place.there / "quiet").mkdir()
    # The number of a device that is gone is given to the next one, which may be of another kind.
    run("mount", "-t", "tmpfs", "tmpfs", place.there / "quiet")
    device = (place.there / "quiet").stat().st_dev
    (place.there / "quiet/told").touch()
    eventually(lambda: answer_of(os.listdir, place.here / "quiet") == ["told"], "what is mounted there is seen")
    run("umount", "-l", place.there / "quiet")
    eventually(lambda: answer_of(os.listdir, place.here / "quiet") == [], "what was below is seen again")
    # direct_io: or who has a file open inside reads its old pages, too.
    run("bindfs", "-o", "direct_io,attr_timeout=0,entry_timeout=0,negative_timeout=0", behind, place.there / "quiet")
    try:
        quiet = place.here / "quiet"
        print("the same device number:", (place.there / "quiet").stat().st_dev == device)
        eventually(lambda: answer_of(os.listdir, quiet) == ["f"], "what is mounted there is seen")
        with open(quiet / "f") as held:
            assert held.read() == "old content"
            (behind / "f").write_text("NEW CONTENT")  # in place, of the same size
            (behind / "g").write_text("g")
            eventually(lambda: (quiet / "f").read_text() == "NEW CONTENT", "the new content is seen")
            eventually(lambda: sorted(os.listdir(quiet)) == ["f", "g"], "the new name is seen")
            held.seek(0)
            assert held.read() == "NEW CONTENT"
        with open(quiet / "f", "r+b") as file, mmap.mmap(file.fileno(), 11) as pages:
            assert pages[:] == b"NEW CONTENT"
            (behind / "f").write_text("new Content")
            os.remove(behind / "g")
            eventually(lambda: (os.stat(quiet / "f"), pages[:])[1] == b"new Content", "the pages are new")
            eventually(lambda: os.listdir(quiet) == ["f"], "the removal is seen")
    finally:
        run("umount", "-l", place.there / "quiet")


def test_a_running_program_is_not_overwritten(place):
    """A local disk refuses the open; here nobody waits for it, and the write or the close is refused."""
    if "tier=service" in MOUNT_OPTIONS:
        pytest.skip("the service tier does not hold files open")
    sleep = (place.there / "sleep")
    sleep.write_bytes(open("/bin/sleep", "rb").read())
    sleep.chmod(0o755)
    eventually(lambda: (place.here / "sleep").exists(), "the file is seen")
    before = sleep.read_bytes()
    with subprocess.Popen([sleep, "60"]) as running:
        try:
            assert code(lambda: (place.here / "sleep").write_bytes(b"other")) == "ETXTBSY"
            eventually(lambda: (place.here / "sleep").read_bytes() == before, "the mount shows what is there")
        finally:
            running.kill()
    (place.here / "sleep").write_bytes(b"other")
    assert sleep.read_bytes() == b"other"


def test_the_kernels_own_files_answer_each_write(double):
    mount = Mount(double, "proc-writes", inside="/proc")
    try:
        if "syscall server" not in mount.status()["remote"]:
            pytest.skip("the service tier cannot write there")
        server = mount.status()["remote"]["syscall server"].split()[-1]  # a program's name is written by itself only
        with open(mount.path / server / "comm", "wb", buffering=0) as name:
            name.write(b"renamed")
            assert open(f"/proc/{server}/comm").read() == "renamed\n" == (mount.path / server / "comm").read_text()
        with open(mount.path / server / "oom_score_adj", "wb", buffering=0) as score:
            assert code(score.write, b"nonsense") == "EINVAL"
            assert score.write(b"500") == 3
        with open(mount.path / server / "timerslack_ns", "ab", buffering=0) as slack:
            assert slack.write(b"60000") == 5
        assert (mount.path / server / "timerslack_ns").read_text() == "60000\n"  # others may not even read it
        assert open(f"/proc/{server}/oom_score_adj").read() == "500\n"
        assert mount.status()["dirty_bytes"] == 0
    finally:
        mount.close()


def test_proc_files_are_read_to_the_end(double):
    mount = Mount(double, "proc", inside="/proc/sys/kernel")
    try:
        assert (mount.path / "ostype").read_text() == "Linux\n"
    finally:
        mount.close()


def test_read_only(double):
    mount = Mount(double, "readonly", ["ro"])
    try:
        (mount.inside / "f").write_text("x")
        eventually(lambda: (mount.path / "f").exists(), "the file is seen")
        assert (mount.path / "f").read_text() == "x"
        assert code(lambda: (mount.path / "f").write_text("y")) == "EROFS"
        assert code(os.unlink, mount.path / "f") == "EROFS"
        assert code(os.mkdir, mount.path / "d") == "EROFS"
        line = [line for line in open("/proc/self/mounts") if f" {mount.path} " in line][0]
        assert {"ro", "nosuid", "nodev"} <= set(line.split()[3].split(","))
    finally:
        mount.close()


def test_files_that_change_while_a_row_of_them_is_read(double, scratch):
    """Programs inside change small files in place and by rename, while one here reads them one after the other, again and again: each is
    one version, none older than one that was read before, and what was told of is never shown as it was."""
    mount = Mount(double, "row", MOUNT_OPTIONS)
    try:
        (mount.inside / "d").mkdir()
        names = [f"f{number:03}" for number in range(120)]
        written = dict.fromkeys(names, 0)

        def write(name, replace):
            written[name] += 1
            content = f"{name} {written[name]:08}\n" * 20
            path = mount.inside / "d" / name
            if replace:
                (mount.inside / "new").write_text(content)
                os.rename(mount.inside / "new", path)
            else:
                file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
                os.pwrite(file, content.encode(), 0)
                os.close(file)

        for name in names:
            write(name, False)
        seen = dict.fromkeys(names, 0)

        def content(name):
            while True:
                try:
                    return (mount.path / "d" / name).read_text()
                except OSError as problem:  # replaced between the open, which is not waited for, and its use
                    assert problem.errno in (errno.ESTALE, errno.ENOENT), problem

        def read(name):
            lines = set(content(name).splitlines())
            assert len(lines) == 1, (name, lines)
            found = lines.pop()
            assert found.startswith(name) and seen[name] <= int(found[5:]) <= written[name], (name, found, seen[name], written[name])
            seen[name] = int(found[5:])

        os.listdir(mount.path / "d")
        stop = threading.Event()

        def change():
            number = 0
            while not stop.is_set():
                number += 1
                write(names[number * 37 % len(names)], number % 3 == 0)
                time.sleep(0.001)

        changing = threading.Thread(target=change)
        changing.start()
        try:
            for _ in range(15):
                for name in names:
                    read(name)
        finally:
            stop.set()
            changing.join()
        eventually(lambda: [read(name) for name in names] and seen == written, "what was written last is read")
        if mount.status()["tier"] == "syscall":
            assert mount.status()["prefetch"]["files_used"] > 0
    finally:
        mount.close()
