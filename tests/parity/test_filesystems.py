"""Parity where another file system, a tmpfs, is mounted at `other` below the directory: inside the sandbox, and locally."""
import os, subprocess

import calls
from calls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, RENAME_EXCHANGE, RENAME_NOREPLACE, Directory
from conftest import parity_test
from parity import Cannot, case


def below(name, **marks):
    return case("another file system below", name, filesystem=True, **marks)


def tool(t, *command):
    t(lambda: subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode, label=" ".join(command))


@below("rename and link across are EXDEV, its root is EBUSY")
def _(t):
    t.file("f"), t.file("other/g"), os.mkdir("d"), os.mkdir("other/e"), os.symlink("f", "l"), os.mkdir("empty")
    for source, target in (("f", "other/f"), ("f", "other/g"), ("other/g", "g"), ("other/g", "f"), ("d", "other/d"), ("d", "other/e"), ("other/e", "e"), ("l", "other/l"),
                           ("other", "o"), ("empty", "other"), ("f", "other")):
        t(os.rename, source, target)
    for source, target in (("f", "other/f"), ("other/g", "g"), ("l", "other/l"), ("f", "other/g"), ("missing", "other/x")):
        t(calls.linkat, source, target, 0)
    t(os.rmdir, "other"), t(os.unlink, "other"), t(os.mkdir, "other"), t(os.rename, "other/g", "other/h"), t(os.link, "other/h", "other/i")


@below("rename across of what is missing, and without replacing over what exists",
       every=Cannot("here it is one file system to the kernel, which looks for the files first", r"^rename\(.*: ENOENT in place of EXDEV$|^renameat2\(.*: EEXIST in place of EXDEV$"))
def _(t):
    t.file("f"), t.file("other/g")
    t(os.rename, "missing", "other/x"), t(os.rename, "other/missing", "x"), t(calls.renameat2, "f", "other/g", RENAME_NOREPLACE)


@below("NOREPLACE across is EXDEV", service=Cannot("without replacing: done by link and unlink, and whatever refuses the link is EINVAL", r"^renameat2\(.*: EINVAL in place of EXDEV$", "without replacing"))
def _(t):
    t.file("f")
    t(calls.renameat2, "f", "other/x", RENAME_NOREPLACE)


@below("EXCHANGE across is EXDEV", service=Cannot("exchange is not possible with commands", r"^renameat2\(.*: EINVAL in place of EXDEV$", "exchanging"))
def _(t):
    t.file("f"), t.file("other/g")
    t(calls.renameat2, "f", "other/g", RENAME_EXCHANGE), t(calls.renameat2, "other/g", "f", RENAME_EXCHANGE)


@below("inode numbers are stable, and none is that of another file")
def _(t):
    names = [f"{place}{kind}{number}" for place in ("", "other/") for kind in ("f", "d") for number in range(30)]
    for name in names:
        os.mkdir(name) if os.path.basename(name).startswith("d") else t.file(name)
    names += [".", "other"]

    def numbers():
        return {name: (os.lstat(name).st_dev, os.lstat(name).st_ino) for name in names}
    before = numbers()
    t.note("unlike", len(set(before.values())) == len(names))
    for top in (".", "other"):
        listed, entries = Directory(top), {}
        while entry := listed.next():
            entries[os.fsdecode(entry[0])] = entry[1]
        t.note(f"listed in {top}", all(entries[name] == os.lstat(f"{top}/{name}").st_ino for name in entries if name not in (".", "..", "other")))
    os.rename("other/f0", "other/moved"), os.chmod("other/f1", 0o600), os.unlink("other/f2"), t.file("other/f2", b"another")
    names.remove("other/f0"), names.remove("other/f2")
    after = numbers()
    t.note("stable", [name for name in names if after[name] != before[name]])
    t.note("moved", os.lstat("other/moved").st_ino == before["other/f0"][1])


