"""The service tier in an image of busybox: no coreutils, no perl, and a shell that is not dash. The everyday things work all the same.

The sandbox's PATH leads to busybox's applets alone, and its scripts are run by busybox's sh.
"""
import hashlib, os, pathlib, shutil, subprocess, tempfile

import pytest

from conftest import ENVD_URL, Double, Mount, Place, digest_tree, eventually, renameat2, run
from test_tools import make_tree

# What no image of busybox alone has.
NOT_THERE = {"perl", "bash", "python", "python3"}


@pytest.fixture(scope="module")
def mount():
    if ENVD_URL:
        pytest.skip("chooses the sandbox's programs: a real envd has its own")
    busybox = shutil.which("busybox")
    if not busybox:
        pytest.fail("no busybox: install the Debian package busybox")
    base = pathlib.Path(tempfile.mkdtemp(prefix="e2bfs-busybox."))
    applets = base / "applets"
    applets.mkdir()
    for name in subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split():
        if name not in NOT_THERE:
            (applets / name).symlink_to(busybox)
    double = Double(base, "--command-path", str(applets))
    made = Mount(double, "m", ["tier=service"])
    yield made
    made.close()
    double.stop()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def place(mount, request):
    return Place(mount, request.node.name, mount.double.scratch)


def test_it_is_busybox(mount):
    remote = mount.status()["remote"]
    assert mount.status()["tier"] == "service"
    assert "perl" not in str(remote.get("tools", "")), remote


def test_names_and_content(place):
    here, there = place.here, place.there
    (here / "f").write_text("content\n")
    assert (there / "f").read_text() == "content\n" == (here / "f").read_text()
    with open(here / "f", "a") as file:
        file.write("more\n")
    assert (there / "f").read_text() == "content\nmore\n"
    with open(here / "f", "r+") as file:
        file.write("CON")
    assert (there / "f").read_text() == "CONtent\nmore\n"
    os.truncate(here / "f", 3)
    assert (there / "f").read_text() == "CON"
    os.chmod(here / "f", 0o640)
    assert os.stat(there / "f").st_mode & 0o7777 == 0o640
    os.utime(here / "f", (1_000_000_000, 1_000_000_001))
    assert int(os.stat(there / "f").st_mtime) == 1_000_000_001
    os.rename(here / "f", here / "g")
    os.link(here / "g", here / "h")
    os.symlink("g", here / "l")
    assert sorted(os.listdir(there)) == ["g", "h", "l"] and os.readlink(there / "l") == "g" == os.readlink(here / "l")
    os.mkdir(here / "d")
    with pytest.raises(IsADirectoryError):
        os.unlink(here / "d")
    with pytest.raises(FileExistsError):
        os.mkdir(here / "d")
    os.rename(here / "g", here / "d/g")
    with pytest.raises(OSError):
        os.rmdir(here / "d")
    os.unlink(here / "d/g")
    os.rmdir(here / "d")
    for name in ("h", "l"):
        os.unlink(here / name)
    assert os.listdir(there) == []


def test_odd_names(place):
    here, there = os.fsencode(place.here), os.fsencode(place.there)
    names = [b"-rf", b"a b", b"new\nline", b"quote'\"", b"back\\slash", b"$HOME", b"*", b"\xff\xfe"]
    for name in names:
        with open(os.path.join(here, name), "xb") as file:
            file.write(name)
        with open(os.path.join(there, name), "rb") as file:
            assert file.read() == name
    eventually(lambda: sorted(os.listdir(here)) == sorted(names), "all are listed")
    for name in names:
        os.unlink(os.path.join(here, name))
    assert os.listdir(there) == []


def test_trees(place):
    source = make_tree(place.local / "tree", directories=2, files=3)
    run("cp", "-a", source, place.here / "copy")
    assert digest_tree(place.there / "copy") == digest_tree(source)
    run("tar", "-C", place.here, "-cf", place.local / "tar", "copy")
    run("tar", "-C", place.here, "--transform", "s,^copy,out,", "-xpf", place.local / "tar")
    assert digest_tree(place.there / "out") == digest_tree(source)
    run("rm", "-r", place.here / "copy", place.here / "out")
    assert os.listdir(place.there) == []


def test_git(place):
    run("git", "init", "-q", place.here)
    (place.here / "f").write_text("x\n")
    run("git", "-C", place.here, "add", "f")
    run("git", "-C", place.here, "commit", "-qm", "first")
    assert run("git", "-C", place.here, "status", "--porcelain").stdout == ""
    run("git", "-C", place.here, "fsck", "--strict")


def test_a_larger_file_and_changes_in_it(place):
    content = bytearray(os.urandom(3_000_000))
    (place.here / "f").write_bytes(content)
    with open(place.here / "f", "r+b") as file:
        for offset in (0, 70_001, 2_999_990):
            file.seek(offset)
            file.write(b"0123456789")
            content[offset:offset + 10] = b"0123456789"
    assert hashlib.sha256((place.there / "f").read_bytes()).digest() == hashlib.sha256(content).digest()
    assert (place.here / "f").read_bytes() == content


def test_exclusive_names(place):
    (place.here / "a").write_text("a")
    (place.there / "b").write_text("b")
    with pytest.raises(FileExistsError):
        os.close(os.open(place.here / "b", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    assert renameat2(place.here / "a", place.here / "b", 1) == 17  # NOREPLACE: EEXIST
    assert (place.there / "b").read_text() == "b"
