"""Parity: mounts of a tier beside local directories.

Environment, beside what ../e2e/conftest.py reads:
  E2BFS_PARITY_ENTRIES   how many entries the large directories get
  E2BFS_TEST_TIER   "service", "syscall", or "real" (the syscall tier with ids=real; needs root). Default: syscall.
"""
import importlib.util, os, pathlib, re, shutil, subprocess, sys, tempfile

import pytest

# The doubles and mounts of the end-to-end suite, under a name of their own: this file is "conftest" itself.
location = pathlib.Path(__file__).resolve().parent.parent / "e2e/conftest.py"
specification = importlib.util.spec_from_file_location("e2e_conftest", location)
e2e = importlib.util.module_from_spec(specification)
sys.modules["e2e_conftest"] = e2e
specification.loader.exec_module(e2e)
from e2e_conftest import BIN, MOUNT_OPTIONS, Double, Mount, code, eventually, fuse_is_here, is_dead, renameat2, run  # noqa: F401 (fixtures, and for test_semantics)

import parity

NOBODY = 65534
TIER = os.environ.get("E2BFS_TEST_TIER") or "syscall"
assert TIER in parity.TIERS, f"E2BFS_TEST_TIER={TIER}"
UNAVAILABLE = "ids=real needs root" if TIER == "real" and os.getuid() != 0 else ""
# What a tier never shows as it is, in every case (docs/semantics.md). Cases about these say what they expect.
UNSEEN = {"service": {"owner", "nlink", "same", "xattrs"}, "syscall": {"owner"}, "real": set()}[TIER]


def tier_options(extra=()):
    options = ["symlinks=raw", *extra, "tier=service" if TIER == "service" else "tier=syscall"]
    if TIER == "real":
        options += ["user=root", "ids=real", "allow_other", "default_permissions"]
    return options


DEVIATIONS, PASSED = [], []


def pytest_collection_modifyitems(items):
    if UNAVAILABLE:
        for item in items:
            if "mounts" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=UNAVAILABLE))


def pytest_sessionfinish(session, exitstatus):
    """All skipped: 77, which ctest calls a skip."""
    if UNAVAILABLE and exitstatus == 0:
        session.exitstatus = 77


def pytest_terminal_summary(terminalreporter):
    write = terminalreporter.write_line
    chosen = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(("E2BFS_MODEL_", "E2BFS_FSX_", "E2BFS_PARITY_"))]
    if chosen:
        write("a shorter run: " + " ".join(sorted(chosen)))
    if UNAVAILABLE:
        write(f"SKIPPED: {UNAVAILABLE}")
    if PASSED or DEVIATIONS:
        write(f"tier {TIER}: {len(PASSED)} cases as on a local disk, {len(DEVIATIONS)} deviations that are known and documented:")
    for each, reason, differences in DEVIATIONS:
        write(f"  {each}: {reason}")
        for line in differences[:6]:
            write(f"      {line}")