@below("cp and mv across")
def _(t):
    os.mkdir("d"), os.mkdir("d/e"), t.file("d/f", b"content" * 30_000), t.file("d/e/g", b"g", 0o640), os.symlink("f", "d/l"), os.utime("d/f", ns=(1_000_000_001, 1_500_000_002))
    t.file("other/h", b"h" * 100_000), t.file("over", b"old")
    tool(t, "cp", "-a", "d", "other/copy"), tool(t, "mv", "d", "other/moved"), tool(t, "mv", "other/h", "over"), tool(t, "cp", "-a", "other/copy", "back"), tool(t, "mv", "other/copy/f", ".")
    tool(t, "rm", "-r", "other/copy")
    t.note("left", sorted(os.listdir("other")))


@below("content, small and large, in place and anew")
def _(t):
    content = bytes(range(256)) * 20_000  # far more than goes in a request
    t.file("other/f", content)
    fd = t.open("other/f", os.O_RDWR)
    t(os.pwrite, fd, b"small", 1_000_000), t(os.fsync, fd), t(os.pwrite, fd, content[:600_000], 4_900_000), t(os.ftruncate, fd, 5_400_000), t(os.close, fd)
    t.read("other/f"), t.stat("other/f"), t.read(t.inside("other/f"))
    fd = t.open("other/f", os.O_WRONLY | os.O_APPEND)
    t(os.write, fd, content[:300_000]), t(os.close, fd), t.read(t.inside("other/f"))
    fd = t.open("other/f", os.O_WRONLY | os.O_TRUNC)
    t(os.write, fd, content[:70_000]), t(os.close, fd), t.read(t.inside("other/f"))


@below("a file that loses its name", service=Cannot("each name is a file of its own to the caches", r"^(fsync|close)\(fd\): ESTALE in place of None$|^nlink\(|^read_file\('other/g'\)|: 'other/g': content: ", "one file"))
def _(t):
    t.file("other/f", b"0123456789" * 10_000), t(os.link, "other/f", "other/g"), t.nlink("other/g")
    fd = t.open("other/f", os.O_RDWR)
    t(os.unlink, "other/f"), t(os.pwrite, fd, b"CHANGED", 50_000), t(os.pread, fd, 20, 49_995), t(os.fsync, fd), t(os.close, fd), t.read("other/g")


@below("holes and allocation", service=Cannot("the service tier cannot allocate or punch", r"^fallocate\(.*: ENOTSUP in place of None$|^lseek: |: 'other/f': content: ", "allocating"))
def _(t):
    t.file("other/f", b"x" * 40_960)
    fd = t.open("other/f", os.O_RDWR)
    t(calls.fallocate, fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 8192, 8192), t(lambda: os.lseek(fd, 8192, os.SEEK_DATA), label="lseek"), t(os.close, fd)


@below("no space there", inside=True)
def _(t):
    t.file("other/f", b"old")
    fd = t.open("other/f", os.O_WRONLY)

    def fill():
        for number in range(70):
            os.pwrite(fd, b"n" * (1 << 20), number << 20)
        os.fsync(fd)
    t(fill, label="more than there is room for")
    t(lambda: os.ftruncate(fd, 3), label="given up"), t(os.pwrite, fd, b"new", 0), t(os.close, fd), t.read("other/f"), t.read(t.inside("other/f"))


@below("changes inside are seen", inside=True)
def _(t):
    t(os.listdir, "other")
    t.file(t.inside("other/f"), b"one"), t.read("other/f"), os.rename(t.inside("other/f"), t.inside("other/g")), t(os.listdir, "other"), t.read("other/g"), t.open("other/f", os.O_RDONLY)


@below("statfs", every=Cannot("statfs tells of the mounted directory's file system, wherever it is asked", r"^size: "))
def _(t):
    t.note("size", os.statvfs("other").f_blocks * os.statvfs("other").f_frsize)


test_parity = parity_test(__name__)
