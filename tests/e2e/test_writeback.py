"""-o writeback: what is not sent yet looks as it will when it is, and what ends up in the sandbox is what a local disk would have.

A sandbox that stands still (SIGSTOP) shows that nothing is asked of it. What kill -9 does to it is test_crash.py's matter, its round trips are test_budgets.py's.
"""
import filecmp, json, os, pathlib, re, shutil, signal, stat, subprocess, sys, threading, time

import pytest

from conftest import ENVD_URL, code, digest_tree, eventually, is_dead, is_mounted, renameat2, run
from test_git import FIXED, bare_repository, git
from test_recover import assert_private, listed, recover
from tiers import mount_on, service_cannot, tier, tiered  # noqa: F401 (fixtures)
from writeback import (LONG_AGO, UNSENT, assert_all_sent, assert_same, conflict_copies, differences, flush, kill, look, mount_with, options_of, spool_files, standing_still)

OLD = (LONG_AGO - 1000) * 10**9 + 123_456_789
KIB, MIB = 1 << 10, 1 << 20


def write(path, content, flags=os.O_CREAT | os.O_EXCL, mode=0o644, at=None):
    file = os.open(path, os.O_WRONLY | flags, mode)
    try:
        assert (os.write(file, content) if at is None else os.pwrite(file, content, at)) == len(content)
    except BaseException:
        os.close(file)
        raise
    os.close(file)


def age(path, number=0):
    os.utime(path, ns=(OLD, OLD + number), follow_symlinks=False)


@pytest.fixture(scope="module")
def writer(double, tier):  # noqa: F811
    if ENVD_URL:
        pytest.skip("stops the sandbox: a real envd cannot")
    made = mount_on(tier, double, f"writer-{tier}", options_of(tier))
    yield made
    made.close()


class Spot:
    """A directory that the mount made: `here` through the mount, `there` in the sandbox; `local` is one on the local disk."""

    def __init__(self, mount, name, scratch):
        self.mount, self.double = mount, mount.double
        self.here, self.there, self.local = mount.path / name, mount.inside / name, scratch / f"local-{mount.inside.name}-{name}"
        self.here.mkdir()
        self.local.mkdir()


@pytest.fixture
def spot(writer, scratch, request):
    made = Spot(writer, re.sub(r"\W+", "-", request.node.name)[:80].strip("-"), scratch)
    yield made
    for _ in range(5):  # a test that failed leaves nothing to the next
        if flush(made.mount, "--timeout", "5", check=False).returncode == 0:
            break
    shutil.rmtree(made.local, ignore_errors=True)


# --- what needs nothing of the sandbox, in a directory that the mount made

def small_files(t):
    for number in range(20):
        write(t / f"f{number}", b"%d\n" % number * number)
    return sorted(os.listdir(t)), [(t / f"f{number}").read_bytes() for number in range(20)], os.stat(t / "f7").st_size


def trees(t):
    os.makedirs(t / "a/b/c/d")
    os.makedirs(t / "a/b2/c")
    for path in (t / "a", t / "a/b", t / "a/b/c/d", t / "a/b2/c"):
        write(path / "file", os.fsencode(path.name))
    return [sorted(os.listdir(path)) for path in (t, t / "a", t / "a/b", t / "a/b/c", t / "a/b/c/d", t / "a/b2")], (t / "a/b/../b2/c/file").read_text()


def links(t):
    write(t / "file", b"content")
    os.mkdir(t / "d")
    for name, text in ("link", "file"), ("to d", "d"), ("nowhere", "not there"), ("d/up", "../file"), ("loop", "loop"):
        os.symlink(text, t / name)
    write(t / "to d/through", b"by a link")
    return ([os.readlink(t / name) for name in ("link", "to d", "nowhere", "d/up", "loop")], (t / "link").read_text(), (t / "to d/up").read_text(),
            code(os.stat, t / "nowhere"), code(os.stat, t / "loop"), os.lstat(t / "link").st_size)


def appends_and_cuts(t):
    write(t / "log", b"one\n")
    for line in (b"two\n", b"three\n"):
        write(t / "log", line, os.O_APPEND)
    write(t / "cut", b"0123456789" * 100)
    os.truncate(t / "cut", 555)
    write(t / "cut", b"XYZ", 0, at=100)
    write(t / "grown", b"begin")
    os.truncate(t / "grown", 10_000)
    write(t / "grown", b"far", 0, at=200_000)
    write(t / "empty", b"")
    write(t / "emptied", b"something")
    os.truncate(t / "emptied", 0)
    return [os.stat(t / name).st_size for name in ("log", "cut", "grown", "empty", "emptied")]


def modes_and_times(t):
    for number, mode in enumerate((0o600, 0o644, 0o755, 0o440, 0o666)):
        write(t / f"m{mode:o}", b"x" * number, mode=mode)
        write(t / f"c{mode:o}", b"y" * number)
        os.chmod(t / f"c{mode:o}", mode)
        age(t / f"c{mode:o}", number)
    os.mkdir(t / "d", 0o700)
    os.mkdir(t / "e")
    for name in ("in", "in2"):
        write(t / "d" / name, b"inner")
    os.chmod(t / "d", 0o750)
    age(t / "d/in")
    age(t / "d", 5)
    age(t / "e", 6)
    write(t / "e/later", b"changes the time of its directory")
    write(t / "held", b"")
    file = os.open(t / "held", os.O_WRONLY)
    os.write(file, b"held")
    os.fchmod(file, 0o604)
    os.utime(file, ns=(OLD, OLD))
    said = stat.S_IMODE(os.fstat(file).st_mode), os.fstat(file).st_mtime_ns, os.fstat(file).st_size
    os.close(file)
    return said, [(stat.S_IMODE(status.st_mode), status.st_size) for status in (os.stat(t / name) for name in ("m440", "c755", "held"))], \
        [os.stat(t / name).st_mtime_ns for name in ("c644", "d", "d/in", "held")]


def refusals(t):
    write(t / "f", b"f")
    os.mkdir(t / "d")
    os.symlink("f", t / "l")
    write(t / "d/full", b"")
    exclusive = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    return [code(os.open, t / name, exclusive) for name in ("f", "d", "l")], [code(os.mkdir, t / name) for name in ("f", "d", "l")], \
        [code(os.symlink, "x", t / name) for name in ("f", "d", "l")], [code(os.stat, t / name) for name in ("missing", "f/below", "missing/below", "n" * 256)], \
        code(os.open, t / "f", os.O_DIRECTORY), code(os.open, t / "d", os.O_WRONLY), code(os.open, t / "l", os.O_NOFOLLOW), code(os.listdir, t / "f"), \
        code(os.mkdir, t / "missing/d"), code(os.readlink, t / "f"), os.path.lexists(t / "missing")


def larger_files(t):
    for number, size in enumerate((4095, 4096, 4097, 100_000, 300_000, 2_000_000)):
        write(t / f"f{number}", bytes([65 + number]) * size)
    write(t / "f4", b"in the middle", 0, at=150_000)
    return [len((t / f"f{number}").read_bytes()) for number in range(6)], (t / "f4").read_bytes()[149_999:150_014]


