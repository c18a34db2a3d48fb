"""Large content on its way: each transfer torn at every place, stalled, overtaken and given up. Counts, bytes and content, never seconds.

On both tiers. Large content goes by the files API in both. On the syscall tier a file that is all new is sent while it is written
(cache/early_send.h): a new one into itself, one that had content into a nameless stage. The service tier sends at the close.
"""
import hashlib, mmap, os, stat, subprocess, threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ENVD_URL, PATIENCE, SANITIZED, TOOL_ENVIRONMENT, code, eventually, run
from tiers import apply_mark, mount_on, service_cannot, tier  # noqa: F401 (a fixture)

KIB, MIB = 1 << 10, 1 << 20
READ, UPLOAD = "GET /files?", "POST /files?"  # with the mark: not POST /filesystem.Filesystem/...
POSITIONS = range(0, 4 * MIB, 256 * KIB if SANITIZED else 64 * KIB)
DIRECT = 256 * KIB
EARLY = 5 * MIB  # of a file's first bytes: more than what is sent while it is written begins with
SHORT_TIMEOUTS = ["idle_timeout=1", "head_timeout=2", "connect_timeout=2"]


def digest(content):
    return hashlib.sha256(content).hexdigest()[:16], len(content)


def same(path, content):
    """Digests: a failure is no page of bytes."""
    found = path.read_bytes()
    assert digest(found) == digest(content), f"{path}: first wrong byte {first_difference(found, content)}"


def first_difference(a, b):
    return next((i for i in range(min(len(a), len(b))) if a[i] != b[i]), min(len(a), len(b)))


def write(descriptor, content):
    """As programs do: the call may take less."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view[:MIB]):]


def read(descriptor, length):
    """So much, or what there is to the end of the file."""
    parts = []
    while length > 0 and (part := os.read(descriptor, min(length, 128 * KIB))):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def as_seen(mount, path):
    """What was done inside is told of within moments."""
    def known():
        try:
            here, there = os.stat(mount.path / path.relative_to(mount.inside)), os.stat(path)
        except FileNotFoundError:
            return False
        return (here.st_size, here.st_mtime_ns) == (there.st_size, there.st_mtime_ns)
    eventually(known, f"{path.name} is seen through the mount as it is inside")


def left_behind(mount):
    """What is in the sandbox and in no directory listing of the test's: stages by name, and files that the syscall server has open."""
    remote = mount.status()["remote"]
    found = [name for name in os.listdir(mount.inside) if name.startswith(".e2bfs")]
    if remote.get("staging directory", "none") != "none":
        found += [name for name in os.listdir(remote["staging directory"]) if name.startswith("d")]  # c: commands, of which the next one takes care
    if "syscall server" in remote:
        server = f"/proc/{remote['syscall server'].split()[-1]}/fd"
        for descriptor in os.listdir(server):
            try:
                found.append(os.readlink(f"{server}/{descriptor}"))
            except FileNotFoundError:
                pass
        inside = os.fspath(mount.inside) + "/"
        found = [path for path in found if path.startswith((inside, ".e2bfs"))]
    return found + ["an open file"] * int(remote["open files there"])


def check_nothing_is_left(mount, told=False):
    """Nor is anything unsent, nor was there an error, unless a program was told of one."""
    # What is closed is closed there some moments later.
    eventually(lambda: left_behind(mount) == [], f"nothing is left behind in the sandbox: {left_behind(mount)}")
    status = mount.status()
    assert (status["dirty_files"], status["unsent"]) == (0, []), status
    assert told or status["last_error"] == "", status["last_error"]


