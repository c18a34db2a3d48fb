"""The block store on disk: what was read is not asked for again, also after a remount; and whatever its files are, never served wrong."""
import errno, json, mmap, os, pathlib, random, stat, subprocess, time

import pytest

from conftest import BIN, eventually, run
from tiers import round_trips, tier, tiered, tiered_anywhere  # noqa: F401 (fixtures)

MIB = 1 << 20
SETTLED = 4  # seconds after which a file is kept with these options (2, and the grain of the clock that was asked for)
SOON = ["cache_after=2"]


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def drop_pages(path):
    """The kernel's pages of the file, not those of what the store has on the disk."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def read(path):
    with open(path, "rb", buffering=0) as file:
        parts = []
        while part := file.read(MIB):
            parts.append(part)
        return b"".join(parts)


def read_cold(path):
    drop_pages(path)
    return read(path)


def shows(path, content):
    try:
        return read_cold(path) == content
    except OSError as problem:  # replaced just now, and not told of yet: so it is without a store, too
        assert problem.errno == errno.ESTALE
        return False


def entries(mount):
    return [path for path in (mount.cache / "e2bfs/entries").rglob("*") if not path.is_dir()]


def written(mount):
    """Waits until the store has written what it was given."""
    def still():
        before = mount.status()["counters"].get("cache.store_written_bytes", 0)
        time.sleep(0.2)
        return mount.status()["counters"].get("cache.store_written_bytes", 0) == before
    eventually(still, "the store has settled")


def requests(double):
    """Those for content and names; whatever else runs for itself is not ours."""
    return sum(double.counts()["requests"].values())


class Warm:
    """A mount of files that were there for long, each read once."""

    FILES = {"empty": b"", "byte": b"x", "small": noise(3_000), "page": noise(4096), "odd": noise(700_001), "large": noise(24 * MIB + 5)}

    def __init__(self, double, options=()):
        self.double = double
        inside = double.root / "m"
        inside.mkdir()
        for name, content in self.FILES.items():
            (inside / name).write_bytes(content)
            os.utime(inside / name, (1_500_000_000, 1_500_000_000))
        if double.tier == "syscall":
            time.sleep(SETTLED)  # ctime
        self.mount = double.mount("m", [*SOON, *options])
        self.path = self.mount.path
        self.check(read)
        written(self.mount)

    def check(self, how=read_cold):
        for name, content in self.FILES.items():
            assert how(self.path / name) == content, name

    def remount(self):
        self.mount.umount()
        self.mount.mount()

    def received_by(self, call):
        """The bytes that it made the sandbox send."""
        before = self.mount.status()["received_bytes"]
        call()
        return self.mount.status()["received_bytes"] - before


@pytest.fixture
def warm(tiered):  # noqa: F811
    return Warm(tiered)


def test_what_was_read_costs_no_request(warm):
    [(warm.path / name).stat() for name in warm.FILES]
    warm.double.reset_counts()
    before = round_trips(warm.mount)
    warm.check()
    with open(warm.path / "large", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        drop_pages(warm.path / "large")
        assert mapped[:] == warm.FILES["large"]
    if warm.double.tier == "syscall":
        assert requests(warm.double) == 0
        assert round_trips(warm.mount) == before
    else:  # names and attributes live for a second there
        counted = warm.double.counts()["requests"]
        assert not [name for name in counted if name.startswith("GET /files")], counted
    status = warm.mount.status()
    assert status["counters"]["cache.store_hits_count"] > 0
    assert status["counters"]["cache.store_read_bytes"] >= sum(map(len, warm.FILES.values()))
    assert status["cache_directory"] == str(warm.mount.cache / "e2bfs") and status["cache_limit_bytes"] == 2 << 30


def test_a_remount_asks_for_no_content(warm):
    warm.remount()
    warm.double.reset_counts()
    warm.check(read)
    counted = warm.double.counts()["requests"]
    downloads = sum(number for name, number in counted.items() if name.startswith("GET /files"))
    if warm.double.tier == "syscall":
        assert downloads == 0, counted
        assert warm.mount.status()["received_bytes"] < MIB
        return
    assert downloads > 0  # what it is sure of there ends with the mount (docs/cache.md)
    written(warm.mount)
    assert entries(warm.mount)
    warm.mount.umount()
    eventually(lambda: not entries(warm.mount), "what nobody can use any more goes")


def test_what_changed_is_never_old(warm):
    path, there = warm.path / "odd", warm.double.root / "m/odd"
    size = len(warm.FILES["odd"])
    for number in range(8):
        content = noise(size, seed=100 + number)
        before = there.stat()
        if number % 2:
            there.write_bytes(content)
        else:
            (there.parent / "other").write_bytes(content)
            os.rename(there.parent / "other", there)
        if warm.double.tier == "syscall" and number % 4 > 1:
            os.utime(there, ns=(before.st_atime_ns, before.st_mtime_ns))  # as tar and cp -p do
        if number > 3:
            warm.remount()
        if warm.double.tier == "service":
            time.sleep(1.1)  # attr_timeout
        eventually(lambda: shows(path, content), "the change is seen")  # noqa: B023
        assert read_cold(path) == content
        warm.mount.umount()
        warm.mount.mount()
        assert read(path) == content


def test_a_remount_sees_what_changed_meanwhile(warm):
    if warm.double.tier == "service":
        pytest.skip("nothing is kept between mounts there")
    there = warm.double.root / "m/odd"
    old = there.stat()
    content = noise(len(warm.FILES["odd"]), seed=9)
    warm.mount.umount()
    there.write_bytes(content)
    os.utime(there, ns=(old.st_atime_ns, old.st_mtime_ns))
    warm.mount.mount()
    assert read(warm.path / "odd") == content
    assert read(warm.path / "large") == warm.FILES["large"]


def test_files_are_for_nobody_else(warm):
    found = list((warm.mount.cache / "e2bfs").rglob("*"))
    assert len(found) > 5
    for path in [warm.mount.cache / "e2bfs", *found]:
        status = path.lstat()
        assert stat.S_IMODE(status.st_mode) == (0o700 if stat.S_ISDIR(status.st_mode) else 0o600), path
        assert status.st_uid == os.geteuid()
        assert not any(name in path.name for name in warm.FILES)
    if os.geteuid() == 0:
        done = run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", warm.mount.cache / "e2bfs", check=False)
        assert done.returncode != 0


def spoil(path, kind):
    if kind == "broken":
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
    elif kind == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "empty":
        os.truncate(path, 0)
    elif kind == "foreign":
        path.write_bytes(b"#!/bin/sh\n" * 1000)
        os.chmod(path, 0o600)
    elif kind == "open to all":
        os.chmod(path, 0o644)


@pytest.mark.parametrize("kind", ["broken", "truncated", "empty", "foreign", "open to all"])
@pytest.mark.parametrize("when", ["mounted", "remounted"])
def test_a_spoiled_store_is_noticed_and_not_served(warm, kind, when):
    if when == "remounted" and warm.double.tier == "service":
        pytest.skip("nothing is kept between mounts there")
    if when == "remounted":
        warm.mount.umount()
    spoiled = entries(warm.mount)
    assert len(spoiled) >= 5
    for path in spoiled:
        spoil(path, kind)
    if when == "remounted":
        warm.mount.mount()
    warm.check()
    warm.check()
    if kind == "broken" or when == "remounted":  # else the open descriptors have what was there, of which each block is looked at
        log = warm.mount.log.read_text()
        assert "set aside as" in log and log.count("not used, since") <= 2 * len(spoiled)
        assert len(list((warm.mount.cache / "e2bfs/set-aside").iterdir())) > 0
    assert run("kill", "-0", warm.mount.status()["pid"]).returncode == 0


def test_another_format_is_set_aside(tiered):  # noqa: F811
    warm = Warm(tiered)
    warm.mount.umount()
    (warm.mount.cache / "e2bfs/e2bfs-cache").write_text("e2bfs block store 99\n")
    warm.mount.mount()
    warm.check()
    assert "another format" in warm.mount.log.read_text()
    warm.check()


def test_without_a_cache_nothing_is_written(tiered):  # noqa: F811
    warm = Warm(tiered, ["cache=none"])
    assert warm.received_by(warm.check) > MIB  # it comes again
    assert not warm.mount.cache.exists()
    assert not (tiered.scratch / "home/.cache").exists() and not (tiered.scratch / "cache/e2bfs").exists()
    status = warm.mount.status()
    assert status["cache_directory"] == "" and "cache.store_written_bytes" not in status["counters"]


def test_a_directory_of_ones_own(tiered, tmp_path):  # noqa: F811
    warm = Warm(tiered, [f"cache={tmp_path}/mine", "cache_size=4M"])
    warm.check()
    assert (tmp_path / "mine/e2bfs-cache").exists() and not warm.mount.cache.exists()
    used = sum(path.stat().st_blocks * 512 for path in (tmp_path / "mine/entries").rglob("*") if path.is_file())
    assert 0 < used <= 4 * MIB
    shown = json.loads(warm.mount.e2bfs("cache", tmp_path / "mine", "--json").stdout)
    assert shown["limit_bytes"] == 4 * MIB and shown["bytes"] == used


def test_directories_that_are_refused(tiered, tmp_path):  # noqa: F811
    (tiered.root / "m").mkdir()
    (tiered.scratch / "mnt-m").mkdir()

    def refusal(option):
        done = run(BIN / "e2bfs", "mount", f"debug_sandbox_id:{tiered.root}/m", tiered.scratch / "mnt-m", "-o", f"tier={tiered.tier},{option}", check=False,
                   env=tiered.environment())
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    (tmp_path / "open").mkdir(mode=0o755)
    assert "other users may enter it" in refusal(f"cache={tmp_path}/open")
    (tmp_path / "full").mkdir(mode=0o700)
    (tmp_path / "full/thesis").write_text("mine")
    assert "something else in it than a cache of e2bfs" in refusal(f"cache={tmp_path}/full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis"]
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    assert "is not a directory" in refusal(f"cache={tmp_path}/link")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_default_one_is_done_without(tiered):  # noqa: F811
    (tiered.scratch / "cache-m/e2bfs").mkdir(parents=True, mode=0o755)
    os.chmod(tiered.scratch / "cache-m/e2bfs", 0o755)
    warm = Warm(tiered)
    warm.check()
    assert warm.mount.status()["cache_directory"] == ""
    assert list((tiered.scratch / "cache-m/e2bfs").iterdir()) == []


def test_cache_command(warm):
    size = sum(map(len, warm.FILES.values()))
    text = warm.mount.e2bfs("cache").stdout
    assert str(warm.mount.cache / "e2bfs") in text and "debug_sandbox_id at http" in text and "2.0 GiB" in text
    shown = json.loads(warm.mount.e2bfs("cache", "--json").stdout)
    assert shown["files"] == len(entries(warm.mount)) == sum(each["files"] for each in shown["sandboxes"]) == len(warm.FILES) - 1
    assert size <= shown["bytes"] <= 1.2 * size and shown["limit_bytes"] == 2 << 30
    assert shown["directory"] == str(warm.mount.cache / "e2bfs")

    cleared = json.loads(warm.mount.e2bfs("cache", "--clear", "--json").stdout)
    assert cleared["removed_bytes"] == shown["bytes"] and cleared["bytes"] == cleared["files"] == 0
    assert entries(warm.mount) == []
    warm.check()  # the mount goes on, and fills it again
    assert eventually(lambda: json.loads(warm.mount.e2bfs("cache", "--json").stdout)["bytes"] >= size * 0.9 or (warm.check(), False)[1], "it is filled again")
    assert "Removed" in warm.mount.e2bfs("cache", "--clear").stdout
    nothing = warm.mount.e2bfs("cache", warm.double.scratch / "nowhere")
    assert nothing.stdout.startswith("Nothing is kept in")
    foreign = warm.double.scratch / "foreign"
    foreign.mkdir(mode=0o700)
    (foreign / "thesis").write_text("mine")
    done = warm.mount.e2bfs("cache", "--clear", foreign, check=False)
    assert done.returncode == 1 and "something else in it" in done.stderr and (foreign / "thesis").exists()


def test_two_mounts_share_it(tiered):  # noqa: F811
    warm = Warm(tiered)
    if tiered.tier == "service":
        pytest.skip("nothing is shared between mounts there")
    second = tiered.scratch / "second"
    second.mkdir()
    warm.mount.e2bfs("mount", f"debug_sandbox_id:{tiered.root}/m", second, "-o", f"tier={tiered.tier}")
    try:
        for name, content in warm.FILES.items():
            assert read(second / name) == content
        status = json.loads(warm.mount.e2bfs("status", "--json", second).stdout)
        assert status["received_bytes"] < MIB
        warm.mount.e2bfs("cache", "--clear")
        for _ in range(2):
            warm.check()
            for name, content in warm.FILES.items():
                assert read_cold(second / name) == content
    finally:
        warm.mount.e2bfs("umount", second)


def test_a_killed_mount_leaves_a_store_that_is_right(tiered):  # noqa: F811
    if tiered.tier == "service":
        pytest.skip("nothing is kept between mounts there")
    content = noise(48 * MIB)
    (tiered.root / "m").mkdir()
    (tiered.root / "m/f").write_bytes(content)
    time.sleep(SETTLED)
    for pause in (0.0, 0.02, 0.1):
        mount = tiered.mount("m", SOON)
        reader = subprocess.Popen(["cat", mount.path / "f"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: entries(mount), "the store is being filled")  # noqa: B023
        time.sleep(pause)
        os.kill(mount.status()["pid"], 9)
        mount.mounted = False
        reader.wait()
        run("fusermount3", "-uz", mount.path)
        mount.mount()
        assert read(mount.path / "f") == content
        assert "set aside" not in mount.log.read_text()
        mount.umount()


def test_a_full_disk_here_is_no_error(tiered):  # noqa: F811
    if os.geteuid() != 0:
        pytest.skip("makes a small file system: needs root")
    small = tiered.scratch / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "small", small)
    try:
        with open(small / "filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"f" * 65536)
            except OSError:
                pass
        os.truncate(small / "filler", (small / "filler").stat().st_size - 400_000)
        cache = small / "cache"
        cache.mkdir(mode=0o700)
        warm = Warm(tiered, [f"cache={cache}", "cache_size=1T"])
        warm.check()
        with open(small / "more", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"f" * 4096)
            except OSError:
                pass
        warm.mount.e2bfs("cache", "--clear", cache)
        with open(small / "more", "ab", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"f" * 4096)
            except OSError:
                pass
        warm.check()
        assert warm.mount.log.read_text().count("without a cache on the disk") <= 1
        warm.mount.umount()
    finally:
        run("umount", "-l", small)


def test_proc_is_not_kept(tiered_anywhere):  # noqa: F811
    mount = tiered_anywhere.mount("proc", inside="/proc")
    assert b"cpu" in read(mount.path / "stat")
    assert b"MemTotal" in read(mount.path / "meminfo")
    assert entries(mount) == []


def test_writes_are_seen_over_it(warm):
    content = bytearray(warm.FILES["odd"])
    with open(warm.path / "odd", "r+b", buffering=0) as file:
        drop_pages(warm.path / "odd")
        os.pwrite(file.fileno(), b"changed", 300_000)
        content[300_000:300_007] = b"changed"
        assert read(warm.path / "odd") == content
        file.truncate(400_000)
        del content[400_000:]
        assert read(warm.path / "odd") == content
    assert (warm.double.root / "m/odd").read_bytes() == content
    assert read_cold(warm.path / "odd") == content


def test_a_removed_file_is_read_on(warm):
    with open(warm.path / "large", "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.unlink(warm.path / "large")
        if warm.double.tier == "syscall":
            assert file.readall() == warm.FILES["large"]
    assert not pathlib.Path(warm.double.root / "m/large").exists()
