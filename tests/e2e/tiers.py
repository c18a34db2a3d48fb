"""Tests that run on both tiers: fixtures to import by name, and the mark for what the service tier cannot do.

A test that takes `area` (or `tiered`) runs once for each tier.

Environment:
  E2BFS_TEST_TIERS       "syscall", "service", or both with a comma between (default)
"""
import os, pathlib, re, shutil, subprocess, tempfile

import pytest

from conftest import BIN, ENVD_URL, TOOL_ENVIRONMENT, Double, Mount, Place, run

TIERS = [name for name in ("syscall", "service") if name in os.environ.get("E2BFS_TEST_TIERS", "syscall,service").split(",")]
HERE = pathlib.Path(__file__).parent


def mount_on(tier, double, name, options=(), inside=None):
    """A mount that is on that tier, or a failed test."""
    made = Mount(double, name, [f"tier={tier}", *options], inside)
    found = made.status()["tier"]
    if found != tier:
        made.close()
        pytest.fail(f"asked for the {tier} tier, and the mount is on the {found} tier")
    return made


def service_cannot(reason):
    """The test fails on the service tier, for this reason; when it no longer does, the mark has to go."""
    def mark(function):
        function.service_cannot = reason
        return function
    return mark


def apply_mark(request, tier):
    reason = getattr(request.function, "service_cannot", None)
    if tier == "service" and reason:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture(scope="module", params=TIERS)
def tier(request):
    return request.param


@pytest.fixture(scope="module")
def tier_mount(double, tier):
    """One mount for the tests of a file that do not disturb each other."""
    made = mount_on(tier, double, f"shared-{tier}")
    yield made
    made.close()


@pytest.fixture
def area(tier_mount, tier, scratch, request):
    """A directory of a test on the tier's mount: `here`, `there` and `local`."""
    apply_mark(request, tier)
    made = Place(tier_mount, re.sub(r"\W+", "-", request.node.name)[:80].strip("-"), scratch)
    yield made
    shutil.rmtree(made.local, ignore_errors=True)


@pytest.fixture
def tiered(tier, request):
    """A double of its own, with mounts of the tier by its `mount`."""
    if ENVD_URL:
        pytest.skip("injects faults or counts requests: a real envd cannot")
    yield from double_with_mounts(tier, request)


@pytest.fixture
def tiered_anywhere(tier, request):
    """The same for what a real envd can do, too."""
    yield from double_with_mounts(tier, request)


def double_with_mounts(tier, request):
    apply_mark(request, tier)
    base = pathlib.Path(tempfile.mkdtemp(prefix="e2bfs-tier."))
    made = Double(base)
    mounts = []

    def mount(name="m", options=(), inside=None):
        mounts.append(mount_on(tier, made, name, options, inside))
        return mounts[-1]

    made.mount, made.tier = mount, tier
    yield made
    problems = []
    if made.process:
        made.clear_faults()
    for each in mounts:
        try:
            each.close()
        except AssertionError as problem:
            problems.append(str(problem))
    if made.process:
        made.stop()
    shutil.rmtree(base, ignore_errors=True)
    assert not problems, problems


def round_trips(mount):
    """What the mount has waited for until now: frames on the syscall tier, None where it does not count them."""
    for name, value in mount.status()["remote"].items():
        if re.fullmatch(r"(round.?trips?|frames?.waited.?for)", name.replace("_", " "), re.IGNORECASE):
            return int(value)
    return None


def helper(name, scratch):
    """A helper of tests/ in C++: from the build, or else compiled here."""
    built = BIN / f"e2bfs-{name}"
    if built.exists():
        return built
    source = next(path for path in (HERE / f"{name}.cc", HERE.parent / "bench" / f"{name}.cc") if path.exists())
    made = scratch / f"e2bfs-{name}"
    if not made.exists():
        run("c++", "-std=c++20", "-O1", "-pthread", "-Wall", "-Wextra", "-o", made, source)
    return made
