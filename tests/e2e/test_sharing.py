"""Programs here and programs in the sandbox at the same files, at the same time: what they agree on by locks, appends and renames holds as on one disk."""
import collections, errno, multiprocessing, os, time

import pytest

from conftest import eventually
from tiers import area, tier, tier_mount  # noqa: F401  (fixtures)

SECONDS = 4
RECORD = 200


def at_once(*works):
    """Runs each (function, *arguments) in a process of its own; what they return, in order."""
    with multiprocessing.get_context("fork").Pool(len(works)) as pool:
        return [each.get(SECONDS + 60) for each in [pool.apply_async(work, arguments) for work, *arguments in works]]


def read_again_and_again(directory, name, until):
    """Without the lock: what is replaced some hundred times a second may be replaced while it is opened, and once more while the kernel tries again."""
    while time.time() < until:
        try:
            (directory / name).read_bytes()
        except OSError as error:
            assert error.errno == errno.ESTALE, error


def count_under_a_lock(directory, until):
    """A lock file, then: the counter is read, a new one written beside it and renamed to it. How many times."""
    turns = 0
    while time.time() < until:
        try:
            os.close(os.open(directory / "lock", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            time.sleep(0.002)
            continue
        value = int((directory / "counter").read_bytes())
        (directory / "counter.new").write_bytes(b"%d" % (value + 1))
        os.rename(directory / "counter.new", directory / "counter")
        os.unlink(directory / "lock")
        turns += 1
        time.sleep(0.003)
    return turns


@pytest.mark.parametrize("readers", [0, 2])
def test_a_counter_below_a_lock_file(area, tier, readers):  # noqa: F811
    """The sandbox decides who has the lock: who has it sees what was renamed before, also where others here have just looked."""
    if tier == "service":
        pytest.skip("news come by another way than answers there")
    (area.there / "counter").write_bytes(b"0")
    eventually(lambda: (area.here / "counter").exists(), "it is seen")
    until = time.time() + SECONDS
    turns = at_once((count_under_a_lock, area.here, until), (count_under_a_lock, area.there, until),
                    *[(read_again_and_again, area.here, "counter", until)] * readers)
    assert turns[0] > 5 and turns[1] > 5, turns
    assert (area.there / "counter").read_bytes() == b"%d" % (turns[0] + turns[1])
    assert (area.here / "counter").read_bytes() == b"%d" % (turns[0] + turns[1])


def append(directory, mark, until):
    count = 0
    while time.time() < until:
        log = os.open(directory / "log", os.O_WRONLY | os.O_APPEND)
        for _ in range(5):
            os.write(log, b"%s%d %s\n" % (mark, count, mark * RECORD))
            count += 1
        os.close(log)
    return count


def test_records_that_are_appended_stay_whole(area, tier):  # noqa: F811
    """Each is one write(2), by two programs here and one in the sandbox."""
    if tier == "service":
        pytest.skip("appends are put together by commands there")
    (area.there / "log").touch()
    eventually(lambda: (area.here / "log").exists(), "it is seen")
    until = time.time() + SECONDS
    counts = at_once((append, area.here, b"a", until), (append, area.here, b"b", until), (append, area.there, b"c", until))
    there = collections.Counter((area.there / "log").read_bytes().splitlines())
    wanted = [b"%s%d %s" % (mark, n, mark * RECORD) for mark, count in zip((b"a", b"b", b"c"), counts) for n in range(count)]
    assert [record for record in wanted if there[record] != 1] == [] and sum(there.values()) == len(wanted)


def replace(directory, until):
    count = 0
    while time.time() < until:
        (directory / "new").write_bytes(b"%08d" % count * 12)
        os.rename(directory / "new", directory / "status")
        count += 1
        time.sleep(0.1)
    return count


def poll(directory, until):
    seen = collections.Counter()
    while time.time() < until:
        try:
            content = (directory / "status").read_bytes()
            seen["whole" if len(content) == 96 and content == content[:8] * 12 else "torn"] += 1
        except OSError as error:
            seen[errno.errorcode[error.errno]] += 1
    return seen


def test_a_file_that_is_replaced_inside_is_read_here(area, tier):  # noqa: F811
    """By a rename, as a status file is published. An open here never comes to a file that is gone when it is read."""
    if tier == "service":
        pytest.skip("files are read by their names there")
    (area.there / "status").write_bytes(b"00000000" * 12)
    eventually(lambda: (area.here / "status").exists(), "it is seen")
    until = time.time() + SECONDS
    count, seen = at_once((replace, area.there, until), (poll, area.here, until))
    # The first replacement comes unawares.
    assert count > 10 and seen["whole"] > count and seen.total() - seen["whole"] <= 1, (count, seen)