def send_again(path):
    descriptor = os.open(path, os.O_WRONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def requests_in_flight(double):
    return double.counts()["requests_now"]


def uploads(double):
    return double.counts()["requests"].get("POST /files", 0)


def descriptors_of_server(mount):
    """Where the syscall server's are. Asked for once, before a file is open: another process's copy of a descriptor is closed at its end, and that sends."""
    if not hasattr(mount, "server"):
        mount.server = f"/proc/{mount.status()['remote']['syscall server'].split()[-1]}/fd"
    return mount.server


def stage_size(mount):
    """Of what is being staged by the syscall server now; None if nothing is."""
    server = descriptors_of_server(mount)
    sizes = []
    for descriptor in os.listdir(server):
        try:
            status = os.stat(f"{server}/{descriptor}")
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and "#" in os.readlink(f"{server}/{descriptor}"):
            sizes.append(status.st_size)
    return max(sizes, default=None)


def wait_until_sent(mount, there, length):
    """On the syscall tier: so many of the first bytes of a new file that is being written are in the sandbox."""
    if mount.double.tier == "syscall":
        eventually(lambda: there.stat().st_size >= length, f"{length} bytes are there before the file is closed")


@pytest.fixture(scope="module")
def sandbox(double, tier):
    """The module's test sandbox, and mounts that are shared by options."""
    if ENVD_URL:
        pytest.skip("injects faults: a real envd cannot")
    mounts = {}

    def mount(*options):
        # A fault at a place of the body wants a body that long.
        options = options if "compress=auto" in options else (*options, "compress=off")
        if options not in mounts:
            mounts[options] = mount_on(tier, double, f"{tier}-{len(mounts)}", options)
        return mounts[options]

    double.mount, double.mounts, double.tier = mount, mounts, tier
    yield double
    double.clear_faults()
    for each in mounts.values():
        each.close()


@pytest.fixture
def mount(sandbox, tier, request):
    """The one with the options that everybody has. What a test leaves behind fails it."""
    apply_mark(request, tier)
    made = sandbox.mount()
    yield made
    sandbox.clear_faults()
    check_nothing_is_left(made)


# --- a connection that is reset at every place


def read_directly(path):
    """Without the kernel's pages and its read-ahead."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer, parts = mmap.mmap(-1, DIRECT), []
    while (length := os.readv(descriptor, [buffer])) > 0:
        parts.append(buffer[:length])
    os.close(descriptor)
    return b"".join(parts)


def test_a_read_that_is_torn_at_every_place(sandbox):
    """With a small window each request is for 256 KiB, whose place in the order is that in the file (smaller ones would go by the channel)."""
    mount = sandbox.mount("read_ahead=512K")
    content = os.urandom(4 * MIB)
    requests = None
    for position in [None, *POSITIONS]:
        there = mount.inside / f"f{position}"
        there.write_bytes(content)
        as_seen(mount, there)
        sandbox.reset_counts()
        if position is not None:
            request = min(position // DIRECT, requests - 1)  # the last is for more
            sandbox.fault(match=READ, action="reset", skip=request, at_byte=position - request * DIRECT)
        assert digest(read_directly(mount.path / there.name)) == digest(content)
        found = sandbox.counts()["requests"]["GET /files"]
        if position is None:
            requests = found
            assert len(content) // DIRECT - 1 <= requests <= len(content) // DIRECT
        elif position % DIRECT == 0 and position < len(content) - 2 * DIRECT:  # else what is left may be little, and go by the channel or at once
            assert found > requests, f"the fault at {position} met no request"
        there.unlink()
    check_nothing_is_left(mount)


def test_a_read_that_is_torn_while_others_are_on_their_way(mount, sandbox):
    content = os.urandom(4 * MIB)
    for position in POSITIONS:
        there = mount.inside / f"among-others-{position}"  # a new name: what is known of one is believed for a while
        there.write_bytes(content)
        as_seen(mount, there)
        sandbox.fault(match=READ, action="reset", skip=position // MIB, at_byte=position % MIB)
        same(mount.path / there.name, content)
        sandbox.clear_faults()
        there.unlink()


def test_an_upload_that_is_torn_at_every_place(mount, sandbox):
    """Of a new file, and over one that has content, which stays until the new has arrived."""
    old, new = os.urandom(4 * MIB), os.urandom(4 * MIB - 1)  # sent at the close: a byte less than what is sent while it is written
    for turn, position in enumerate(POSITIONS):
        for name, content in (("new", new), ("old", new + b"."))[:1 if turn % 4 else 2]:
            there = mount.inside / f"{name}-{position}"
            if name == "old":
                there.write_bytes(old)
                as_seen(mount, there)
            descriptor = os.open(mount.path / there.name, os.O_WRONLY | os.O_CREAT)
            write(descriptor, content)
            sandbox.reset_counts()
            sandbox.fault(match=UPLOAD, action="reset_request", at_byte=position)
            os.close(descriptor)
            assert uploads(sandbox) == 2
            same(there, content)
            same(mount.path / there.name, content)
            there.unlink()


def test_an_upload_that_never_arrives_is_told_by_close(sandbox):
    mount = sandbox.mount(*SHORT_TIMEOUTS, "transfer_timeout=4")
    old, new = os.urandom(MIB), os.urandom(4 * MIB)
    there = mount.inside / "f"
    for position in (0, 64 * KIB, 3 * MIB):
        there.write_bytes(old)
        as_seen(mount, there)
        sandbox.fault(match=UPLOAD, action="reset_request", at_byte=position, count=-1)
        descriptor = os.open(mount.path / "f", os.O_WRONLY | os.O_TRUNC)
        write(descriptor, new)
        with pytest.raises(OSError):
            os.close(descriptor)
        same(there, old)
        assert mount.status()["dirty_bytes"] == len(new)
        same(mount.path / "f", new)
        sandbox.clear_faults()
        send_again(mount.path / "f")
        same(there, new)
        there.unlink()
    check_nothing_is_left(mount, told=True)


@pytest.mark.parametrize("kind", ["new", "old"])
def test_an_upload_that_is_torn_while_the_program_writes(mount, sandbox, kind):
    content = os.urandom(8 * MIB)
    positions = list(POSITIONS)
    at_once = 16 if sandbox.tier == "syscall" else 1  # where each is sent at its close, the second try of one would meet the fault of the next
    for begin in range(0, len(positions), at_once):
        batch = positions[begin:begin + at_once]
        theres = [mount.inside / f"{kind}-{position}" for position in batch]
        if kind == "old":
            for there in theres:
                there.write_bytes(b"old content")
                as_seen(mount, there)
        sandbox.reset_counts()
        descriptors = []
        for position, there in zip(batch, theres):
            sandbox.fault(match=UPLOAD, action="reset_request", at_byte=position)
            descriptors.append(os.open(mount.path / there.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            write(descriptors[-1], content[:EARLY])
            if sandbox.tier == "syscall":
                eventually(lambda: uploads(sandbox) == len(descriptors), "it is sent while it is written")
                found = there.read_bytes()
                assert found == b"old content" if kind == "old" else content.startswith(found)  # where it had any: never half of the new

        def finish(descriptor):
            write(descriptor, content[EARLY:])
            os.close(descriptor)
        with ThreadPoolExecutor(at_once) as pool:
            problems = [problem for problem in pool.map(code, [lambda each=each: finish(each) for each in descriptors]) if problem != "ok"]
        assert not problems
        assert uploads(sandbox) >= 2 * len(batch)  # the service tier sends in parts
        for there in theres:
            same(there, content)
            same(mount.path / there.name, content)
            there.unlink()


# --- bodies that stall or end early


@pytest.mark.parametrize("skip, at_byte", [(0, -1), (1, 0), (2, 100_000)])
def test_a_stalled_download_is_taken_from_elsewhere(sandbox, at_byte, skip):
    mount = sandbox.mount(*SHORT_TIMEOUTS)
    content = os.urandom(8 * MIB)
    there = mount.inside / f"stalled-{skip}"
    there.write_bytes(content)
    as_seen(mount, there)
    sandbox.fault(match=READ, action="stall", skip=skip, at_byte=at_byte)
    same(mount.path / there.name, content)
    sandbox.clear_faults()
    check_nothing_is_left(mount)


@pytest.mark.parametrize("at_byte", [0, 3 * MIB])
def test_a_stalled_upload_is_sent_again(sandbox, at_byte):
    mount = sandbox.mount(*SHORT_TIMEOUTS)
    content = os.urandom(8 * MIB)
    there = mount.inside / f"f{at_byte}"
    sandbox.fault(match=UPLOAD, action="stall_request", at_byte=at_byte)
    descriptor = os.open(mount.path / there.name, os.O_WRONLY | os.O_CREAT)
    write(descriptor, content)
    try:
        os.close(descriptor)
    except OSError:  # told: then it is unsent, and not lost
        assert mount.status()["dirty_bytes"] == len(content)
        sandbox.clear_faults()
        send_again(mount.path / there.name)
    same(there, content)
    sandbox.clear_faults()
    check_nothing_is_left(mount, told=True)


@pytest.mark.parametrize("at_byte", [0, 1, 100_000, MIB - 1])
def test_a_body_that_ends_early_in_the_middle_of_a_file(mount, sandbox, at_byte):
    content = os.urandom(8 * MIB)
    there = mount.inside / f"cut-{at_byte}"
    there.write_bytes(content)
    as_seen(mount, there)
    for skip in (0, 1, 2):
        sandbox.fault(match=READ, action="cut", skip=skip, at_byte=at_byte)
    same(mount.path / there.name, content)


# --- files that change under their readers


@service_cannot("it does not notice that a file was replaced inside the sandbox: its handles are paths")
def test_a_file_that_is_replaced_is_read_to_its_end(mount):
    old, new = os.urandom(48 * MIB), os.urandom(16 * MIB)
    there = mount.inside / "replaced"
    there.write_bytes(old)
    as_seen(mount, there)
    descriptor = os.open(mount.path / there.name, os.O_RDONLY)
    parts = [read(descriptor, MIB)]
    (mount.inside / "another").write_bytes(new)
    os.rename(mount.inside / "another", there)
    as_seen(mount, there)
    same(mount.path / there.name, new)  # who opens it now has the new one, as a whole
    parts.append(read(descriptor, len(old)))
    os.close(descriptor)
    found = b"".join(parts)
    assert digest(found) == digest(old), first_difference(found, old)
    same(mount.path / there.name, new)


def test_a_file_that_is_changed_in_place_is_not_joined(mount):
    length = 24 * MIB
    there = mount.inside / "in-place"
    contents = [bytes([65 + turn]) * length for turn in range(4)]
    there.write_bytes(contents[0])
    as_seen(mount, there)
    for old, new in zip(contents, contents[1:]):
        descriptor = os.open(mount.path / there.name, os.O_RDONLY)
        found = read(descriptor, MIB)
        with open(there, "r+b") as file:
            file.write(new)
        found += read(descriptor, length)
        os.close(descriptor)
        # The reader may see both, as on a local disk, and nothing else.
        assert len(found) == length and found.count(old[0]) + found.count(new[0]) == length
        as_seen(mount, there)
        same(mount.path / there.name, new)


# --- several changes of a file that is being sent


class Changing:
    """A file that a program writes, once through the mount and once on the local disk."""
    PATTERN = b"".join(bytes([turn]) * 4093 for turn in range(251))  # no two pages are equal

    def __init__(self, path, inside=None):
        self.path, self.inside = path, inside or path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)

    def bytes(self, length):
        return (self.PATTERN * (length // len(self.PATTERN) + 1))[:length]

    def write(self, length):
        write(self.descriptor, self.bytes(length))

    def begin(self):
        self.length = 6 * MIB
        self.write(self.length)


def rewritten_at_the_front(file):
    os.pwrite(file.descriptor, b"another beginning", 0)
    file.write(2 * MIB)


def rewritten_in_the_middle(file):
    os.pwrite(file.descriptor, b"another middle", 2 * MIB + 5)
    file.write(2 * MIB)


def truncated(file):
    os.ftruncate(file.descriptor, MIB)
    file.write(2 * MIB)  # where it was: with a hole before


def emptied(file):
    os.ftruncate(file.descriptor, 0)
    os.lseek(file.descriptor, 0, os.SEEK_SET)
    os.write(file.descriptor, b"all that is left")


def emptied_and_written_again(file):
    os.ftruncate(file.descriptor, 0)
    os.lseek(file.descriptor, 0, os.SEEK_SET)
    os.write(file.descriptor, b"other")
    file.write(7 * MIB)


def extended(file):
    os.ftruncate(file.descriptor, 9 * MIB)
    file.write(MIB)


def shortened_to_what_was_sent(file):
    file.write(2 * MIB)
    os.ftruncate(file.descriptor, 6 * MIB)


def with_a_hole(file):
    os.lseek(file.descriptor, 3 * MIB, os.SEEK_CUR)
    file.write(MIB)


def renamed(file):
    os.rename(file.path, file.path.with_name(file.path.name + "-renamed"))
    file.write(2 * MIB)
    os.rename(file.path.with_name(file.path.name + "-renamed"), file.path)
    file.write(MIB)


def linked(file):
    os.link(file.path, file.path.with_name(file.path.name + "-link"))
    file.write(2 * MIB)
    os.unlink(file.path.with_name(file.path.name + "-link"))


def synced(file):
    os.fsync(file.descriptor)
    same(file.inside, file.path.read_bytes())
    file.write(2 * MIB)


def duplicated_and_closed(file):
    os.close(os.dup(file.descriptor))  # a flush
    file.write(2 * MIB)


def with_another_mode(file):
    os.fchmod(file.descriptor, 0o600)
    file.write(2 * MIB)


def made_read_only(file):
    os.fchmod(file.descriptor, 0o400)
    file.write(2 * MIB)


def with_other_times(file):
    os.utime(file.descriptor, ns=(1_500_000_000_000_000_001, 1_500_000_000_000_000_002))
    file.write(2 * MIB)
    os.utime(file.descriptor, ns=(1_600_000_000_000_000_003, 1_600_000_000_000_000_004))


def with_an_attribute(file):
    os.setxattr(file.path, "user.x", b"value")
    file.write(2 * MIB)


def read_by_another(file):
    same(file.path, file.bytes(6 * MIB))
    file.write(2 * MIB)
    same(file.path, file.bytes(6 * MIB) + file.bytes(2 * MIB))


def written_by_another(file):
    other = os.open(file.path, os.O_WRONLY)
    os.pwrite(other, b"from the other", 3 * MIB)
    file.write(2 * MIB)
    os.pwrite(other, b"and again", 7 * MIB)
    os.close(other)
    file.write(MIB)


def appended_to_by_another(file):
    with open(file.path, "ab") as other:
        other.write(b"appended")
    os.lseek(file.descriptor, 0, os.SEEK_END)
    file.write(2 * MIB)


def opened_with_truncation(file):
    os.close(os.open(file.path, os.O_WRONLY | os.O_TRUNC))
    os.lseek(file.descriptor, 0, os.SEEK_SET)
    file.write(5 * MIB)


def appended_to_inside(file):
    """Where we write afterwards: as with two local programs, ours is the later."""
    with open(file.inside, "ab") as other:
        other.write(b"inside")
    file.write(2 * MIB)


CHANGES = [rewritten_at_the_front, rewritten_in_the_middle, truncated, emptied, emptied_and_written_again, extended, shortened_to_what_was_sent,
           with_a_hole, renamed, linked, synced, duplicated_and_closed, with_another_mode, made_read_only, with_other_times, with_an_attribute,
           read_by_another, written_by_another, appended_to_by_another, opened_with_truncation, appended_to_inside]


def facts(path, times_too):
    status = os.stat(path)
    attributes = {}
    if code(lambda: os.listxattr(path)) != "ENOTSUP":  # the service tier has none
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.")}
    return digest(path.read_bytes()), oct(status.st_mode), status.st_nlink, attributes, status.st_mtime_ns if times_too else None


# Those that make what was sent useless.
GIVEN_UP = [rewritten_at_the_front, truncated, emptied, emptied_and_written_again, opened_with_truncation]


def check_change(change, here, local):
    """Both have begun."""
    change(local)
    change(here)
    said = os.fstat(here.descriptor)
    os.close(here.descriptor)
    os.close(local.descriptor)
    sets_times = change is with_other_times
    assert facts(here.inside, sets_times) == facts(local.path, sets_times)
    assert facts(here.path, True) == facts(here.inside, True)
    # What was said before the close is true after it.
    assert (said.st_size, said.st_mtime_ns) == (os.stat(here.inside).st_size, os.stat(here.inside).st_mtime_ns)


def test_files_that_change_while_they_are_sent(mount, sandbox, scratch):
    """What was sent has arrived when they change. As many at once as are sent at once."""
    problems = {}
    if sandbox.tier == "syscall":
        descriptors_of_server(mount)

    def check(change):
        there = mount.inside / change.__name__
        local, here = Changing(scratch / f"{there.name}-{sandbox.tier}"), Changing(mount.path / there.name, there)
        try:
            local.begin()
            here.begin()
            wait_until_sent(mount, there, here.length)
            check_change(change, here, local)
        except Exception as problem:
            problems[change.__name__] = f"{problem!r}"
        there.unlink()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, [change for change in CHANGES if sandbox.tier == "syscall" or change is not with_an_attribute]))
    assert not problems, "\n".join(map(str, problems.items()))


@pytest.mark.parametrize("change", GIVEN_UP, ids=lambda change: change.__name__)
def test_a_file_that_changes_before_the_sandbox_has_begun(mount, sandbox, scratch, change):
    """What was given up begins there when the file is complete."""
    if sandbox.tier == "service":
        pytest.skip("it sends at the close: nothing is given up before")
    there = mount.inside / change.__name__
    local, here = Changing(scratch / f"{there.name}-late"), Changing(mount.path / there.name, there)
    local.begin()
    before, in_flight = uploads(sandbox), requests_in_flight(sandbox)
    sandbox.fault(match=UPLOAD, action="delay", delay_ms=300)
    here.begin()
    eventually(lambda: uploads(sandbox) > before, "it is being sent")
    check_change(change, here, local)
    expected = facts(there, True)
    eventually(lambda: requests_in_flight(sandbox) <= in_flight, "the late one has come")
    assert facts(there, True) == expected
    there.unlink()


def test_another_process_reads_what_is_being_sent(mount):
    if mount.double.tier == "syscall":
        descriptors_of_server(mount)
    there = mount.inside / "read-by-another"
    # Begun before the file is open, or its copy of the descriptor would be closed, which sends.
    reader = subprocess.Popen(["sh", "-c", 'read go; exec cat "$1"', "sh", str(mount.path / there.name)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, env=TOOL_ENVIRONMENT)
    file = Changing(mount.path / there.name, there)
    file.begin()
    wait_until_sent(mount, there, file.length)
    assert digest(reader.communicate(b"go\n", timeout=PATIENCE)[0]) == digest(file.bytes(file.length))
    file.write(2 * MIB)
    os.close(file.descriptor)
    same(there, file.bytes(6 * MIB) + file.bytes(2 * MIB))
    there.unlink()


def test_a_large_new_file_is_sent_into_itself(mount, sandbox):
    """Nothing is copied in the sandbox, and no room is needed twice. What it is stays what it is, whoever it is that fills it."""
    if sandbox.tier == "service":
        pytest.skip("it sends at the close, and into place by a rename")
    descriptors_of_server(mount)
    there = mount.inside / "itself"
    file = Changing(mount.path / there.name, there)
    os.setxattr(file.path, "user.kept", b"value")
    made, before = described(there), uploads(sandbox)
    file.begin()
    wait_until_sent(mount, there, file.length)
    assert stage_size(mount) is None
    file.write(2 * MIB)
    os.close(file.descriptor)
    assert uploads(sandbox) == before + 1
    same(there, file.bytes(6 * MIB) + file.bytes(2 * MIB))
    assert described(there) == made
    there.unlink()


@pytest.mark.parametrize("torn", [0, MIB, 5 * MIB])
def test_an_upload_into_a_new_file_that_breaks_off(mount, sandbox, torn):
    """Sent at the close, once nothing of the first try can be written any more: what it left is gone."""
    if sandbox.tier == "service":
        pytest.skip("it sends at the close")
    there = mount.inside / f"breaks-off-{torn}"
    file = Changing(mount.path / there.name, there)
    sandbox.fault(match=UPLOAD, action="late_request", at_byte=torn, delay_ms=1500)
    before, in_flight = uploads(sandbox), requests_in_flight(sandbox)
    file.begin()
    eventually(lambda: uploads(sandbox) > before, "it is being sent")
    os.ftruncate(file.descriptor, 2 * MIB)  # what was sent is of no use any more
    os.close(file.descriptor)
    same(there, file.bytes(2 * MIB))
    eventually(lambda: requests_in_flight(sandbox) <= in_flight, "the late one has come")
    same(there, file.bytes(2 * MIB))
    there.unlink()


def test_nothing_is_stored_while_an_earlier_upload_may_be_written(sandbox):
    """A program in the sandbox stands for it. Whatever way the next one goes: inline, at once, or while the program still writes."""
    if sandbox.tier == "service":
        pytest.skip("it sends at the close")
    mount = sandbox.mount("reader_idle=59s")  # the others' have no errors
    there = mount.inside / "held"
    file = Changing(mount.path / there.name, there)
    held = os.open(there, os.O_WRONLY)
    file.begin()
    wait_until_sent(mount, there, file.length)
    os.pwrite(file.descriptor, b"another beginning", 0)  # what was sent is of no use any more
    assert code(os.fsync, file.descriptor) == "EIO"
    file.write(5 * MIB)
    closed = []
    timer = threading.Timer(1.5, lambda: (os.pwrite(held, b"late", 0), closed.append(True), os.close(held)))
    timer.start()
    os.close(file.descriptor)
    assert closed
    timer.join()
    expected = file.bytes(6 * MIB) + file.bytes(5 * MIB)
    same(there, b"another beginning" + expected[17:])
    there.unlink()
    check_nothing_is_left(mount, told=True)


def test_a_file_that_is_unlinked_while_it_is_sent(mount):
    if mount.double.tier == "syscall":
        descriptors_of_server(mount)
    there = mount.inside / "unlinked"
    file = Changing(mount.path / there.name, there)
    file.begin()
    wait_until_sent(mount, there, file.length)
    os.unlink(file.path)
    file.path.write_bytes(b"another of that name")
    file.write(2 * MIB)
    assert os.fstat(file.descriptor).st_size == 8 * MIB
    os.lseek(file.descriptor, 0, os.SEEK_SET)
    assert digest(read(file.descriptor, 9 * MIB)) == digest(file.bytes(6 * MIB) + file.bytes(2 * MIB))
    os.close(file.descriptor)
    assert there.read_bytes() == b"another of that name"


# --- compression


@pytest.mark.parametrize("length", [MIB // 2, 3 * MIB, 12 * MIB])
def test_text_is_compressed_on_its_way(sandbox, length):
    text, noise = b"".join(b"line %d of a text\n" % n for n in range(length // 16))[:length], os.urandom(length)
    sent = {}
    for option in ("auto", "off"):
        for name, content in (("noise", noise), ("text", text)):
            mount = sandbox.mount(f"compress={option}", f"reader_idle={len(sandbox.mounts) + 50}s")  # nothing is known of the network
            before = mount.status()["sent_bytes"]
            (mount.path / name).write_bytes(content)
            sent[option, name] = mount.status()["sent_bytes"] - before
            same(mount.inside / name, content)
            (mount.inside / name).unlink()
    assert sent["auto", "text"] < length / 2 and all(sent[each] >= length for each in sent if each != ("auto", "text")), sent


# --- copies over files that are there


def furnished(mount, name, content):
    there = mount.inside / name
    there.write_bytes(content)
    os.setxattr(there, "user.kept", b"value")
    os.link(there, mount.inside / f"{name}-link")
    os.chmod(there, 0o662)
    if os.geteuid() == 0:
        os.chown(there, 4711, 4712)
    as_seen(mount, there)
    return there


def described(path):
    status = os.stat(path)
    return status.st_ino, oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, os.getxattr(path, "user.kept")


def test_a_copy_over_a_file_keeps_what_the_file_is(mount, scratch):
    old, new = os.urandom(MIB), os.urandom(16 * MIB)
    source = scratch / "source"
    source.write_bytes(new)
    there = furnished(mount, "kept", old)
    was = described(there)
    run("cp", source, mount.path / "kept")
    same(there, new)
    same(mount.inside / "kept-link", new)
    same(mount.path / "kept-link", new)
    assert described(there) == was
    there.unlink()
    (mount.inside / "kept-link").unlink()


@pytest.mark.parametrize("old_length", [MIB, 20 * MIB])
def test_a_copy_over_a_file_is_not_seen_before_it_is_whole(mount, sandbox, old_length):
    old, new = os.urandom(old_length), os.urandom(16 * MIB)
    there = furnished(mount, f"whole-{old_length}", old)
    was = described(there)
    copy = subprocess.Popen(["cp", "/proc/self/fd/0", str(mount.path / there.name)], stdin=subprocess.PIPE, env=TOOL_ENVIRONMENT)
    before = uploads(sandbox)
    for at in range(0, len(new), MIB):
        copy.stdin.write(new[at:at + MIB])
        copy.stdin.flush()
        if at == 8 * MIB and sandbox.tier == "syscall":
            eventually(lambda: uploads(sandbox) > before and (stage_size(mount) or 0) >= 4 * MIB, "it is being staged")
        same(there, old)
    copy.stdin.close()
    assert copy.wait(PATIENCE) == 0
    same(there, new)
    assert described(there) == was
    there.unlink()
    (mount.inside / f"{there.name}-link").unlink()


# --- what is not read costs nothing


def test_the_beginning_of_a_huge_file(mount, sandbox):
    there = mount.inside / "huge"
    with open(there, "wb") as file:
        file.truncate(1 << 30)
    as_seen(mount, there)
    in_flight = requests_in_flight(sandbox)
    received = mount.status()["received_bytes"]
    descriptor = os.open(mount.path / "huge", os.O_RDONLY)
    assert read(descriptor, 3 * MIB) == bytes(3 * MIB)
    os.close(descriptor)
    eventually(lambda: requests_in_flight(sandbox) <= in_flight, "no download goes on")
    # The option read_ahead, which is how far one file is read ahead at most, and what the kernel asked for.
    assert mount.status()["received_bytes"] - received <= 3 * MIB + 33 * MIB
    there.unlink()


def test_an_idle_reader_holds_nothing_and_goes_on(sandbox):
    mount = sandbox.mount("reader_idle=300ms")
    content = os.urandom(64 * MIB)
    there = mount.inside / "idle"
    there.write_bytes(content)
    as_seen(mount, there)
    in_flight = requests_in_flight(sandbox)
    descriptor = os.open(mount.path / "idle", os.O_RDONLY)
    parts = []
    for length in (3 * MIB, 5 * MIB, len(content)):
        parts.append(read(descriptor, length))
        eventually(lambda: requests_in_flight(sandbox) <= in_flight and mount.status()["memory_bytes"] == 0, "the reader holds nothing")
    assert digest(b"".join(parts)) == digest(content)
    os.close(descriptor)
    there.unlink()
    check_nothing_is_left(mount)


# --- what was given up comes late


@pytest.mark.parametrize("kind, at_byte", [("new", 0), ("new", 3 * MIB), ("old", 64 * KIB)])
def test_a_late_request_touches_no_other_file(mount, sandbox, kind, at_byte):
    """The bytes of an upload that was given up come when other content is in place already."""
    if sandbox.tier == "service":
        pytest.skip("it sends at the close: nothing is given up before")
    there, other = mount.inside / f"late-{kind}-{at_byte}", mount.inside / f"other-{kind}-{at_byte}"
    if kind == "old":
        there.write_bytes(b"old content")
        as_seen(mount, there)
    sandbox.fault(match=UPLOAD, action="late_request", at_byte=at_byte, delay_ms=5000)
    descriptor = os.open(mount.path / there.name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    before = uploads(sandbox)
    in_flight = requests_in_flight(sandbox)
    write(descriptor, b"1" * EARLY)
    eventually(lambda: uploads(sandbox) > before, "it is being sent")
    os.pwrite(descriptor, b"2" * MIB, 0)  # what was sent is of no use any more
    (mount.path / other.name).write_bytes(b"3" * EARLY)
    os.close(descriptor)
    expected = b"2" * MIB + b"1" * (EARLY - MIB)
    same(there, expected)
    eventually(lambda: requests_in_flight(sandbox) <= in_flight, "the late one has come")
    same(there, expected)
    same(mount.path / there.name, expected)
    same(other, b"3" * EARLY)
    there.unlink()
    other.unlink()
