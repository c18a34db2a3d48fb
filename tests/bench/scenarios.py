"""What bench.py measures: each scenario is a generator that prepares, yields what is to be timed, and then looks at the content.

The same code runs on a mount and on the bare disk. `curl` beside a scenario says which transfers move the same bytes.
"""
import concurrent.futures, dataclasses, functools, hashlib, os, pathlib, random, statistics, subprocess, time
from typing import Callable

from ground import TOOL_ENVIRONMENT, digest_tree, run

MIB, GIB = 1 << 20, 1 << 30
tool = functools.partial(run, timeout=3600)


@dataclasses.dataclass
class Timed:
    """The call that is timed, and how much it is: bytes of content that the program moves, and operations one after another in each thread."""
    call: Callable
    payload: int = 0
    operations: int = 1
    threads: int = 1


@dataclasses.dataclass
class Transfer:
    """One that curl does: of a file below the sandbox's root."""
    path: pathlib.Path
    range: str = ""
    upload: pathlib.Path | None = None


@dataclasses.dataclass
class Scenario:
    name: str
    title: str
    steps: Callable
    curl: Callable | None  # site -> ([Transfer], how many of them at once)
    local: bool            # nothing of it comes from the sandbox: beside bindfs
    behind: bool           # also with -o writeback, until everything is in the sandbox


SCENARIOS = {}


def scenario(title, curl=None, local=False, behind=False):
    def add(steps):
        name = steps.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(name, title, steps, curl, local, behind)
        return steps
    return add


