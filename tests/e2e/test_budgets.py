"""The round trips that operations may cost, counted at the test sandbox through a real mount: names, attributes, small files.

The last tests are of mounts with -o writeback, and count until everything is in the sandbox. Both numbers are of round trips in sequence. On the
service tier the test sandbox counts the longest chain of requests. On the syscall tier the operations are frames in one
long stream: `e2bfs status --json` counts those that were waited for, and transfers of files come on top. The test sandbox
counts the frames that arrive: as many as e2bfs says that it sent, and no more than may be waited for, with two for each open.
"""
import os, re, sys, time
from collections import namedtuple

import pytest

from conftest import ENVD_URL, eventually, run
from tiers import mount_on, round_trips, tier, tiered

KIB = 1 << 10
TREE_FILES, TREE_DIRECTORIES = 40, 5
SMALL = b"0123456789" * 100
# wire: bytes of bodies, both ways. opens: of files; on the syscall tier an open and a close are a frame each that nobody waits for.
Limit = namedtuple("Limit", "trips wire opens", defaults=[None, 0])


def create_with_everything(top):
    file = os.open(top / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(file, SMALL)
    os.fchmod(file, 0o640)
    os.utime(file, ns=(1_500_000_000_000_000_001, 1_500_000_000_000_000_002))
    os.close(file)


def write_and_close(path, flags, content, at=0):
    file = os.open(path, os.O_WRONLY | flags)
    assert (os.write(file, content) if flags else os.pwrite(file, content, at)) == len(content)
    os.close(file)


def read_all(path):
    file = os.open(path, os.O_RDONLY)
    found = b""
    while part := os.read(file, 128 * KIB):
        found += part
    os.close(file)
    return found


def list_and_stat(path):
    for name in os.listdir(path):
        os.lstat(os.path.join(path, name))


# name: (the service tier's limit, the syscall tier's, the call; what it needs besides `furnish`)
NAMES = Limit(2), Limit(1)
BUDGETS = {
    "stat of what is known": (Limit(0), Limit(0), lambda t: os.stat(t / "file")),
    "lookup of what is known not to be there": (Limit(0), Limit(0), lambda t: os.path.exists(t / "missing")),
    "open of what is known": (Limit(0), Limit(0, opens=1), lambda t: os.close(os.open(t / "file", os.O_RDONLY))),
    "readdir of what is known": (Limit(0), Limit(0), list_and_stat),
    "readlink of what is known": (Limit(0), Limit(0), lambda t: os.readlink(t / "link")),
    "the first ls -l": (Limit(1), Limit(1), lambda t: run("ls", "-l", t / "unlisted")),
    "the first listing with stats": (Limit(1), Limit(1), lambda t: list_and_stat(t / "unlisted")),
    "the first ls -l of an empty directory": (Limit(1), Limit(1), lambda t: run("ls", "-l", t / "empty")),
    "reading a small file": (Limit(1), Limit(1, opens=1), lambda t: read_all(t / "file")),
    "reading 128 KiB": (Limit(1), Limit(1, opens=1), lambda t: read_all(t / "medium")),
    "reading an empty file": (Limit(0), Limit(0, opens=1), lambda t: read_all(t / "nothing")),
    "creating, writing, chmod, utimes, close": (Limit(3), Limit(2, opens=1), create_with_everything),
    "creating an empty file": (Limit(2), Limit(1, opens=1), lambda t: os.close(os.open(t / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))),
    "overwriting a small file": (Limit(2), Limit(1, opens=1), lambda t: write_and_close(t / "file", os.O_TRUNC, SMALL)),
    "mkdir": (*NAMES, lambda t: os.mkdir(t / "new")),
    "rename": (*NAMES, lambda t: os.rename(t / "file", t / "new")),
    "rename over another": (*NAMES, lambda t: os.rename(t / "file", t / "other")),
    "rename into another directory": (*NAMES, lambda t: os.rename(t / "file", t / "listed/new")),
    "rename of a directory": (*NAMES, lambda t: os.rename(t / "unlisted", t / "new")),
    "unlink": (*NAMES, lambda t: os.unlink(t / "file")),
    "unlink of a link": (*NAMES, lambda t: os.unlink(t / "link")),
    "rmdir": (*NAMES, lambda t: os.rmdir(t / "empty")),
    "rmdir of a full one": (*NAMES, lambda t: pytest.raises(OSError, os.rmdir, t / "listed")),
    "symlink": (*NAMES, lambda t: os.symlink("file", t / "new")),
    "link": (*NAMES, lambda t: os.link(t / "file", t / "new")),
    "chmod": (*NAMES, lambda t: os.chmod(t / "file", 0o700)),
    "chmod of a directory": (*NAMES, lambda t: os.chmod(t / "listed", 0o700)),
    "utimes": (*NAMES, lambda t: os.utime(t / "file", ns=(1, 2))),
    "truncate": (*NAMES, lambda t: os.truncate(t / "file", 10)),
    "changing 4 KiB of 1 GiB": (Limit(3, 64 * KIB), Limit(1, 16 * KIB, 1), lambda t: write_and_close(t / "large", 0, b"n" * 4 * KIB, 500 << 20)),
    "appending 100 bytes": (Limit(2, 4 * KIB), Limit(1, 2 * KIB, 1), lambda t: write_and_close(t / "file", os.O_APPEND, b"a" * 100)),
    "appending 100 bytes to 1 GiB": (Limit(2, 4 * KIB), Limit(1, 2 * KIB, 1), lambda t: write_and_close(t / "large", os.O_APPEND, b"a" * 100)),
}
# Calls whose second run is what counts, after the cache has what it needs.
SECOND = {
    "re-reading a small file": (Limit(0), Limit(0, opens=1), lambda t: read_all(t / "file")),
    "re-reading what was just written": (Limit(0), Limit(0, opens=1), lambda t: read_all(t / "written")),
    "the second ls -l": (Limit(0), Limit(0), lambda t: run("ls", "-l", t / "unlisted")),
}


# About directories that nobody looked into: those are not watched, and their attributes are asked for again after attr_timeout.
NOT_LOOKED_INTO = {"readdir of what is known", "the first ls -l", "the first listing with stats", "the first ls -l of an empty directory", "rename of a directory", "rmdir", "chmod of a directory"}
# Known to be over its limit: (tier, name): why.
OVER = {
    ("service", "appending 100 bytes"): "the script that appends is 3 KB of command line",
    ("service", "appending 100 bytes to 1 GiB"): "the script that appends is 3 KB of command line",
}


def furnish(top):
    top.mkdir()
    for name in ("file", "other"):
        (top / name).write_bytes(SMALL)
    (top / "nothing").touch()
    (top / "medium").write_bytes(os.urandom(128 * KIB))
    for name in ("listed", "unlisted", "empty"):
        (top / name).mkdir()
    for number in range(30):
        (top / f"unlisted/f{number}").write_text("x")
    (top / "listed/inner").write_text("inner")
    with open(top / "large", "wb") as file:
        file.truncate(1 << 30)
    os.symlink("file", top / "link")
    for directory, names, files in os.walk(top, topdown=False):
        for name in files + ["."]:  # long ago: nothing could have changed in the same second
            os.utime(os.path.join(directory, name), (1_600_000_000, 1_600_000_000), follow_symlinks=name == ".")


def place_of(name):
    return re.sub(r"\W+", "-", name)


@pytest.fixture(scope="module")
def counted(double, tier):
    if ENVD_URL:
        pytest.skip("counts requests: a real envd cannot")
    inside = double.root / f"budgets-{tier}"
    inside.mkdir()
    for name in [*BUDGETS, *SECOND]:
        furnish(inside / place_of(name))
    for number in range(TREE_FILES):
        path = inside / "tree" / f"d{number % TREE_DIRECTORIES}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    # On the syscall tier what is known stays known, with the options that everybody has. Where time counts, little goes by.
    patient = mount_on(tier, double, f"{inside.name}-patient", ["attr_timeout=600", "negative_timeout=600"], inside)
    made = mount_on(tier, double, inside.name, [], inside) if tier == "syscall" else patient
    made.patient = patient
    double.control("POST", "/_test/latency?ms=15")  # so that what is asked at once is on its way at once
    yield made
    double.control("POST", "/_test/latency?ms=0")
    for each in {made, patient}:
        each.close()


class Count:
    """What the calls inside `with` cost."""

    def __init__(self, mount, tier):
        self.mount, self.tier = mount, tier

    def __enter__(self):
        self.before = self.said()
        self.mount.double.reset_counts()
        return self

    def said(self):
        """Round trips and frames, as e2bfs itself says."""
        return (round_trips(self.mount), int(self.mount.status()["remote"]["frames"])) if self.tier == "syscall" else (0, 0)

    def __exit__(self, *problem):
        waited, sent = [now - before for now, before in zip(self.said(), self.before)]
        if self.tier == "syscall":  # what nobody waits for may be on its way
            eventually(lambda: self.mount.double.counts()["input_frames"] >= sent, f"{sent} frames arrive")
        self.counts = self.mount.double.counts()
        requests, self.frames = self.counts["requests"], self.counts["input_frames"]
        if self.tier == "syscall":
            assert self.frames == sent >= waited, f"{self.frames} frames arrived, {sent} were sent, {waited} were waited for"
            self.trips = waited + sum(n for name, n in requests.items() if name.endswith(" /files"))
        else:
            self.trips = self.counts["sequence"]
        self.wire = self.counts["request_body_bytes"] + self.counts["response_body_bytes"]
        self.requests = requests

    def check(self, limit, what):
        said = f"{what}: {self.trips} round trips, {self.frames} frames, {self.wire} bytes; allowed: {limit.trips}, {limit.wire}; {self.requests}"
        print(said)
        assert self.trips <= limit.trips and (limit.wire is None or self.wire <= limit.wire), said
        assert self.frames <= limit.trips + 2 * limit.opens, said


def limit_of(tier, row):
    return row[0] if tier == "service" else row[1]


def prepare(mount, name):
    """A directory whose own listing and that of `listed` are known, and nothing more."""
    top = mount.path / place_of(name)
    list_and_stat(top)
    list_and_stat(top / "listed")
    return top


@pytest.mark.parametrize("name", BUDGETS)
def test_once(counted, tier, name, request):
    if reason := OVER.get((tier, name)):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    row = BUDGETS[name]
    mount = counted.patient if name in NOT_LOOKED_INTO else counted
    top = prepare(mount, name)
    with Count(mount, tier) as count:
        row[2](top)
    count.check(limit_of(tier, row), name)


@pytest.mark.parametrize("name", SECOND)
def test_the_second_time(counted, tier, name):
    row = SECOND[name]
    top = prepare(counted, name)
    (top / "written").write_bytes(SMALL)
    row[2](top)
    with Count(counted, tier) as count:
        row[2](top)
    count.check(limit_of(tier, row), name)


@pytest.mark.parametrize("name", ["the first ls -l", "the first listing with stats", "the first ls -l of an empty directory"])
def test_a_directory_seen_a_while_ago(counted, tier, name):
    """Its attributes are not believed any more, and come with the listing that is to follow: one round trip. Service: two."""
    top = prepare(counted, name)
    time.sleep(1.2)  # attr_timeout is 1 s, of what is not watched
    for path in top, top / "listed":
        os.stat(path)
    with Count(counted, tier) as count:
        BUDGETS[name][2](top)
    count.check(Limit(1) if tier == "syscall" else Limit(2), name)


def test_removing_a_listed_tree(counted, tier):
    """rm -r of n files in m directories: n + 2 m; the service tier promises nothing."""
    run("ls", "-lR", counted.path / "tree")
    with Count(counted, tier) as count:
        run("rm", "-r", counted.path / "tree")
    assert not (counted.inside / "tree").exists()
    count.check(Limit(TREE_FILES + 2 * (TREE_DIRECTORIES + 1) if tier == "syscall" else sys.maxsize), "rm -r")


def test_untar(counted, tier, scratch):
    """n small files into a new directory: 2.3 n; the service tier promises nothing."""
    files, directories = 40, 4
    source = scratch / f"untar-{tier}"
    for number in range(files):
        path = source / f"d{number % directories}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SMALL)
    run("tar", "cf", scratch / f"{tier}.tar", "-C", source, ".")
    top = counted.path / f"untar-{tier}"
    top.mkdir()
    with Count(counted, tier) as count:
        run("tar", "xf", scratch / f"{tier}.tar", "-C", top)
    assert (counted.inside / top.name / "d1/f1").read_bytes() == SMALL
    count.check(Limit(int(2.3 * files) + 2 * directories if tier == "syscall" else sys.maxsize, opens=files), "untar")


# --- trees: what is asked for ahead

def make_tree(top, shape, files_in_each=0, content=b""):
    """Directories in directories, so many at each level; files in each of the last."""
    top.mkdir()
    level = [top]
    for width in shape:
        level = [each / f"d{number:03}" for each in level for number in range(width)]
        for path in level:
            path.mkdir()
    for path in level:
        for number in range(files_in_each):
            (path / f"f{number:03}").write_bytes(content + f"{path} {number}\n".encode() if content else b"")


TREES = {"flat": (1000,), "of three levels": (10, 10, 10), "wide": (32, 31), "narrow": (4, 4, 4, 4, 4)}


# With the lookup of the tree's top, and find's statfs.
@pytest.mark.parametrize("shape", TREES)
def test_find(tiered, tier, shape):
    inside = tiered.root / "find"
    inside.mkdir()
    make_tree(inside / "top", TREES[shape], 1)
    mount = tiered.mount("find", ["attr_timeout=600", "negative_timeout=600"] if tier == "service" else [], inside)
    tiered.control("POST", "/_test/latency?ms=15")
    with Count(mount, tier) as count:
        found = run("find", mount.path / "top").stdout.splitlines()
    assert sorted(line.replace(str(mount.path), str(inside)) for line in found) == sorted(run("find", inside / "top").stdout.splitlines())
    count.check(Limit(4) if tier == "syscall" else Limit(20), f"find in a tree that is {shape}")
    guesses = mount.status()["prefetch"]
    assert guesses["listings"] == guesses["listings_used"] > 900, guesses


@pytest.mark.parametrize("shape", [(50,), (5, 10)], ids=["flat", "of two levels"])
@pytest.mark.parametrize("size", [10, 3000], ids=["tiny", "of 3 KB"])
def test_grep(tiered, tier, shape, size):
    if tier == "service":
        pytest.skip("content of several files by one request is the syscall tier's")
    inside = tiered.root / "grep"
    inside.mkdir()
    make_tree(inside / "top", shape, 20, b"x" * size)
    mount = tiered.mount("grep", [], inside)
    tiered.control("POST", "/_test/latency?ms=15")
    with Count(mount, tier) as count:
        found = run("grep", "-r", "", mount.path / "top", env={"LC_ALL": "C"}).stdout
    assert sorted(found.replace(str(mount.path), str(inside)).splitlines()) == sorted(run("grep", "-r", "", inside / "top", env={"LC_ALL": "C"}).stdout.splitlines())
    count.check(Limit(10, opens=1000), f"grep -r over files that are {size} bytes long")
    guesses = mount.status()["prefetch"]
    assert guesses["files"] == guesses["files_used"] > 900, guesses
    assert guesses["bytes"] == guesses["bytes_used"] > 900 * size, guesses


def test_nothing_is_asked_ahead_where_that_is_off(tiered, tier):
    inside = tiered.root / "off"
    inside.mkdir()
    make_tree(inside / "top", (30,), 10, b"x")
    mount = tiered.mount("off", ["prefetch=off"], inside)
    run("grep", "-r", "", mount.path / "top")
    assert set(mount.status()["prefetch"].values()) == {0}, mount.status()["prefetch"]
    if tier == "syscall":
        assert round_trips(mount) > 330


def test_a_program_that_reads_at_random_is_asked_for_little(tiered, tier):
    """Files here and there in a tree: no more than some dozens of guesses."""
    inside = tiered.root / "random"
    inside.mkdir()
    make_tree(inside / "top", (40, 5), 10, b"x" * 500)
    mount = tiered.mount("random", [], inside)
    files = sorted(path.relative_to(inside) for path in inside.rglob("f*"))
    for number in range(400):
        name = files[number * 1237 % len(files)]
        assert read_all(mount.path / name) == (inside / name).read_bytes()
    guesses = mount.status()["prefetch"]
    print(guesses)
    assert guesses["files"] - guesses["files_used"] < 200 and guesses["listings"] - guesses["listings_used"] < 100, guesses


# --- -o writeback: until everything is in the sandbox, by `e2bfs flush`

@pytest.fixture
def written_behind(tiered, tier):
    mount = tiered.mount("behind", ["writeback"])
    tiered.control("POST", "/_test/latency?ms=20")
    return mount


@pytest.mark.parametrize("directories", [0, 20], ids=["one directory", "20 directories"])
def test_new_files_written_behind(written_behind, tier, directories):
    """1,000 small ones in a new directory, also with directories in it: 6 round trips; service: 20."""
    top = written_behind.path / "new"
    with Count(written_behind, tier) as count:
        top.mkdir()
        for number in range(directories):
            (top / f"d{number}").mkdir()
        for number in range(1000):
            (top / f"d{number % directories}" / f"f{number}" if directories else top / f"f{number}").write_bytes(b"%d\n" % number * 20)
        written_behind.e2bfs("flush", written_behind.path)
    found = sorted((path for path in (written_behind.inside / "new").rglob("f*")), key=lambda path: int(path.name[1:]))
    assert [path.read_bytes() for path in found] == [b"%d\n" % number * 20 for number in range(1000)]
    count.check(Limit(6 if tier == "syscall" else 20, opens=1000), "1,000 new files, until all are in the sandbox")


def test_untar_written_behind(written_behind, tier, scratch):
    """200 files: 0.5 s at 20 ms each, so 25 round trips."""
    source = scratch / f"behind-{tier}"
    for number in range(200):
        path = source / f"d{number % 10}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SMALL)
    run("tar", "cf", scratch / f"behind-{tier}.tar", "-C", source, ".")
    top = written_behind.path / "untar"
    with Count(written_behind, tier) as count:
        top.mkdir()
        run("tar", "xf", scratch / f"behind-{tier}.tar", "-C", top)
        written_behind.e2bfs("flush", written_behind.path)
    assert sorted(path.read_bytes() for path in (written_behind.inside / "untar").rglob("f*")) == [SMALL] * 200
    count.check(Limit(25, opens=1000), "untar, until all is in the sandbox")