@pytest.fixture(scope="module")
def scratch(request):
    # On a disk, which TMPDIR often is not: the local half of each case is one. Names are the same everywhere, and 100,000 of them take
    # their time on a disk. Others may pass through, for the cases of ordinary users.
    anywhere = getattr(request.module, "ON_ANY_FILE_SYSTEM", False)
    path = pathlib.Path(tempfile.mkdtemp(prefix="e2bfs-parity.", dir=None if anywhere else "/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Mounts:
    """The mounts of a test file, made when first asked for."""
    OF_NOBODY = ["user=nobody", f"uid={NOBODY}", f"gid={NOBODY}", "allow_other"] if TIER != "real" else []

    def __init__(self, scratch):
        self.scratch, self.doubles, self.made = scratch, {}, {}

    def get(self, name, extra=(), double="", inside=None):
        if name not in self.made:
            if double not in self.doubles:
                base = self.scratch / f"double{double}"
                base.mkdir()
                self.doubles[double] = Double(base)
                if double:
                    os.chown(self.doubles[double].root, NOBODY, NOBODY)  # as a home is its user's
            self.made[name] = Mount(self.doubles[double], name, tier_options(extra), inside)
        return self.made[name]

    @property
    def usual(self):
        return self.get("usual")

    @property
    def fresh(self):
        """Believes nothing for long: for changes made inside."""
        return self.get("fresh", ["attr_timeout=0", "negative_timeout=0"])

    @property
    def ordinary(self):
        """For a caller who is nobody, and, unless the ids are real, done as nobody in the sandbox."""
        return self.get("ordinary", ["attr_timeout=0", "negative_timeout=0", *self.OF_NOBODY], double="-of-nobody")

    @property
    def ordinary_behind(self):
        return self.get("ordinary-behind", ["writeback", *self.OF_NOBODY], double="-of-nobody")

    def close(self):
        problems = []
        for each in self.made.values():
            # A file that lost its name inside takes its unsent data along in the service tier: what remains is put aside, not a failure.
            if TIER == "service" and each.mounted and each.umount(check=False).returncode != 0:
                each.umount("--force")
        for each in [mount.close for mount in self.made.values()] + [double.stop for double in self.doubles.values()]:
            try:
                each()
            except AssertionError as problem:
                problems.append(str(problem))
        assert not problems, "\n".join(problems)


@pytest.fixture(scope="module")
def mounts(scratch):
    made = Mounts(scratch)
    yield made
    made.close()


@pytest.fixture(scope="module")
def elsewhere(scratch):
    """A directory on another file system than the scratch directory's."""
    others = [place for place in ("/dev/shm", "/var/tmp") if os.stat(place).st_dev != scratch.stat().st_dev]
    assert others, "neither /dev/shm nor /var/tmp is on another file system than the scratch directory"
    path = tempfile.mkdtemp(prefix="e2bfs-parity.", dir=others[0])
    yield path
    shutil.rmtree(path, ignore_errors=True)


def compare(each, mounts, scratch, elsewhere, number):
    """The differences of one case, a line each."""
    mount = mounts.ordinary if each.setup else mounts.fresh if each.inside else mounts.usual
    uid = NOBODY if each.setup else None
    name = f"c{number}"
    local, there, here = scratch / f"local-{name}", mount.inside / name, mount.path / name
    local.mkdir()
    if each.setup:
        there.mkdir()
        for place in (local, there):
            parity.in_child(lambda: (os.chdir(place), os.umask(0), each.setup())[0], parity.PATIENCE)
    elif not each.filesystem:
        here.mkdir()
    if not each.filesystem:
        return differences_of(each, local, there, here, elsewhere, uid)
    # Out of sight of the mount: nothing tells it of what is mounted over a directory that it knows.
    made = mount.double.root / f"made-{name}"
    made.mkdir()
    others = [place / "other" for place in (local, made)]
    for other in others:
        other.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(other)], check=True)
    others[1] = there / "other"
    made.rename(there)
    try:
        return differences_of(each, local, there, here, elsewhere, uid)
    finally:
        for other in others:
            subprocess.run(["umount", "-l", str(other)], check=True)  # the sandbox's side may hold it open for a while


def differences_of(each, local, there, here, elsewhere, uid):
    expected = parity.play(each, local, local, elsewhere, uid)
    broken = [line for line in expected if line[0].startswith("furniture") or line[1] in ("TypeError", "AttributeError", "NameError")]
    assert not broken, f"the case itself fails on a local disk: {broken}"
    found = parity.play(each, here, there, elsewhere, uid)
    local_tree, inside_tree = parity.snapshot(local), parity.snapshot(there)
    differences = parity.line_differences(expected, found) + parity.tree_differences("inside the sandbox", local_tree, inside_tree)
    if not each.setup:  # as an ordinary user: part of it cannot be read
        try:
            differences += parity.tree_differences("through the mount", local_tree, parity.snapshot(here), UNSEEN)
        except OSError as problem:
            differences.append(f"through the mount: {problem}")
    if not differences and not each.filesystem:
        shutil.rmtree(local, ignore_errors=True)
        shutil.rmtree(there, ignore_errors=True)
    return differences


def judge(each, differences):
    """Fails what is neither as on a local disk nor marked, and marks that are not true."""
    mark = each.marks.get(TIER)

    def fail(what, lines=differences):
        pytest.fail("\n  ".join([what] + lines[:40] + (["..."] if len(lines) > 40 else [])), pytrace=False)
    if mark is None:
        if differences:
            fail(f"{each.id}, {TIER} tier:")
        PASSED.append(each.id)
    else:
        if not differences:
            fail(f"{each.id} is marked as impossible on the {TIER} tier, but passes: remove the mark ({mark.reason})")
        if others := [line for line in differences if not re.search(mark.shows, line)]:
            fail(f"{each.id} differs in more than its mark says ({mark.shows}):", others)
        DEVIATIONS.append((each.id, mark.reason, differences))


def parity_test(module):
    """The test function of a file of cases."""
    cases = [each for each in parity.CASES if each.module == module]

    @pytest.mark.parametrize("number", range(len(cases)), ids=[re.sub(r"\W+", "-", each.id).strip("-") for each in cases])
    def test_parity(number, mounts, scratch, elsewhere):
        each = cases[number]
        if (each.needs_root or each.setup) and os.getuid() != 0:
            pytest.skip("needs root to make what it looks at")
        judge(each, compare(each, mounts, scratch, elsewhere, number))
    return test_parity