class Sizes:
    def __init__(self, scale):
        self.scale = scale

    def size(self, full):
        return max(MIB, int(full * self.scale) // MIB * MIB)

    def count(self, full):
        return max(4, int(full * self.scale))


class Library:
    """What is only read: what is in the sandbox before a mount is, below `top`, and what comes from outside, below `local`.

    Each part is made when it is first asked for.
    """

    def __init__(self, top, local, sizes):
        self.top, self.local, self.sizes = top, local, sizes
        top.mkdir()
        local.mkdir()

    @functools.cached_property
    def source(self):
        """Random: nothing to gain by compression."""
        write_through(self.local / "source", (os.urandom(MIB) for _ in range(self.sizes.size(512 * MIB) // MIB)))
        return self.local / "source"

    @functools.cached_property
    def digest(self):
        return digest(self.source)

    @functools.cached_property
    def large(self):
        os.link(self.source, self.top / "large")
        return self.top / "large"

    @functools.cached_property
    def warm(self):
        (self.top / "warm").write_bytes(os.urandom(MIB) * (self.sizes.size(64 * MIB) // MIB))
        return self.top / "warm"

    @functools.cached_property
    def first(self):
        """Files of 1 GiB."""
        top = self.top / "first"
        top.mkdir()
        for number in range(5):
            with open(top / str(number), "wb") as file:
                file.write(b"1")
                file.truncate(GIB)
        return top

    @functools.cached_property
    def crowd(self):
        """64 files that are together as large as the large one."""
        top = self.top / "crowd"
        top.mkdir()
        with open(self.source, "rb") as source:
            for number in range(64):
                write_through(top / str(number), [source.read(file_size(self.source) // 64)])
        return top

    @functools.cached_property
    def tree(self):
        return fill(self.top / "tree", self.sizes.count(10_000), directories=100, content=lambda i: b"x" * (i % 100))

    @functools.cached_property
    def texts(self):
        def text(i):
            return b"here is hay\n" * 100 + (b"a needle\n" if i % 10 == 0 else b"") + b"more hay\n" * 100
        return fill(self.top / "texts", self.sizes.count(1_000), directories=50, content=text)

    @functools.cached_property
    def fresh(self):
        """Directories to list, the first `idle` of them while nothing else runs."""
        self.idle = self.sizes.count(20)
        directories = self.idle + self.sizes.count(100)
        return fill(self.top / "fresh", 20 * directories, directories, content=lambda i: b"")

    @functools.cached_property
    def archived(self):
        return fill(self.local / "archived", self.sizes.count(1_000), directories=20, content=lambda i: b"%d\n" % i * 300)

    @functools.cached_property
    def archive(self):
        tool("tar", "cf", self.local / "archive.tar", "-C", self.archived, ".")
        return self.local / "archive.tar"

    @functools.cached_property
    def small_archive(self):
        """Of 200 files."""
        fill(self.local / "archived-200", self.sizes.count(200), directories=10, content=lambda i: b"%d\n" % i * 300)
        tool("tar", "cf", self.local / "archive-200.tar", "-C", self.local / "archived-200", ".")
        return self.local / "archive-200.tar"

    @functools.cached_property
    def repository(self):
        grown, bare = self.local / "grown", self.local / "repository.git"
        tool("git", "init", "-q", grown)
        for commit in range(3):
            fill(grown / f"part{commit}", self.sizes.count(200) // 3, directories=7, content=lambda i: b"%d\n" % (i + commit) * 500)
            tool("git", "-C", grown, "add", ".")
            tool("git", "-C", grown, "commit", "-qm", f"part {commit}")
        tool("git", "clone", "-q", "--bare", grown, bare)
        return bare


class Site:
    """Where a scenario works: `here` as programs see it, `there` as the sandbox has it, in a directory of its own that is empty at first.

    On the bare disk both are the same. `notes` is what is found besides times. `remount` makes the mount anew, `settle` waits for what it does in
    the background, `flush` until all that was written is in the sandbox.
    """

    def __init__(self, made, top, root, name, latency, remount=lambda: None, settle=lambda: None, flush=lambda: None):
        self.made, self.top, self.root, self.latency, self.remount, self.settle, self.flush = made, top, root, latency, remount, settle, flush
        self.here, self.there = top / name, root / name
        self.sizes, self.notes = made.sizes, {}

    def see(self, path):
        """What is in the sandbox, as programs see it."""
        return self.top / path.relative_to(self.root)


def write_through(path, blocks):
    """A large file that is on the disk, too: that nothing is written there while something is measured."""
    with open(path, "wb") as file:
        for block in blocks:
            file.write(block)
        file.flush()
        os.fdatasync(file.fileno())


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fill(top, files, directories, content):
    directories = min(directories, files)
    for number in range(directories):
        (top / f"d{number}").mkdir(parents=True)
    for number in range(files):
        (top / f"d{number % directories}/f{number}").write_bytes(content(number))
    return top


def copy(source, target=None):
    """By large blocks, as dd bs=1M does; without a target into nothing."""
    block = memoryview(bytearray(MIB))
    with open(source, "rb", buffering=0) as reader:
        writer = target and os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        while got := reader.readinto(block):
            if writer:
                assert os.write(writer, block[:got]) == got
        if writer:
            os.close(writer)


def at_once(calls):
    """In a thread each; what they returned."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as threads:
        return [each.result() for each in [threads.submit(call) for call in calls]]


def file_size(path):
    return path.stat().st_size


# Content

@scenario("sequential read", curl=lambda site: ([Transfer(site.made.large)], 1))
def read(site):
    path = site.see(site.made.large)
    yield Timed(lambda: copy(path), payload=file_size(site.made.source))
    assert digest(path) == site.made.digest  # mostly of what is in the kernel's cache now


def read_again(site, before):
    while time.time() < os.stat(site.made.large).st_ctime + 4:  # a version that is younger is not kept (docs/cache.md)
        time.sleep(0.1)
    path = site.see(site.made.large)
    assert digest(path) == site.made.digest
    site.settle()
    before(path)
    yield Timed(lambda: copy(path), payload=file_size(site.made.source))
    assert digest(path) == site.made.digest


def drop_pages(path):
    """The kernel's of the file as it is seen there, not those of what is below."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


@scenario("read again, from the kernel's pages", local=True)
def again(site):
    yield from read_again(site, lambda path: None)


@scenario("read again without the kernel's pages", local=True)
def again_dropped(site):
    yield from read_again(site, drop_pages)


@scenario("read again after a remount", local=True)
def again_remounted(site):
    yield from read_again(site, lambda path: site.remount())


@scenario("sequential write", curl=lambda site: ([Transfer(site.there / "uploaded", upload=site.made.source)], 1))
def write(site):
    yield Timed(lambda: copy(site.made.source, site.here / "written"), payload=file_size(site.made.source))
    assert digest(site.there / "written") == site.made.digest


@scenario("first byte of 1 GiB", curl=lambda site: ([Transfer(path, "0-4095") for path in sorted(site.made.first.iterdir())], 1))
def first_byte(site):
    paths = sorted(site.see(site.made.first).iterdir())
    for path in paths:
        path.stat()  # the attributes are known

    def first():
        for path in paths:
            file = os.open(path, os.O_RDONLY)
            assert os.pread(file, 1, 0) == b"1"
            os.close(file)
    yield Timed(first, payload=len(paths), operations=len(paths))


def offsets(site, threads):
    """For each thread, of pages that nobody else reads; for about three seconds, if each costs a round trip."""
    each = min(1000, 4000 // threads, int(3000 / max(site.latency, 1)))
    pages = random.Random(1).sample(range(file_size(site.made.source) // 4096), threads * site.sizes.count(each))
    return [[page * 4096 for page in pages[thread::threads]] for thread in range(threads)]


def random_transfers(site, threads):
    return [Transfer(site.made.large, f"{at}-{at + 4095}") for each in offsets(site, threads) for at in each], threads


def read_pages(site, threads):
    path = site.see(site.made.large)
    path.stat()
    places = offsets(site, threads)
    found = {}

    def read_some(mine):
        file = os.open(path, os.O_RDONLY)
        for at in mine:
            found[at] = os.pread(file, 4096, at)
        os.close(file)
    yield Timed(lambda: at_once([functools.partial(read_some, mine) for mine in places]),
                payload=4096 * threads * len(places[0]), operations=len(places[0]), threads=threads)
    with open(site.made.source, "rb") as source:
        assert all(os.pread(source.fileno(), 4096, at) == page for at, page in found.items())


@scenario("random 4 KiB reads", curl=lambda site: random_transfers(site, 1))
def random_1(site):
    yield from read_pages(site, 1)


@scenario("random 4 KiB reads, 16 threads", curl=lambda site: random_transfers(site, 16))
def random_16(site):
    yield from read_pages(site, 16)


@scenario("4 KiB change in 256 MiB")
def change(site):
    size, times = site.sizes.size(256 * MIB), 10
    with open(site.there / "changed", "wb") as file:
        for _ in range(size // MIB):
            file.write(b"o" * MIB)
    path = site.here / "changed"
    path.stat()

    def change_some():
        for number in range(times):
            file = os.open(path, os.O_WRONLY)
            os.pwrite(file, b"n" * 4096, size // times * number)
            os.close(file)
    yield Timed(change_some, payload=times * 4096, operations=times)
    content = (site.there / "changed").read_bytes()
    assert len(content) == size and content.count(b"n") == times * 4096 and content.count(b"o") == size - times * 4096
    assert all(content[size // times * number:][:4096] == b"n" * 4096 for number in range(times))


@scenario("appends of 100 bytes")
def append(site):
    times = site.sizes.count(100)
    (site.there / "log").touch()
    (site.here / "log").stat()

    def append_some():
        for number in range(times):
            file = os.open(site.here / "log", os.O_WRONLY | os.O_APPEND)
            os.write(file, b"%99d\n" % number)
            os.close(file)
    yield Timed(append_some, payload=100 * times, operations=times)
    assert (site.there / "log").read_bytes() == b"".join(b"%99d\n" % number for number in range(times))


@scenario("64 files read at once", curl=lambda site: ([Transfer(path) for path in site.made.crowd.iterdir()], 64))
def crowd(site):
    paths = list(site.see(site.made.crowd).iterdir())
    yield Timed(lambda: at_once([functools.partial(copy, path) for path in paths]), payload=sum(map(file_size, paths)), threads=len(paths))
    assert digest_tree(site.see(site.made.crowd)) == digest_tree(site.made.crowd)


@scenario("copies both ways", curl=lambda site: ([Transfer(site.made.large), Transfer(site.there / "uploaded", upload=site.made.source)], 2))
def both_ways(site):
    """And `ls -l` of fresh directories meanwhile, until one of the copies is done; beside the same when nothing else runs."""
    fresh = sorted(site.see(site.made.fresh).iterdir())
    target = site.made.local / "copied"

    def ls(path):
        begin = time.perf_counter()
        tool("ls", "-l", path)
        return time.perf_counter() - begin
    idle = [ls(path) for path in fresh[:site.made.idle]]
    busy = []

    def copies():
        pairs = (site.see(site.made.large), target), (site.made.source, site.here / "written")
        running = [subprocess.Popen(["cp", *pair], env=TOOL_ENVIRONMENT) for pair in pairs]
        for path in fresh[site.made.idle:]:
            busy.append(ls(path))
            if any(each.poll() is not None for each in running):
                break
            time.sleep(0.05)
        assert [each.wait() for each in running] == [0, 0]
    yield Timed(copies, payload=2 * file_size(site.made.source))
    site.notes.update(ls_ms=statistics.median(busy) * 1000, idle_ls_ms=statistics.median(idle) * 1000, ls_count=len(busy))
    assert digest(target) == digest(site.there / "written") == site.made.digest
    target.unlink()


# Trees

def unpack(site, archive, files):
    target = site.here / "target"
    target.mkdir()

    def untar():
        tool("tar", "xf", archive, "-C", target)
        site.flush()
    yield Timed(untar, operations=site.sizes.count(files))


@scenario("untar small files", behind=True)
def untar(site):
    yield from unpack(site, site.made.archive, 1_000)
    assert digest_tree(site.there / "target") == digest_tree(site.made.archived)


@scenario("untar 200 small files", behind=True)
def untar_200(site):
    yield from unpack(site, site.made.small_archive, 200)
    assert digest_tree(site.there / "target") == digest_tree(site.made.local / "archived-200")


@scenario("small new files", behind=True)
def new_files(site):
    """In a new directory."""
    files, target = site.sizes.count(1_000), site.here / "target"

    def make():
        target.mkdir()
        for number in range(files):
            with open(target / f"f{number}", "xb", buffering=0) as file:
                file.write(b"%d\n" % number * 50)
        site.flush()
    yield Timed(make, operations=files)
    assert sorted(path.read_bytes() for path in (site.there / "target").iterdir()) == sorted(b"%d\n" % number * 50 for number in range(files))


@scenario("rm -r small files", behind=True)
def rm(site):
    tool("tar", "xf", site.made.archive, "-C", site.there)

    def remove():
        tool("rm", "-r", *site.here.iterdir())
        site.flush()
    yield Timed(remove, operations=site.sizes.count(1_000))
    assert not list(site.there.iterdir())


@scenario("untar and rm -r at once after it", behind=True)
def untar_rm(site):
    """What was not sent yet need never be."""
    def both():
        tool("tar", "xf", site.made.archive, "-C", site.here)
        tool("rm", "-r", *site.here.iterdir())
        site.flush()
    yield Timed(both, operations=2 * site.sizes.count(1_000))
    assert not list(site.there.iterdir())


def find_files(site):
    return tool("find", site.see(site.made.tree), "-type", "f", "-size", "-1000").stdout.split()  # -size: each is looked at


@scenario("find, cold")
def find_cold(site):
    found = []
    yield Timed(lambda: found.extend(find_files(site)), operations=site.sizes.count(10_000))
    assert len(set(found)) == site.sizes.count(10_000)


@scenario("find, warm")
def find_warm(site):
    find_files(site)
    yield from find_cold(site)


@scenario("grep -r")
def grep(site):
    found = []
    yield Timed(lambda: found.extend(tool("grep", "-rl", "needle", site.see(site.made.texts)).stdout.split()), operations=site.sizes.count(1_000))
    assert len(set(found)) == (site.sizes.count(1_000) + 9) // 10


@scenario("grep -r again after a remount")
def grep_remounted(site):
    """Content from the store; names and attributes are asked for."""
    top = site.see(site.made.texts)
    while time.time() < max(os.stat(path).st_ctime for path in site.made.texts.rglob("f*")) + 4:  # as in read_again
        time.sleep(0.1)
    tool("grep", "-rl", "needle", top)
    site.settle()
    site.remount()
    yield from grep(site)


@scenario("git clone", behind=True)
def git_clone(site):
    def clone():
        tool("git", "clone", "-q", f"file://{site.made.repository}", site.here / "clone")
        site.flush()
    yield Timed(clone)
    tool("git", "-C", site.there / "clone", "fsck", "--strict")
    assert tool("git", "-C", site.there / "clone", "status", "--porcelain").stdout == ""


def git_status_of(site):
    said = []
    yield Timed(lambda: said.append(tool("git", "-C", site.here / "clone", "status", "--porcelain").stdout))
    assert said == [""]


@scenario("git status after a clone")
def git_status(site):
    tool("git", "clone", "-q", f"file://{site.made.repository}", site.here / "clone")
    yield from git_status_of(site)


@scenario("git status of a warm tree", local=True, behind=True)
def git_status_warm(site):
    tool("git", "clone", "-q", f"file://{site.made.repository}", site.here / "clone")
    time.sleep(1.1)  # files of the second in which the index was written are read once more, on any disk
    for _ in range(2):
        tool("git", "-C", site.here / "clone", "status", "--porcelain")
    site.flush()
    site.settle()
    yield from git_status_of(site)