def several_descriptors(t):
    one = os.open(t / "f", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    two = os.open(t / "f", os.O_RDWR)
    three = os.open(t / "f", os.O_RDONLY)
    os.write(one, b"0123456789")
    said = [os.pread(each, 100, 0) for each in (one, two, three)]
    os.pwrite(two, b"abc", 5)
    os.close(one)
    said += [os.pread(three, 100, 0), (t / "f").read_bytes(), os.fstat(three).st_size]
    os.ftruncate(two, 7)
    os.close(two)
    said += [os.pread(three, 100, 0), os.stat(t / "f").st_size]
    os.close(three)
    return said


def names(t):
    for name in (b"new\nline", b"back\\slash", b"sp ace %41", b"x.note", "\u00e9\u4e2d".encode(), b"-rf", b"n" * 255, b".hidden", b"unsent-abcdef", b"x.e2bfs-conflict"):
        write(os.fsencode(t) + b"/" + name, b"content of " + name)
    return sorted(os.listdir(os.fsencode(t)))


def made_by_cp(t):
    source = pathlib.Path(__file__).parent
    run("sh", "-c", 'mkdir "$1/copy" && cat "$0"/*.py > "$1/copy/all" && cp "$0/conftest.py" "$0/tiers.py" "$1/copy"', source, t)
    return sorted(os.listdir(t / "copy")), filecmp.cmp(source / "conftest.py", t / "copy/conftest.py", shallow=False)


LOCAL = [small_files, trees, links, appends_and_cuts, modes_and_times, refusals, larger_files, several_descriptors, names, made_by_cp]


@pytest.mark.parametrize("program", LOCAL, ids=lambda each: each.__name__)
def test_as_on_a_local_disk_with_nothing_sent(spot, program):
    """The sandbox stands still meanwhile: all of it is answered here."""
    expected = program(spot.local)
    with standing_still(spot.double):
        assert program(spot.here) == expected
        assert_same(look(spot.local), look(spot.here), "through the mount, unsent")
        arrived = look(spot.there)
        assert list(arrived) == [b""], arrived
    assert_all_sent(spot.mount)
    assert_same(look(spot.local), look(spot.there), "inside the sandbox")
    assert_same(look(spot.local), look(spot.here), "through the mount, sent")


# --- what has first to be sent, and then its own answer

def furnish(t):
    """An unsent tree."""
    os.makedirs(t / "a/b")
    for name in ("f", "g", "a/f", "a/b/f"):
        write(t / name, f"content of {name}".encode())
        age(t / name)
    os.symlink("f", t / "l")
    os.mkdir(t / "empty")


def renames(t):
    os.rename(t / "f", t / "new")
    os.rename(t / "a/f", t / "g")
    write(t / "new", b" and more", os.O_APPEND)
    os.rename(t / "a/b", t / "moved")
    write(t / "moved/late", b"late")
    os.rename(t / "l", t / "a/l")
    return code(os.rename, t / "a", t / "moved"), code(os.rename, t / "a", t / "a/below"), code(os.rename, t / "missing", t / "x"), code(os.rename, t / "new", t / "moved")


def renames_of_directories_above(t):
    """With what is below them unsent, also what is still open."""
    file = os.open(t / "a/b/open", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(file, b"written before, ")
    os.rename(t / "a", t / "z")
    os.write(file, b"written after")
    os.close(file)
    write(t / "z/b/new", b"new")
    os.rename(t / "z/b", t / "b")
    write(t / "b/f", b" appended", os.O_APPEND)
    os.mkdir(t / "z/b")
    write(t / "z/b/f", b"another")
    return code(os.stat, t / "a/b/f"), (t / "b/f").read_bytes()


def publishes(t):
    """As editors and git do: written under another name, then renamed over, again and again."""
    for number in range(8):
        write(t / "f.new", b"version %d" % number * 100)
        os.rename(t / "f.new", t / "f")
        assert (t / "f").read_bytes() == b"version %d" % number * 100
    os.link(t / "f", t / "f.bak")
    return sorted(os.listdir(t))


def rewrites(t):
    """What was accepted is sent before another begins anew with the file: until he closes it, it is all that there is."""
    for number in range(5):
        write(t / "f", b"version %d " % number * (number % 3), os.O_TRUNC)
        write(t / "a/b/f", b"longer" * 30_000, os.O_TRUNC)
    return (t / "f").read_bytes(), os.stat(t / "a/b/f").st_size


def removals(t):
    os.unlink(t / "f")
    os.unlink(t / "l")
    os.rmdir(t / "empty")
    said = code(os.rmdir, t / "a"), code(os.unlink, t / "a"), code(os.rmdir, t / "g"), code(os.unlink, t / "f"), code(os.rmdir, t / "missing")
    shutil.rmtree(t / "a")
    write(t / "f", b"another f")
    os.mkdir(t / "a")
    write(t / "a/f", b"another a/f")
    return said, sorted(os.listdir(t)), sorted(os.listdir(t / "a"))


def made_and_gone(t):
    """Nothing of it is ever to be seen there."""
    for number in range(30):
        write(t / f"temporary{number}", b"x" * number)
        os.unlink(t / f"temporary{number}")
    file = os.open(t / "unlinked", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(file, b"still here")
    os.unlink(t / "unlinked")
    os.write(file, b", and more")
    said = os.pread(file, 100, 0), os.fstat(file).st_nlink
    os.close(file)
    return said


def hard_links(t):
    os.link(t / "f", t / "a/hard")
    write(t / "f", b" changed", os.O_APPEND)
    said = (t / "a/hard").read_bytes(), os.stat(t / "f").st_nlink
    os.unlink(t / "f")
    return said, code(os.link, t / "g", t / "a/hard"), code(os.link, t / "a", t / "linked")


def exchanges(t):
    return renameat2(t / "f", t / "a", 2), renameat2(t / "g", t / "empty", 1), renameat2(t / "g", t / "h", 1), (t / "f/b/f").read_bytes(), (t / "a").read_bytes()


def extended_attributes(t):
    os.setxattr(t / "f", "user.x", b"value")
    os.setxattr(t / "a", "user.y", b"of a directory")
    write(t / "f", b" changed", os.O_APPEND)
    os.rename(t / "f", t / "h")
    return os.getxattr(t / "h", "user.x"), os.listxattr(t / "a"), code(os.getxattr, t / "g", "user.x"), code(os.removexattr, t / "g", "user.x")


def shell(t):
    run("sh", "-ec", "cd \"$1\"; cp -a a copied; mv copied/b elsewhere; ln -s elsewhere/f link; cat link > read; chmod 700 elsewhere; rm -r copied; touch -d @1000000000 elsewhere read", "sh", t)
    return sorted(os.listdir(t)), (t / "read").read_text()


SENT_FIRST = [renames, renames_of_directories_above, publishes, rewrites, removals, made_and_gone, hard_links, exchanges, extended_attributes, shell]
NOT_ON_SERVICE = {hard_links: "one name each", exchanges: "no exchange", extended_attributes: "no extended attributes"}


@pytest.mark.parametrize("far", [0, 30], ids=["near", "far"])
@pytest.mark.parametrize("program", SENT_FIRST, ids=lambda each: each.__name__)
def test_as_on_a_local_disk(spot, tier, program, far):  # noqa: F811
    """Before anything was sent, or while it is on its way."""
    if tier == "service" and program in NOT_ON_SERVICE:
        pytest.skip(f"the service tier has {NOT_ON_SERVICE[program]}")
    furnish(spot.local)
    expected = program(spot.local)
    spot.double.control("POST", f"/_test/latency?ms={far}")
    try:
        furnish(spot.here)
        assert program(spot.here) == expected
        assert_same(look(spot.local), look(spot.here), "through the mount")
    finally:
        spot.double.control("POST", "/_test/latency?ms=0")
    assert_all_sent(spot.mount)
    assert_same(look(spot.local), look(spot.there), "inside the sandbox")
    assert_same(look(spot.local), look(spot.here), "through the mount, sent")
    if program is extended_attributes:
        assert os.getxattr(spot.there / "h", "user.x") == b"value" and os.listxattr(spot.there / "a") == ["user.y"]


def test_it_goes_by_itself_soon(spot):
    """After some 100 ms of quiet; and also while a program keeps writing, a second after it was written."""
    trees(spot.here)
    trees(spot.local)
    eventually(lambda: not differences(look(spot.local), look(spot.there)), "all of it is in the sandbox", 10)
    eventually(lambda: spot.mount.status()["dirty_files"] == 0, "nothing is said to be unsent", 10)
    write(spot.here / "first", b"first")
    end, number = time.monotonic() + 10, 0
    while not (spot.there / "first").exists() or (spot.there / "first").read_bytes() != b"first":
        assert time.monotonic() < end, "sent only when the program stops writing"
        write(spot.here / f"more{number}", b"more")
        number += 1
        time.sleep(0.02)  # never quiet
    flush(spot.mount)


def test_status_counts_what_is_unsent(spot):
    """What is not made yet, too."""
    with standing_still(spot.double):
        os.mkdir(spot.here / "d")
        os.symlink("x", spot.here / "d/link")
        write(spot.here / "d/file", b"12345")
        write(spot.here / "empty", b"")
        status = spot.mount.status()
        assert status["dirty_bytes"] == 5 and status["dirty_files"] == 4, status
        assert {pathlib.Path(each["path"]).name for each in status["unsent"]} == {"d", "link", "file", "empty"}, status["unsent"]
    assert_all_sent(spot.mount)
    assert (spot.there / "d/file").read_bytes() == b"12345"


# --- where somebody else may be

def test_elsewhere_names_go_at_once(spot):
    """In a directory that the mount did not make they are there when the call returns, and what is there already is known there only."""
    (spot.mount.inside / f"{spot.here.name}-theirs").mkdir()
    here, there = (top / f"{spot.here.name}-theirs" for top in (spot.mount.path, spot.mount.inside))
    eventually(here.exists, "it is seen")
    os.listdir(here)
    os.mkdir(here / "d")
    assert (there / "d").is_dir()
    os.symlink("text", here / "l")
    assert os.readlink(there / "l") == "text"
    file = os.open(here / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    assert (there / "f").exists()
    os.close(file)
    for name in ("x", "y", "z"):  # each is asked for at once: it may not be known here yet
        (there / name).write_bytes(b"theirs")
        assert code(os.open, here / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY) == "EEXIST"
        (there / f"{name}d").mkdir()
        assert code(os.mkdir, here / f"{name}d") == "EEXIST"
    write(here / "f", b"content comes later", 0)
    assert (here / "f").read_bytes() == b"content comes later"
    assert_all_sent(spot.mount)
    assert (there / "f").read_bytes() == b"content comes later"


def test_a_foreign_change_makes_names_exact_again(spot):
    """Somebody else works in a directory that the mount made: from then on its names are made there at once."""
    write(spot.here / "ours", b"ours")
    flush(spot.mount)
    (spot.there / "theirs").write_bytes(b"theirs")
    eventually(lambda: (spot.here / "theirs").exists(), "it is seen")
    os.mkdir(spot.here / "d")
    assert (spot.there / "d").is_dir()
    for name in ("x", "y", "z"):
        (spot.there / name).write_bytes(b"theirs")
        assert code(os.open, spot.here / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY) == "EEXIST"
        (spot.there / f"{name}d").mkdir()
        assert code(os.mkdir, spot.here / f"{name}d") == "EEXIST"
    assert sorted(os.listdir(spot.here)) == sorted(os.listdir(spot.there))
    flush(spot.mount)


def said_of_conflicts(mount):
    return mount.log.read_text(errors="replace") + mount.e2bfs("status", mount.path).stdout + json.dumps(mount.status())


def check_conflict(spot, name, theirs, ours):
    """Theirs has the name, ours lies beside it, once, and that is said."""
    assert_all_sent(spot.mount)
    assert (spot.there / name).read_bytes() == theirs
    assert conflict_copies(spot.there) == {name: [ours]}
    (copy,) = [each for each in os.listdir(spot.there) if ".e2bfs-conflict-" in each]
    assert copy in said_of_conflicts(spot.mount)
    eventually(lambda: look(spot.here) == look(spot.there), "the mount shows both")


def test_a_new_file_meets_one_of_that_name(spot):
    with standing_still(spot.double):
        write(spot.here / "f", b"ours")
        age(spot.here / "f")
        write(spot.here / "g", b"of no concern")
        (spot.there / "f").write_bytes(b"theirs, and longer")
    check_conflict(spot, "f", b"theirs, and longer", b"ours")
    assert (spot.there / "g").read_bytes() == b"of no concern"


@pytest.mark.parametrize("flags", [os.O_TRUNC, 0], ids=["whole", "part"])
@pytest.mark.parametrize("same_size", [False, True])
def test_a_changed_file_was_changed_there(spot, flags, same_size):
    write(spot.here / "f", b"0123456789")
    assert_all_sent(spot.mount)
    theirs = b"abcdefghij" if same_size else b"theirs"
    with standing_still(spot.double):
        write(spot.here / "f", b"ours", flags)
        if flags:
            assert (spot.here / "f").read_bytes() == b"ours"
        (spot.there / "f").write_bytes(theirs)
    assert_all_sent(spot.mount)
    assert (spot.there / "f").read_bytes() == theirs
    ((ours,),) = conflict_copies(spot.there).values()
    assert ours.startswith(b"ours")  # of what it began with, the sandbox may have nothing any more


def test_what_was_replaced_there_is_not_touched(spot):
    """By a rename: the name belongs to another file."""
    write(spot.here / "f", b"0123456789")
    assert_all_sent(spot.mount)
    with standing_still(spot.double):
        write(spot.here / "f", b"ours", os.O_TRUNC)
        (spot.there / "f2").write_bytes(b"theirs")
        os.rename(spot.there / "f2", spot.there / "f")
    check_conflict(spot, "f", b"theirs", b"ours")


def test_what_was_removed_there_is_not_lost(spot):
    """It is there again, or beside, or in the list of `e2bfs recover`."""
    os.mkdir(spot.here / "d")
    for name in ("f", "d/f"):
        write(spot.here / name, b"0123456789")
    assert_all_sent(spot.mount)
    with standing_still(spot.double):
        for name in ("f", "d/f"):
            write(spot.here / name, b"ours", os.O_TRUNC)
        (spot.there / "f").unlink()
        shutil.rmtree(spot.there / "d")
    flush(spot.mount, check=False)
    kept = [(name, content) for name, (_, _, content, _) in look(spot.there).items() if content]
    kept += [(each["path"], pathlib.Path(each["content"]).read_bytes()) for each in listed(spot.double) if each["path"].startswith(f"{spot.there}/")]
    assert [content for _, content in kept] == [b"ours", b"ours"], (kept, spot.mount.log.read_text())
    recover(spot.double, "--drop", "--all", "--yes", check=False)


@pytest.mark.parametrize("pause", [0, 0.1, 0.4])
@pytest.mark.parametrize("change", ["header", "header after close", "cut", "cut and longer", "whole"])
def test_ours_changed_again_is_nobody_elses(spot, change, pause):
    """Of a large new file, of which a part may be there already."""
    content, path = os.urandom(MIB) * 12, spot.here / "f"
    spot.double.control("POST", "/_test/latency?ms=3")
    try:
        with open(path, "xb", buffering=0) as file:
            for at in range(0, len(content), MIB):
                file.write(content[at:at + MIB])
            time.sleep(pause)
            if change == "header":
                os.pwrite(file.fileno(), b"HEADER", 0)
            elif change.startswith("cut"):
                file.truncate(1000)
        if change == "header after close":
            write(path, b"HEADER", 0)
        elif change == "cut and longer":
            os.truncate(path, 7 * MIB)
        elif change == "whole":
            write(path, b"another", os.O_TRUNC)
        expected = path.read_bytes()
        assert_all_sent(spot.mount)
        assert (spot.there / "f").read_bytes() == expected and conflict_copies(spot.there) == {}
    finally:
        spot.double.control("POST", "/_test/latency?ms=0")


@pytest.mark.parametrize("first", ["times", "length"])
def test_two_programs_here_are_nobody_else(spot, first):
    """One changes a file by its name, and the other one writes it meanwhile."""
    write(spot.here / "f", b"0123456789")
    assert_all_sent(spot.mount)
    os.stat(spot.here / "f")
    threads = [threading.Thread(target=lambda: os.truncate(spot.here / "f", 3) if first == "length" else os.utime(spot.here / "f", ns=(OLD, OLD))),
               threading.Thread(target=lambda: write(spot.here / "f", b"the newest", os.O_TRUNC))]
    with standing_still(spot.double):
        for thread in threads:
            thread.start()
            time.sleep(0.3)
    for thread in threads:
        thread.join()
    assert_all_sent(spot.mount)
    assert (spot.there / "f").read_bytes() == b"the newest" and conflict_copies(spot.there) == {}


def faulty(tiered, **more):
    """A mount that writes down which points it passes: (mount, what waits for one)."""  # noqa: F811
    trace = tiered.scratch / "points"
    mount = tiered.mount(options=["writeback", *QUICK], **more)
    mount.umount()
    mount_with(mount, E2BFS_FAULT_LOG=str(trace))
    return mount, lambda point: eventually(lambda: trace.exists() and re.search(rf"^{re.escape(point)}\b", trace.read_text(), re.M), f"{point} is passed")


@pytest.mark.parametrize("theirs", [b"theirs", b"abcdefghij"], ids=["another size", "the same size"])
@pytest.mark.parametrize("later", [0, 0.7])
def test_a_file_that_is_changed_there_while_its_change_is_brought(tiered, tier, theirs, later):  # noqa: F811
    """Before it is looked at first, and after that: on the service tier that look is a request, too."""
    mount, passed = faulty(tiered)
    (mount.inside / "f").write_bytes(b"0123456789")
    eventually(lambda: (mount.path / "f").exists(), "it is seen")
    os.stat(mount.path / "f")
    tiered.control("POST", "/_test/latency?ms=700")
    ours = os.urandom(MIB) * 8
    write(mount.path / "f", ours, os.O_TRUNC)
    passed("store.sending")
    time.sleep(0.5 + (later if tier == "service" else later / 7))
    assert (mount.inside / "f").read_bytes() == b"0123456789"
    (mount.inside / "f").write_bytes(theirs)
    assert_all_sent(mount)
    tiered.control("POST", "/_test/latency?ms=0")
    ((copy,),) = conflict_copies(mount.inside).values()
    assert (mount.inside / "f").read_bytes() == theirs and (len(copy), copy == ours) == (len(ours), True)


def test_two_mounts_whose_changes_lie_beside_theirs(tiered):  # noqa: F811
    """Accepted by both in the same second: neither takes the other's copy for its own."""
    mounts = [tiered.mount("m", options=["writeback"])]
    mounts.append(tiered.mount("n", options=["writeback"], inside=mounts[0].inside))
    there = mounts[0].inside
    for number in range(3):
        (there / f"f{number}").write_bytes(b"old")
        for mount in mounts:
            eventually(lambda: (mount.path / f"f{number}").exists(), "it is seen")
            os.stat(mount.path / f"f{number}")
    time.sleep(1 - time.time() % 1)
    with standing_still(tiered):
        for number in range(3):
            for mount in mounts:
                write(mount.path / f"f{number}", mount.path.name.encode() * 1000, 0)
            (there / f"f{number}").write_bytes(b"theirs, which is longer")
    flushes = [threading.Thread(target=flush, args=(mount,), kwargs={"check": False}) for mount in mounts]
    for each in flushes:
        each.start()
    for each in flushes:
        each.join()
    wanted = sorted(mount.path.name.encode() * 1000 for mount in mounts)
    assert {name: sorted(copies) for name, copies in conflict_copies(there).items()} == {f"f{number}": wanted for number in range(3)}


def test_what_goes_while_another_one_writes_on_is_looked_at_too(spot):
    """It was accepted by one close; somebody changes the file in the sandbox, and another descriptor goes on."""
    write(spot.here / "f", b"0123456789")
    assert_all_sent(spot.mount)
    os.stat(spot.here / "f")
    with open(spot.here / "f", "r+b", buffering=0) as other:
        os.pwrite(other.fileno(), b"B", 100)
        with standing_still(spot.double):
            write(spot.here / "f", b"ours", 0)
            (spot.there / "f").write_bytes(b"theirs, which is longer")

        def is_sent():
            os.pwrite(other.fileno(), b"B", 100)
            assert (spot.there / "f").read_bytes() == b"theirs, which is longer"
            return any(each.startswith(b"ours") for each in conflict_copies(spot.there).get("f", []))
        eventually(is_sent, "it lies beside it", 30)
    flush(spot.mount, check=False)


@pytest.mark.parametrize("killed, listed_meanwhile", [(False, False), (False, True), (True, False)], ids=["it lives", "it is listed", "it is killed"])
def test_what_is_accepted_while_a_conflict_is_resolved(tiered, killed, listed_meanwhile):  # noqa: F811
    """Is in the conflict copy, too, or what has the name; and after kill -9 somewhere."""
    mount, passed = faulty(tiered)
    (mount.path / "d").mkdir()
    flush(mount)
    pid = mount.status()["pid"]
    tiered.control("POST", "/_test/latency?ms=300")
    with standing_still(tiered):
        write(mount.path / "d/f", b"ours one\n")
        (mount.inside / "d/f").write_bytes(b"theirs")
    passed("conflict.sending")
    ended = threading.Event()

    def list_it():
        while not ended.wait(0.05):
            for name in os.listdir(mount.path / "d"):
                code(os.stat, mount.path / "d" / name)
    lister = threading.Thread(target=list_it)
    if listed_meanwhile:
        lister.start()
    write(mount.path / "d/f", b"ours two\n", os.O_APPEND)
    if killed:
        kill(mount, pid)
    if listed_meanwhile:
        passed("conflict.sent")
        time.sleep(0.5)
        ended.set()
        lister.join()
    tiered.control("POST", "/_test/latency?ms=0")
    if killed:
        mount_with(mount)
    flush(mount)
    found = [content for _, _, content, _ in look(mount.inside).values() if content]
    assert (mount.inside / "d/f").read_bytes() in (b"theirs", b"theirsours two\n")  # where the name was theirs when it was opened
    if killed:
        found += [pathlib.Path(entry["content"]).read_bytes() for entry in listed(tiered)]
        recover(tiered, "--drop", "--all", "--yes", check=False)
    counts = [b"".join(found).count(each) for each in (b"ours one\n", b"ours two\n", b"theirs")]
    assert counts == [1, 1, 1] or (killed and min(counts) == 1), found


@pytest.mark.parametrize("barrier", ["flush", "umount"])
def test_what_was_accepted_and_is_put_aside_is_told_once(tiered, barrier):  # noqa: F811
    """By the next barrier, although nobody has it open, and nothing is unsent any more."""
    mount = tiered.mount(options=["writeback"])
    (mount.inside / "d").mkdir()
    (mount.inside / "d/f").write_bytes(b"old content")
    eventually(lambda: (mount.path / "d/f").exists(), "it is seen")
    assert (mount.path / "d/f").read_bytes() == b"old content"
    with standing_still(tiered):
        write(mount.path / "d/f", b"ours", os.O_TRUNC)
        shutil.rmtree(mount.inside / "d")
    eventually(lambda: mount.status()["dirty_files"] == 0, "it is put aside")
    (kept,) = listed(tiered)
    assert pathlib.Path(kept["content"]).read_bytes() == b"ours"
    told = mount.e2bfs(barrier, mount.path, check=False)
    assert told.returncode == UNSENT and "d/f" in told.stderr and "put aside in" in told.stderr and is_mounted(mount.path), told
    assert "put aside in" in mount.status()["last_error"]
    assert mount.e2bfs(barrier, mount.path).returncode == 0
    mount.mounted = is_mounted(mount.path)


@pytest.mark.parametrize("theirs", ["directory", "file", "link"])
@pytest.mark.parametrize("ours", ["directory", "file", "link"])
def test_the_name_is_taken_by_something_else(spot, ours, theirs):
    """Nothing of either is lost, whatever they are."""
    with standing_still(spot.double):
        if ours == "directory":
            os.mkdir(spot.here / "x")
            write(spot.here / "x/inner", b"ours")
        elif ours == "file":
            write(spot.here / "x", b"ours")
        else:
            os.symlink("ours", spot.here / "x")
        if theirs == "directory":
            (spot.there / "x").mkdir()
            (spot.there / "x/inner2").write_bytes(b"theirs")
        elif theirs == "file":
            (spot.there / "x").write_bytes(b"theirs")
        else:
            os.symlink("theirs", spot.there / "x")
    assert_all_sent(spot.mount)
    found = look(spot.there)
    where = {"directory": b"x/inner2", "file": b"x", "link": b"x"}[theirs]
    assert found[where][2] == b"theirs" and stat.S_IFMT(os.lstat(spot.there / os.fsdecode(where)).st_mode) == (stat.S_IFLNK if theirs == "link" else stat.S_IFREG)
    assert sorted(content for _, _, content, _ in found.values() if content) == [b"ours", b"theirs"], found
    if (ours, theirs) == ("directory", "directory"):
        return  # one directory with both in it, or two
    (copy,) = [each for each in os.listdir(spot.there) if each.startswith("x.e2bfs-conflict-")]
    assert copy in said_of_conflicts(spot.mount)


# --- with somebody else who has it open

def test_who_has_it_open_keeps_nothing_back_that_another_closed(spot):
    write(spot.here / "log", b"old\n")
    assert_all_sent(spot.mount)

    def there():
        return (spot.there / name).read_bytes() if (spot.there / name).exists() else None
    for name in ("log", "new"):
        with open(spot.here / name, "ab", buffering=0) as file:
            before = (spot.here / name).read_bytes()
            write(spot.here / name, b"closed\n", os.O_APPEND)
            eventually(lambda: there() == before + b"closed\n", "it is sent, although the other one could write", 30)
            file.write(b"not closed\n")
            write(spot.here / name, b"closed, too\n", os.O_APPEND)
            eventually(lambda: there() == before + b"closed\nnot closed\nclosed, too\n", "it is sent, although the other one wrote", 30)
            file.write(b"at last\n")
        eventually(lambda: there().endswith(b"too\nat last\n"), "it is sent")
        assert (spot.here / name).read_bytes() == there()


def test_old_content_stays_until_somebody_closes_who_wrote(spot):
    write(spot.here / "f", b"old content")
    assert_all_sent(spot.mount)
    with open(spot.here / "f", "wb", buffering=0) as file:
        file.write(b"new")
        for flags in (os.O_RDONLY, os.O_WRONLY):
            os.close(os.open(spot.here / "f", flags))
        time.sleep(4)  # longer than what another closed would wait
        assert (spot.there / "f").read_bytes() == b"old content"
        file.write(b" content")
    eventually(lambda: (spot.there / "f").read_bytes() == b"new content", "it is sent")


def test_what_was_changed_there_is_not_overwritten_although_somebody_has_it_open(spot):
    write(spot.here / "f", b"0123456789")
    assert_all_sent(spot.mount)
    with open(spot.here / "f", "r+b", buffering=0):
        with standing_still(spot.double):
            write(spot.here / "f", b"ours", os.O_TRUNC)
            (spot.there / "f").write_bytes(b"theirs, and longer")
        eventually(lambda: conflict_copies(spot.there) == {"f": [b"ours"]}, "it is sent", 30)
    check_conflict(spot, "f", b"theirs, and longer", b"ours")


# --- barriers

def test_fsync_waits(spot):
    """The file is there with all above it; what it does not need may wait."""
    os.makedirs(spot.here / "a/b")
    file = os.open(spot.here / "a/b/f", os.O_CREAT | os.O_WRONLY, 0o640)
    os.write(file, b"one")
    os.fsync(file)
    assert (spot.there / "a/b/f").read_bytes() == b"one" and stat.S_IMODE(os.stat(spot.there / "a/b/f").st_mode) == 0o640
    os.write(file, b" two")
    os.fdatasync(file)
    assert (spot.there / "a/b/f").read_bytes() == b"one two"
    os.close(file)
    write(spot.here / "g", b"closed before")
    file = os.open(spot.here / "g", os.O_RDONLY)
    os.fsync(file)
    assert (spot.there / "g").read_bytes() == b"closed before"
    os.close(file)
    flush(spot.mount)


def test_fsync_of_a_directory_waits(spot):
    """For all names in it."""
    os.makedirs(spot.here / "a/b")
    for number in range(10):
        write(spot.here / f"a/f{number}", b"%d" % number)
    os.symlink("text", spot.here / "a/l")
    directory = os.open(spot.here / "a", os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    assert sorted(os.listdir(spot.there / "a")) == sorted(["b", "l", *(f"f{number}" for number in range(10))])
    assert [(spot.there / f"a/f{number}").read_bytes() for number in range(10)] == [b"%d" % number for number in range(10)]
    os.close(directory)
    flush(spot.mount)


def test_flush_sends_what_is_open(spot):
    file = os.open(spot.here / "f", os.O_CREAT | os.O_WRONLY, 0o644)
    os.write(file, b"not closed")
    flush(spot.mount)
    assert (spot.there / "f").read_bytes() == b"not closed"
    os.close(file)


def test_flush_takes_a_directory_of_a_mount_and_nothing_else(spot):
    """As umount does."""
    assert spot.mount.e2bfs("flush", spot.local, check=False).returncode not in (0, UNSENT)
    assert spot.mount.e2bfs("flush", check=False).returncode == 2
    assert spot.mount.e2bfs("flush", "--help").stdout
    assert "flush" in spot.mount.e2bfs("--help").stdout
    assert flush(spot.mount).returncode == 0
    assert flush(spot.mount, "--timeout", "10").returncode == 0
    assert is_mounted(spot.mount.path)


def test_flush_without_writeback_has_nothing_to_do(tiered):  # noqa: F811
    mount = tiered.mount()
    (mount.path / "f").write_bytes(b"content")
    assert flush(mount).returncode == 0
    assert (mount.inside / "f").read_bytes() == b"content"


def test_flush_says_in_time_what_remains(spot):
    os.mkdir(spot.here / "d")
    with standing_still(spot.double):
        write(spot.here / "d/remains", b"x" * 1000)
        began = time.monotonic()
        refused = flush(spot.mount, "--timeout", "1", check=False, timeout=60)
        assert time.monotonic() - began < 15
        assert refused.returncode == UNSENT, refused
        assert "1000 B unsent in 2 files" in refused.stderr, refused
    assert flush(spot.mount).returncode == 0
    assert (spot.there / "d/remains").read_bytes() == b"x" * 1000


def test_umount_sends_everything(tiered):  # noqa: F811
    mount = tiered.mount(options=["writeback"])
    local = tiered.scratch / "local"
    for top in (local, mount.path / "d"):
        top.mkdir()
        trees(top)
        modes_and_times(top)
    mount.umount()
    assert_same(look(local), look(mount.inside / "d"), "inside the sandbox")
    assert spool_files(tiered) == []


def wait_until_ended(mount):
    eventually(lambda: not is_mounted(mount.path), "it is not mounted any more")
    mount.mounted = False


@pytest.mark.parametrize("way", ["fusermount3", "SIGTERM"])
def test_other_ends_send_everything(tiered, way):  # noqa: F811
    """In the background, after fusermount3 returned."""
    mount = tiered.mount(options=["writeback"])
    (mount.path / "d").mkdir()
    pid = mount.status()["pid"]
    small_files(mount.path / "d")
    if way == "SIGTERM":
        os.kill(pid, signal.SIGTERM)
    else:
        run("fusermount3", "-u", mount.path)
    wait_until_ended(mount)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "its process has ended")
    assert (mount.inside / "d/f19").read_bytes() == b"19\n" * 19 and len(os.listdir(mount.inside / "d")) == 20
    assert spool_files(tiered) == []


QUICK = ["connect_timeout=2", "head_timeout=2", "idle_timeout=2", "operation_timeout=5", "transfer_timeout=5", "drain_timeout=1"]


def test_umount_says_what_remains_and_force_keeps_it(tiered):  # noqa: F811
    """The next mount of the same directory sends it, as it was."""
    mount = tiered.mount(options=["writeback", *QUICK])
    local = tiered.scratch / "local"
    (mount.path / "d").mkdir()
    pid = mount.status()["pid"]
    local.mkdir()
    with standing_still(tiered, 90):
        for top in (local, mount.path / "d"):
            trees(top)
            links(top)
        began = time.monotonic()
        refused = mount.umount("--timeout", "1", check=False)
        assert time.monotonic() - began < 30 and refused.returncode == UNSENT and is_mounted(mount.path), refused
        mount.umount("--timeout", "1", "--force")
        assert not is_mounted(mount.path)
        assert is_dead(pid), "the next mount may meet what this one has on its way"
        assert sorted(each["path"] for each in listed(tiered)) == sorted(f"{mount.inside}/d/{os.fsdecode(name)}" for name in look(local) if name)
    assert_private(tiered)
    mount.mount()
    assert_same(look(local), look(mount.inside / "d"), "inside the sandbox")
    assert_same(look(local), look(mount.path / "d"), "through the new mount")
    assert listed(tiered) == [] and spool_files(tiered) == []


@pytest.mark.parametrize("way", ["umount --force", "fusermount3"])
def test_what_was_under_way_at_the_end_is_kept_once(tiered, way):  # noqa: F811
    """Its answer, or that there is none, comes after it was put aside."""
    mount = tiered.mount(options=["writeback", *QUICK])
    (mount.path / "d").mkdir()
    (mount.inside / "old").write_bytes(b"old content")
    eventually(lambda: (mount.path / "old").exists(), "it is seen")
    assert (mount.path / "old").read_bytes() == b"old content"
    pid = mount.status()["pid"]
    with standing_still(tiered, 90):
        write(mount.path / "d/new", b"new")
        write(mount.path / "old", b"ours", os.O_TRUNC)
        time.sleep(0.6)  # they are being sent
        if way == "fusermount3":
            run("fusermount3", "-u", mount.path)
            wait_until_ended(mount)
        else:
            mount.umount("--timeout", "1", "--force")
        eventually(lambda: is_dead(pid), "its process has ended")
        kept = listed(tiered)
        assert sorted(each["path"] for each in kept) == [f"{mount.inside}/d/new", f"{mount.inside}/old"], kept
        recover(tiered, "--drop", "--yes", *(each["id"] for each in kept))
        assert spool_files(tiered) == []


# --- trouble

@pytest.mark.parametrize("how", ["recover", "mount"])
def test_a_sandbox_that_is_gone_gets_it_later(tiered, how):  # noqa: F811
    """Nothing is dropped: it is listed, and sent when the sandbox is back, by `e2bfs recover` or by the next mount."""
    mount = tiered.mount(options=["writeback", *QUICK])
    (mount.inside / "old").write_bytes(b"0123456789")
    eventually(lambda: (mount.path / "old").exists(), "it is seen")
    local = tiered.scratch / "local"
    (mount.path / "d").mkdir()
    pid = mount.status()["pid"]
    (local / "d").mkdir(parents=True)
    (local / "old").write_bytes(b"0123456789")
    os.stat(mount.path / "old")
    with standing_still(tiered):
        for top in (local, mount.path):
            trees(top / "d")
            modes_and_times(top / "d")
            write(top / "old", b"new", 0, at=4)
        tiered.kill()
    refused = flush(mount, "--timeout", "2", check=False)
    assert refused.returncode == UNSENT, refused
    mount.umount("--timeout", "1", "--force")
    eventually(lambda: is_dead(pid), "its process has ended")
    assert listed(tiered)
    assert_private(tiered)
    tiered.start()
    if how == "recover":
        recover(tiered, "--send")
    else:
        mount.mount()
    assert_same(look(local), look(mount.inside), "inside the sandbox")
    assert listed(tiered) == [] and spool_files(tiered) == []


def test_a_mount_that_finds_no_sandbox_keeps_it(tiered):  # noqa: F811
    """The replay cannot be done: the mount fails, or serves; and all is still there for the next one."""
    mount = tiered.mount(options=["writeback", *QUICK])
    (mount.path / "d").mkdir()
    pid = mount.status()["pid"]
    with standing_still(tiered):
        write(mount.path / "d/f", b"precious")
        kill(mount, pid)
        tiered.kill()
    assert mount_with(mount, check=False).returncode != 0
    (entry,) = listed(tiered)
    assert pathlib.Path(entry["content"]).read_bytes() == b"precious"
    tiered.start()
    mount.mount()
    assert (mount.inside / "d/f").read_bytes() == b"precious" and spool_files(tiered) == []


WRITER = """
import os, sys
top, files, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(files):
    with open(f"{top}/f{number}", "xb", buffering=0) as file:
        file.write(b"%06d" % number * (size // 6))
    print(number, flush=True)
"""


def test_a_small_spool_makes_writers_wait(tiered):  # noqa: F811
    """Never more is here than was granted, and nothing fails of it."""
    granted, files, size, most = 2 * MIB, 120, 120_000, 0
    mount = tiered.mount(options=["writeback", f"spool_size={granted}"])
    (mount.path / "d").mkdir()
    said = tiered.scratch / "said"

    def written():
        return len(said.read_text().split())
    with open(said, "wb") as output:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(mount.path / "d"), str(files), str(size)], stdout=output, stderr=subprocess.PIPE)
    try:
        with standing_still(tiered):
            eventually(lambda: mount.status()["dirty_bytes"] > granted // 2, "it is filled", 20)

            def waits():
                before = written()
                time.sleep(0.5)
                return written() == before
            eventually(waits, "the writer waits", 20)
            assert writer.poll() is None and written() < files and mount.status()["dirty_bytes"] <= granted + size, mount.status()
        while writer.poll() is None:
            most = max(most, mount.status()["dirty_bytes"])
        assert writer.returncode == 0 and written() == files and most <= granted + size, (writer.stderr.read(), written(), most)
    finally:
        writer.kill()
        writer.communicate()
    assert_all_sent(mount)
    for number in range(files):
        assert (mount.inside / f"d/f{number}").read_bytes() == b"%06d" % number * (size // 6), number


def test_one_file_larger_than_the_spool(tiered):  # noqa: F811
    mount = tiered.mount(options=["writeback", "spool_size=2M"])
    (mount.path / "d").mkdir()
    content = os.urandom(MIB) * 12
    write(mount.path / "d/large", content[:5 * MIB])
    with open(mount.path / "d/large2", "wb") as file:
        for at in range(0, len(content), MIB):
            file.write(content[at:at + MIB])
    assert_all_sent(mount)
    assert (mount.inside / "d/large").read_bytes() == content[:5 * MIB] and (mount.inside / "d/large2").read_bytes() == content


@pytest.fixture
def small_disk(tiered):  # noqa: F811
    """A sandbox's directory on a file system of 16 MiB: (mount, a directory that the mount made, its own name inside, what frees the disk)."""
    if os.geteuid() != 0:
        pytest.skip("makes a small file system: needs root")
    there = tiered.root / "m" / "small"
    there.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", "size=16m", "small", there)
    filler = there / "filler"
    try:
        mount = tiered.mount(options=["writeback"])
        (there / "old").write_bytes(b"old content")
        eventually(lambda: (mount.path / "small/old").exists(), "it is seen")
        (mount.path / "small/d").mkdir()
        flush(mount)
        with open(filler, "wb", buffering=0) as file:
            while code(lambda: file.write(b"f" * MIB)) == "ok":
                pass
            while code(lambda: file.write(b"f" * 4096)) == "ok":
                pass
        eventually(lambda: (mount.path / "small/filler").exists(), "it is seen")
        yield mount, mount.path / "small", there, filler.unlink
    finally:
        filler.unlink(missing_ok=True)
        flush(mount, check=False)
        run("umount", "-l", there)


@pytest.mark.parametrize("size", [20_000, 200_000, 5_000_000], ids=["small", "large", "very large"])
@pytest.mark.parametrize("name", ["old", "d/new", "new"])
def test_a_full_disk_is_told_by_barriers_and_nothing_is_lost(small_disk, name, size):
    mount, here, there, free = small_disk
    content = os.urandom(size)
    write(here / name, content, os.O_CREAT | os.O_TRUNC)  # close returns 0
    assert (here / name).read_bytes() == content
    refused = flush(mount, "--timeout", "5", check=False)
    assert refused.returncode == UNSENT and "unsent in 1 file" in refused.stderr and re.search("No space left|not enough disk space", refused.stderr), refused
    if name == "old":
        assert (there / name).read_bytes() == b"old content"
    elif (there / name).exists():  # what is new may be there in part
        assert content.startswith((there / name).read_bytes())
    for _ in range(2):
        file = os.open(here / name, os.O_WRONLY)
        assert code(os.fsync, file) == "ENOSPC"
        code(os.close, file)
        status = mount.status()
        assert status["dirty_bytes"] == size and status["dirty_files"] == 1, status
        assert (here / name).read_bytes() == content
    free()
    assert_all_sent(mount)
    assert (there / name).read_bytes() == content
    assert (here / name).read_bytes() == content and conflict_copies(there) == {}
    file = os.open(here / name, os.O_WRONLY)
    os.fsync(file)
    os.close(file)


def test_what_did_not_fit_goes_by_itself_when_there_is_room(small_disk):
    mount, here, there, free = small_disk
    contents = {f"d/f{number}": os.urandom(20_000) for number in range(10)}
    for name, content in contents.items():
        write(here / name, content)
    assert flush(mount, "--timeout", "10", check=False).returncode == UNSENT
    free()
    eventually(lambda: mount.status()["dirty_files"] == 0, "it is sent", 60)
    for name, content in contents.items():
        assert (there / name).read_bytes() == content
    assert sorted(os.listdir(there / "d")) == sorted(os.path.basename(name) for name in contents)


def test_more_than_goes_at_once_is_put_aside_where_its_directory_is_gone(spot):
    os.mkdir(spot.here / "d")
    assert_all_sent(spot.mount)
    with standing_still(spot.double):
        os.mkdir(spot.here / "d/new")
        for number in range(300):
            write(spot.here / f"d/new/f{number}", b"%05d" % number * 4000)
        shutil.rmtree(spot.there / "d")
    assert flush(spot.mount, "--timeout", "5", check=False).returncode == UNSENT
    eventually(lambda: spot.mount.status()["dirty_files"] == 0, "nothing waits", 60)
    kept = {each["path"]: each for each in listed(spot.double) if each["path"].startswith(f"{spot.there}/")}
    assert len(kept) == 301, sorted(kept)
    assert pathlib.Path(kept[f"{spot.there}/d/new/f299"]["content"]).read_bytes() == b"00299" * 4000
    recover(spot.double, "--drop", "--all", "--yes", check=False)


@pytest.mark.parametrize("more", ["lines", "ranges"])
def test_a_full_disk_here_takes_no_promise_back(tiered, more):  # noqa: F811
    """What is written then is noted, or refused; after a kill the next mount sends what was accepted."""
    if os.geteuid() != 0:
        pytest.skip("makes a small file system: needs root")
    small = tiered.scratch / "small-spool"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "small", small)
    try:
        mount = tiered.mount(options=["writeback", f"spool_dir={small}/spool", *QUICK])
        expected = bytearray(b"old\n" * 1024)
        (mount.inside / "f").write_bytes(expected)
        eventually(lambda: (mount.path / "f").exists(), "it is seen")
        os.stat(mount.path / "f")
        pid = mount.status()["pid"]
        # In pages of the spool that are there by then.
        begin, step, flags = (len(expected), 8, os.O_APPEND) if more == "lines" else (0, 3, 0)
        with standing_still(tiered, 60):
            write(mount.path / "f", b"accepted", flags)
            expected[begin:begin + 8] = b"accepted"
            with open(small / "filler", "wb", buffering=0) as filler:
                while code(lambda: filler.write(b"f" * 4096)) == "ok":
                    pass
            file = os.open(mount.path / "f", os.O_WRONLY | flags)
            for at in range(begin + 8 + step % 2, begin + 500 * step, step):
                piece = b"l%06d\n" % at if more == "lines" else b"y"
                refused = code(os.pwrite, file, piece, at)
                if refused != "ok":
                    break
                expected[at:at + len(piece)] = piece
                assert list(small.rglob("*.note")), at
            kill(mount, pid)
            code(os.close, file)
        assert refused == ("ok" if more == "lines" else "ENOSPC"), at
        (small / "filler").unlink()
        mount_with(mount)
        assert (mount.inside / "f").read_bytes() == expected
        mount.umount()
    finally:
        run("umount", "-l", small)


# --- programs

def test_git(spot, scratch):
    origin = bare_repository(scratch)

    def session(top):
        clone, said = top / "clone", []
        git("clone", "-q", origin, clone)
        said.append(git("status", "--porcelain", "--branch", cwd=clone))
        (clone / "run.sh").write_text("#!/bin/sh\necho changed\n")
        (clone / "new.txt").write_text("new\n")
        said.append(git("status", "--porcelain", cwd=clone))
        git("add", "-A", cwd=clone)
        git("commit", "-qm", "second", cwd=clone)
        git("checkout", "-q", "side", cwd=clone)
        said += [git("status", "--porcelain", cwd=clone), git("log", "--format=%H %P %s", "--all", cwd=clone), git("fsck", "--full", "--strict", cwd=clone)]
        return said
    assert session(spot.here) == session(spot.local)
    assert_all_sent(spot.mount)

    def worktree(top):
        return {path: what for path, what in digest_tree(top / "clone").items() if not path.startswith(b".git/")}
    assert worktree(spot.there) == worktree(spot.here) == worktree(spot.local)
    assert git("fsck", "--full", "--strict", cwd=spot.there / "clone") == git("fsck", "--full", "--strict", cwd=spot.local / "clone")
    assert git("status", "--porcelain", cwd=spot.here / "clone") == ""


def test_tar_keeps_all_times(spot, scratch):
    """Directories' times are set when all is in them; what is sent later changes them no more."""
    source = scratch / "tar-source"
    if not source.exists():
        source.mkdir()
        for program in trees, modes_and_times, links:
            (source / program.__name__).mkdir()
            program(source / program.__name__)
        for top, directories, files in os.walk(source, topdown=False):
            for number, name in enumerate(files + directories):
                age(os.path.join(top, name), number)
        age(source, 77)
        run("tar", "cf", scratch / "times.tar", "-C", source, ".")
    run("tar", "xpf", scratch / "times.tar", "-C", spot.here)
    run("tar", "xpf", scratch / "times.tar", "-C", spot.local)
    assert_same(look(spot.local), look(spot.here), "through the mount")
    assert_all_sent(spot.mount)
    assert_same(look(spot.local), look(spot.there), "inside the sandbox")
    assert_same(look(spot.local), look(spot.here), "through the mount, sent")


def test_make_and_a_compiler(spot):
    def build(top):
        (top / "src").mkdir()
        for number in range(5):
            (top / f"src/f{number}.c").write_text(f"int f{number}(void) {{ return {number}; }}\n")
        (top / "Makefile").write_text("OBJECTS = $(patsubst src/%.c,out/%.o,$(wildcard src/*.c))\nall: out/lib.a\nout/lib.a: $(OBJECTS)\n\tar rcD $@ $^\n"
                                      "out/%.o: src/%.c\n\tmkdir -p out && cc -c -o $@ $<\n")
        first = run("make", "-s", "-j2", cwd=top).stdout
        second = run("make", "-q", cwd=top, check=False).returncode  # nothing is older than what it is made of
        return first, second, run("ar", "t", top / "out/lib.a").stdout
    assert build(spot.here) == build(spot.local)
    assert_all_sent(spot.mount)
    assert filecmp.cmp(spot.local / "out/lib.a", spot.there / "out/lib.a", shallow=False)
    assert run("make", "-q", cwd=spot.here, check=False).returncode == 0
