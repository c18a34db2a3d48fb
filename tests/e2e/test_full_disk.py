"""A sandbox whose disk is full: the program is told, the old content stays, and what was written waits here until there is room."""
import os

import pytest

from conftest import code, eventually, run
from tiers import tier, tiered  # noqa: F401 (fixtures)


class SmallDisk:
    """A file system of 1 MiB in the sandbox: `there`, and `here` through the mount."""

    def __init__(self, mount, there):
        self.mount, self.there, self.here = mount, there, mount.path / there.name
        self.descriptors = []

    def open(self, flags):
        self.descriptors.append(os.open(self.here / "f", flags))
        return self.descriptors[-1]

    def close(self, descriptor):
        self.descriptors.remove(descriptor)
        os.close(descriptor)

    def write_inside(self, content):
        (self.there / "f").write_bytes(content)
        eventually(lambda: code(lambda: os.stat(self.here / "f")) == "ok" and os.stat(self.here / "f").st_size == len(content), "the file is seen here")

    def content(self):
        return (self.there / "f").read_bytes()

    def fill(self):
        with open(self.there / "filler", "wb", buffering=0) as filler:
            while code(lambda: filler.write(b"f" * 4096)) == "ok":
                pass

    def free(self):
        (self.there / "filler").unlink()

    def dirty_bytes(self):
        return self.mount.status()["dirty_bytes"]


@pytest.fixture
def disk(tiered):  # noqa: F811
    if os.geteuid() != 0:
        pytest.skip("makes a small file system: needs root")
    there = tiered.root / "m" / "small"
    there.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", "size=1m", "small", there)
    made = None
    try:
        made = SmallDisk(tiered.mount(), there)
        yield made
    finally:
        # Nothing is left open, nor unsent, when the mount ends, whatever failed: the next command's copy of a descriptor would send once more.
        (there / "filler").unlink(missing_ok=True)
        for descriptor in made.descriptors if made else []:
            code(lambda: os.close(descriptor))  # noqa: B023
        run("umount", "-l", there)


# Up to 24 KiB go within one request of the syscall tier, more is staged.
OLD, SMALL, LARGE = b"o" * 10_000, b"n" * 20_000, b"N" * 200_000
CHANGES = {  # flags, [(offset, bytes)], what comes of it
    "small at the end": (0, [(10_000, SMALL)], OLD + SMALL),
    "small across the end": (0, [(5_000, SMALL)], OLD[:5_000] + SMALL),
    "small over all": (0, [(0, b"b"), (9_000, SMALL)], b"b" + OLD[1:9_000] + SMALL),
    "large": (0, [(0, LARGE)], LARGE),
    "O_TRUNC, small": (os.O_TRUNC, [(0, SMALL)], SMALL),
    "O_TRUNC, small, holes": (os.O_TRUNC, [(10, b"begin"), (20_000, SMALL)], bytes(10) + b"begin" + bytes(19_985) + SMALL),
    "O_TRUNC, large": (os.O_TRUNC, [(0, LARGE)], LARGE),
    "O_TRUNC, large, holes": (os.O_TRUNC, [(10, b"begin"), (15_000, LARGE)], bytes(10) + b"begin" + bytes(14_985) + LARGE),
    "O_APPEND, small": (os.O_APPEND, [(None, SMALL)], OLD + SMALL),
    "O_APPEND, large": (os.O_APPEND, [(None, LARGE), (None, LARGE)], OLD + LARGE + LARGE),
}


@pytest.mark.parametrize("room", [0, 4096], ids=["none", "some"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda name: name.replace(", ", "-").replace(" ", "-"))
def test_the_old_content_stays_and_the_new_waits(disk, change, room):
    flags, writes, expected = CHANGES[change]
    disk.write_inside(OLD)
    disk.fill()
    if room:
        os.truncate(disk.there / "filler", os.stat(disk.there / "filler").st_size - room)
    descriptor = disk.open(os.O_WRONLY | flags)
    for offset, data in writes:
        assert (os.write(descriptor, data) if offset is None else os.pwrite(descriptor, data, offset)) == len(data)
    unsent = sum(len(data) for _, data in writes)
    for call in (os.fsync, disk.close):
        assert code(lambda: call(descriptor)) == "ENOSPC"
        assert disk.content() == OLD
        assert disk.dirty_bytes() == unsent
    disk.free()
    # Whoever has the file open next sends it, as unmounting does.
    with open(disk.here / "f", "r+b") as again:
        os.fsync(again.fileno())
    assert disk.content() == expected
    assert disk.dirty_bytes() == 0
    assert (disk.here / "f").read_bytes() == expected


def test_umount_sends_what_waited(disk):
    disk.write_inside(OLD)
    disk.fill()
    descriptor = disk.open(os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, SMALL)
    assert code(lambda: disk.close(descriptor)) == "ENOSPC"
    refused = disk.mount.umount("--timeout", "2", check=False)
    assert refused.returncode == 8 and "No space left" in refused.stderr, refused.stderr
    assert disk.content() == OLD
    disk.free()
    disk.mount.umount()
    assert disk.content() == OLD + SMALL
