"""kill -9 of a mount with -o writeback at each step of accepting, sending and replaying; then the next mount: the sandbox has exactly what was accepted.

The steps are enumerated, not hit by chance: a scenario is run once with E2BFS_FAULT_LOG, which lists the points that were passed, and then anew for each of them
with E2BFS_KILL_AT (transport/base/fault_point.h). A replay is enumerated and killed in the same way, and a third mount has to give the same.

Environment:
  E2BFS_CRASH_KILLS   kills of each scenario and of its replay: "all", or how many. Without it 5 (3 in sanitizer builds), spread over the first and the last time of each point, other ones in
                      each scenario: at most 60 kills for each tier
  E2BFS_CRASH_POINT   the only point, "NAME:N"
"""
import collections, contextlib, errno, itertools, json, os, pathlib, re, shutil, stat, tempfile

import pytest

from conftest import ENVD_URL, SANITIZED, Double, Mount, eventually, is_dead, run
from test_recover import listed, recover
from tiers import tier  # noqa: F401 (fixture)
from writeback import (CONFLICT, LONG_AGO, assert_same, brief, clear_away, differences, flush, kill, look, mount_with, options_of, spool_files, standing_still)

KILLS = os.environ.get("E2BFS_CRASH_KILLS", "3" if SANITIZED else "5")
POINT = os.environ.get("E2BFS_CRASH_POINT")
OLD = (LONG_AGO - 1000) * 10**9
NAMES = ("accept.", "make.", "store.", "remove.", "conflict.", "replay.")


# --- what a program does: each on the mount, and on a directory of the local disk that says what is right

def do_mkdir(top, path, mode=0o755):
    os.mkdir(top / path, mode)


def do_symlink(top, text, path):
    os.symlink(text, top / path)


def do_put(top, path, content, how=os.O_CREAT | os.O_EXCL, at=None, mode=0o644, cut=None):
    """Written in three parts, and closed; once it is opened it is in doubt until close has returned."""
    file = os.open(top / path, os.O_WRONLY | how, mode)
    try:
        third = len(content) // 3 + 1
        for begin in range(0, len(content), third):
            end = min(begin + third, len(content))
            while begin < end:  # on a full disk less is written, and ENOSPC is the next one's
                begin += os.write(file, content[begin:end]) if at is None else os.pwrite(file, content[begin:end], at + begin)
        if cut is not None:
            os.ftruncate(file, cut)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(file)
        raise
    os.close(file)


def do_chmod(top, path, mode):
    os.chmod(top / path, mode)


def do_utime(top, path, number):
    os.utime(top / path, ns=(OLD, OLD + number))


def do_rename(top, source, target):
    os.rename(top / source, top / target)


def do_unlink(top, path):
    os.unlink(top / path)


def do(top, step):
    globals()["do_" + step[0]](top, *step[1:])


def noise(size, seed):
    return bytes((seed * 31 + at * 7 + at // 251) % 251 for at in range(min(size, 5000))) * (size // 5000 + 1)


def data(size, seed=1):
    return noise(size, seed)[:size]


# name: (made inside before the mount: {path: content}, steps, whether the sandbox stands still meanwhile, options)
WHOLE = os.O_CREAT | os.O_TRUNC
SCENARIOS = {
    "a new tree": ({}, [
        ("mkdir", "a"), ("put", "a/f", b"content of a/f"), ("mkdir", "a/b", 0o700), ("put", "a/b/f", data(3000), os.O_CREAT | os.O_EXCL, None, 0o640),
        ("symlink", "../f", "a/b/l"), ("symlink", "nowhere", "a/l"), ("put", "a/empty", b""), ("chmod", "a/f", 0o600), ("utime", "a/f", 1), ("utime", "a/b/f", 2),
        ("put", "large", data(300_000)), ("utime", "large", 3), ("put", "a/b/f", b" appended", os.O_APPEND), ("utime", "a/b", 4), ("mkdir", "a/c", 0o750), ("utime", "a", 5), ("put", "last", b"last")],
        True, []),
    "existing files": ({"whole": b"old content", "part": b"0123456789" * 1000, "log": b"first\n", "cut": b"0123456789", "large": data(300_000, 2), "touched": b"as it was", "times": b"t"}, [
        ("put", "whole", b"new", os.O_TRUNC), ("put", "part", b"PART" * 20, 0, 100), ("put", "log", b"second\n", os.O_APPEND), ("put", "cut", b"ab", 0, 1, 0o644, 5),
        ("put", "large", data(200_000, 3), 0, 50_000), ("put", "log", b"third\n" * 3000, os.O_APPEND), ("put", "part", b"again" * 30, 0, 9_990), ("put", "whole", b"newer still", 0, 1)],
        True, []),
    "renames": ({"old": b"old content", "their/x": b"theirs"}, [
        ("mkdir", "a"), ("put", "a/f", data(2000)), ("rename", "a/f", "a/g"), ("put", "a/g", b" appended", os.O_APPEND), ("mkdir", "a/b"), ("put", "a/b/f", b"content of a/b/f"),
        ("utime", "a/b/f", 1), ("rename", "a", "z"), ("put", "z/b/h", b"late"), ("rename", "z/b", "y"), ("put", "y/f", b"whole", os.O_TRUNC), ("put", "old", b"newer", os.O_TRUNC),
        ("rename", "old", "older"), ("put", "their/new", b"among theirs"), ("rename", "their/new", "their/x"), ("put", "y/i", b"i"), ("unlink", "y/i"), ("put", "y/j", b"j")],
        False, []),
    "publishing": ({"config": b"version -1"}, [step for number in range(4) for step in (
        ("put", "config.new", b"version %d" % number * 50, WHOLE), ("utime", "config.new", number), ("rename", "config.new", "config"))] + [("put", "config", b" and more", os.O_APPEND)], False, []),
}
DOUBTFUL = "put"


class Crash:
    """A directory of the sandbox with a mount that is going to be killed. `told`: what the program knows to be done, as a tree on the local disk."""

    def __init__(self, double, tier, name, before, options=(), own=False):
        self.double, self.name, self.own = double, name, own
        self.mount = Crashing(double, name, [f"tier={tier}", *options_of(tier), *options])
        self.told = double.scratch / f"told-{name}"
        for top in (self.told, self.mount.inside):
            (top / "top").mkdir(parents=True)
            for path, content in before.items():
                (top / "top" / path).parent.mkdir(exist_ok=True)
                (top / "top" / path).write_bytes(content)
                os.utime(top / "top" / path, (LONG_AGO + 1000, LONG_AGO + 1000))
        self.here, self.there, self.told = self.mount.path / "top", self.mount.inside / "top", self.told / "top"
        if not before:
            shutil.rmtree(self.there)  # the mount makes it
        if self.own:
            (self.told / "own").mkdir()
        self.full_disk = bool(options)
        self.doubtful = {}  # path: (content before, content after); its close has not returned well
        self.either = None  # trees, when a call on names had not returned
        self.pid = None

    def begin(self, **environment):
        mount_with(self.mount, **environment)
        self.pid = self.mount.status()["pid"]
        try:
            if not self.there.exists():
                os.mkdir(self.here)
            elif self.own:
                os.mkdir(self.here / "own")  # the mount's: what is made in it needs nobody's answer
            for name in os.listdir(self.here):
                os.lstat(self.here / name)
        except OSError:
            self.must_be_dead()
            self.there.mkdir(exist_ok=True)
            if self.own:
                (self.there / "own").mkdir(exist_ok=True)

    def must_be_dead(self):
        eventually(lambda: is_dead(self.pid), "a call failed since the mount was killed", 5)

    def play(self, steps, may_fail=()):
        """The steps until the mount dies, if it does."""
        for step in steps:
            before = look(self.told)
            try:
                do(self.here, step)
            except OSError as problem:
                if problem.errno not in may_fail or is_dead(self.pid):
                    self.must_be_dead()
                    self.doubt(step, before)
                    return
                self.doubt(step, before)
                continue
            do(self.told, step)

    def doubt(self, step, before):
        if step[0] == DOUBTFUL:
            old = self.told / step[1]
            content = old.read_bytes() if old.exists() else None
            copy = self.told.parent / "copy"
            shutil.copytree(self.told, copy, symlinks=True)
            do(copy, step)
            self.doubtful[os.fsencode(step[1])] = (content, (copy / step[1]).read_bytes())
            shutil.rmtree(copy)
        else:
            do(self.told, step)
            self.either = [before, look(self.told)]

    def flush(self):
        """And kills it, if it lives so long. Whether it did."""
        done = flush(self.mount, check=False)
        alive = not is_dead(self.pid) and done.returncode == 0
        if not alive:
            eventually(lambda: is_dead(self.pid), f"flush failed since the mount was killed: {done}", 5)
        kill(self.mount, self.pid) if alive else clear_away(self.mount, self.pid)
        return alive

    def compare(self, found, where):
        """What is wrong with a tree, but for what is in doubt."""
        trees = self.either or [look(self.told)]
        problems = []
        for expected in trees:
            expected, got = dict(expected), dict(found)
            wrong = []
            for path, (old, new) in self.doubtful.items():
                earlier, now = expected.pop(path, None), got.pop(path, None)
                if earlier is None:  # made or not: the time of its directory
                    for tree in (expected, got):
                        parent = os.path.dirname(path)
                        tree[parent] = (*tree[parent][:3], None)
                if now is None:
                    if old is not None:
                        wrong.append(f"{path} is gone")
                elif not between(old or b"", new, now[2]):
                    wrong.append(f"{path} holds {brief({path: now})}: neither what it was nor what was written")
            if unlike := differences(expected, got):
                wrong.append(f"(expected, found): {unlike}")
            problems.append("; ".join(wrong))
        return "" if "" in problems else f"{where}: " + " or ".join(problems)

    def mount_to_be_killed(self, point):
        """There, or at last when it serves."""
        mount_with(self.mount, check=False, E2BFS_KILL_AT=point)
        said = self.mount.e2bfs("status", "--json", self.mount.path, check=False)
        if said.returncode == 0:
            self.pid = json.loads(said.stdout)["pid"]
            kill(self.mount, self.pid)
        else:
            clear_away(self.mount)

    def check_leftovers(self):
        """Nothing is kept on this machine but what is in doubt."""
        entries = listed(self.double)
        names = {os.fsencode(entry["path"]).rpartition(b"/top/")[2] for entry in entries if "path" in entry}
        # Of what is on a full disk there may be no record: it was never accepted.
        nameless = 0 if self.full_disk else sum("path" not in entry for entry in entries)
        if nameless or not names <= self.doubtful.keys():
            recover(self.double, "--drop", "--all", "--yes")  # nothing of it to the next
            return f"unsent: {entries}"
        if entries:
            recover(self.double, "--drop", "--all", "--yes")
        left = spool_files(self.double)
        if left:  # nothing of it to the next
            shutil.rmtree(self.double.scratch / "state", ignore_errors=True)
        return f"left: {[path.relative_to(self.double.scratch / 'state/e2bfs') for path in left]}" if left else ""

    def remount_and_check(self):
        """What is wrong after the next mount, before anything is done through it; a line each."""
        done = mount_with(self.mount, check=False)
        if done.returncode != 0:
            return [f"the next mount failed: {done.stderr}"]
        problems = [self.compare(look(self.there), "inside the sandbox"), self.compare(look(self.here), "through the mount")]
        done = self.mount.umount(check=False)
        problems += ["" if done.returncode == 0 else f"umount: {done.stderr}", self.compare(look(self.there), "after umount"), self.check_leftovers()]
        return [each for each in problems if each]

    def end(self):
        if self.mount.mounted:
            if self.pid and not is_dead(self.pid):
                os.kill(self.pid, 9)
            clear_away(self.mount)
        self.mount.close()
        end_servers(self.double)
        for top in (self.told.parent, self.mount.inside):
            shutil.rmtree(top, ignore_errors=True)


def end_servers(double):
    """Of mounts that were killed: they wait for an hour that somebody comes back, and hundreds of them look at each mount and umount of this machine."""
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, after = status.read_text().partition("(")[2].rsplit(") ", 1)
            if (name, after.split()[1]) == ("perl", str(double.process.pid)):
                os.kill(int(status.parent.name), 9)


def between(old, new, found):
    """Each byte is one of the two contents', or of a hole; as long as one of them, or anything between."""
    if len(found) > max(len(old), len(new)):
        return False
    return found in (old, new) or all(byte in (old[at:at + 1] or b"\0") + (new[at:at + 1] or b"\0") + b"\0" for at, byte in enumerate(found))


class Crashing(Mount):
    """Is mounted when it is told to: by mount_with."""

    def mount(self):
        self.mounted = False


@pytest.fixture(scope="module")
def crashes(tier):  # noqa: F811
    """Makes them, in a test sandbox of their own."""
    if ENVD_URL:
        pytest.skip("stops the sandbox: a real envd cannot")
    base = pathlib.Path(tempfile.mkdtemp(prefix="e2bfs-crash."))
    double = Double(base)
    numbers = itertools.count()
    made = []

    def make(before, options=(), kind=Crash, own=False):
        made.append(kind(double, tier, f"c{next(numbers)}", before, options, own))
        return made[-1]

    make.double, make.base = double, base
    yield make
    problems = []
    for each in made:
        try:
            each.end()
        except AssertionError as problem:
            problems.append(str(problem))
    double.stop()
    shutil.rmtree(base, ignore_errors=True)
    assert not problems, problems


@pytest.fixture(autouse=True)
def nothing_of_others(crashes):
    yield
    crashes.double.control("POST", "/_test/latency?ms=0")
    if spool_files(crashes.double):  # of a test that failed
        shutil.rmtree(crashes.base / "state", ignore_errors=True)


def points(log):
    """["NAME:N"] of all passed, each name's first, then each name's last, then the others."""
    counts = collections.Counter(log.read_text().split() if log.exists() else [])
    assert all(name.startswith(NAMES) for name in counts), counts
    order = [f"{name}:1" for name in counts] + [f"{name}:{most}" for name, most in counts.items() if most > 1]
    rest = [[f"{name}:{n}" for n in range(2, most)] for name, most in counts.items()]
    order += [point for row in itertools.zip_longest(*rest) for point in row if point]
    print(f"points: {dict(counts)}")
    return order


def chosen(log, what):
    found = points(log)
    assert found, f"no point was passed: {what}"
    if POINT:
        return [POINT] if POINT in found else []
    if KILLS == "all":
        return found
    # Others of them in each scenario.
    edges, kills = found[:sum(point.endswith(":1") for point in found) * 2], int(KILLS)
    step = max(1, len(edges) // kills)
    return edges[sum(map(ord, what)) % step::step][:kills]


def run_to_its_end(crash, steps, still, **environment):
    """The scenario with a mount that may die at any time; it is dead afterwards."""
    with standing_still(crash.double) if still else contextlib.nullcontext():
        if not is_dead(crash.pid):
            crash.play(steps)
    return crash.flush()


def report(problems, tried):
    if tried:
        print(f"killed at {len(tried)} points: {' '.join(tried)}")
    if problems:
        pytest.fail("\n".join(f"{point}: {line}" for point, lines in problems.items() for line in lines), pytrace=False)


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_each_step(crashes, name):
    """Of accepting and sending."""
    before, steps, still, options = SCENARIOS[name]
    log = crashes.base / f"points-{name}"
    crash = crashes(before, options)
    crash.begin(E2BFS_FAULT_LOG=str(log))
    assert run_to_its_end(crash, steps, still), "it died without being killed"
    assert_same(look(crash.told), look(crash.there), "without a kill")
    problems = {"the end": wrong} if (wrong := crash.remount_and_check()) else {}
    tried = chosen(log, name)
    for point in tried:
        crash = crashes(before, options)
        crash.begin(E2BFS_KILL_AT=point)
        run_to_its_end(crash, steps, still)
        if wrong := crash.remount_and_check():
            problems[point] = wrong
        crash.end()
    report(problems, tried)


def leave_all_unsent(crash, steps, still):
    """Killed when all is accepted and, if the sandbox stands still, nothing is sent."""
    crash.begin()
    with standing_still(crash.double) if still else contextlib.nullcontext():
        crash.play(steps)
        assert not crash.doubtful and not crash.either
        kill(crash.mount, crash.pid)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_replay_killed_at_each_step(crashes, name):
    before, steps, still, options = SCENARIOS[name]
    log = crashes.base / f"replay-{name}"
    crash = crashes(before, options)
    leave_all_unsent(crash, steps, still)
    assert spool_files(crash.double), "nothing was left to be replayed"
    mount_with(crash.mount, E2BFS_FAULT_LOG=str(log))
    assert_same(look(crash.told), look(crash.there), "without a kill")
    crash.mount.umount()
    assert spool_files(crash.double) == []
    problems, tried = {}, chosen(log, f"the replay of {name}")
    for point in tried:
        crash = crashes(before, options)
        leave_all_unsent(crash, steps, still)
        crash.mount_to_be_killed(point)
        if wrong := crash.remount_and_check():
            problems[point] = wrong
        crash.end()
    report(problems, tried)


# --- changed inside meanwhile

THEIRS = {"changed": b"theirs", "same": b"abcdefghij", "replaced": b"theirs, another file", "own/new": b"theirs, new"}
OURS = [("put", "changed", b"ours", os.O_TRUNC), ("put", "same", b"XYZ", 0, 3), ("put", "replaced", b"ours, too", os.O_TRUNC), ("put", "own/new", b"ours, new"), ("put", "own/other", b"nobody else's")]


class Conflict(Crash):
    """After the steps somebody inside changes the files. Ours lies beside theirs, once, and neither is lost."""

    def meanwhile(self):
        for name, content in THEIRS.items():
            if name == "replaced":
                (self.there / "temporary").write_bytes(content)
                os.rename(self.there / "temporary", self.there / name)
            else:
                (self.there / name).write_bytes(content)

    def compare(self, found, where):
        accepted = {name: content for name, (kind, _, content, _) in look(self.told).items() if stat.S_ISREG(kind)}
        wrong = []
        for name, content in THEIRS.items():
            if found.get(os.fsencode(name), (0, 0, None, 0))[2] != content:
                wrong.append(f"{name} is not theirs: {found.get(os.fsencode(name))}")
        copies = {}
        for name, (_, _, content, _) in found.items():
            if match := CONFLICT.fullmatch(name):
                copies.setdefault(match[1], []).append(content)
        for step in OURS:
            name = os.fsencode(step[1])
            ours = copies.pop(name, [])
            if name in self.doubtful or name not in accepted or accepted[name] == self.before.get(step[1]):
                if len(ours) > 1 or (ours and name not in self.doubtful):
                    wrong.append(f"{step[1]}: copies that nobody wrote: {ours}")
            elif step[1] == "own/other":
                if found.get(name, (0, 0, None, 0))[2] != step[2] or ours:
                    wrong.append(f"other: {found.get(name)}, {ours}")
            elif len(ours) != 1 or step[2] not in ours[0] or (step[1] != "same" and ours[0] != step[2]):
                wrong.append(f"{step[1]}: ours is not beside it once: {ours}")
        strange = set(found) - {b"", b"own", *map(os.fsencode, THEIRS), b"own/other"} - {name for name in found if CONFLICT.fullmatch(name)}
        if strange or copies:
            wrong.append(f"what is {strange}, {copies}?")
        return f"{where}: " + "; ".join(wrong) if wrong else ""


BEFORE = {"changed": b"old content", "same": b"0123456789", "replaced": b"old"}


def conflict(crashes):
    crash = crashes(BEFORE, (), Conflict, own=True)
    crash.before = BEFORE
    return crash


def test_changed_inside_meanwhile_and_killed_at_each_step(crashes):
    log = crashes.base / "points-conflict"

    def once(**environment):
        crash = conflict(crashes)
        crash.begin(**environment)
        with standing_still(crash.double):
            if not is_dead(crash.pid):
                crash.play(OURS)
            crash.meanwhile()
        alive = crash.flush()
        return crash, alive
    crash, alive = once(E2BFS_FAULT_LOG=str(log))
    assert alive
    problems = {"the end": wrong} if (wrong := crash.remount_and_check()) else {}
    tried = chosen(log, "conflicts")
    for point in tried:
        crash, _ = once(E2BFS_KILL_AT=point)
        if wrong := crash.remount_and_check():
            problems[point] = wrong
        crash.end()
    report(problems, tried)


def test_a_replay_with_conflicts_killed_at_each_step(crashes):
    log = crashes.base / "replay-conflict"

    def left():
        crash = conflict(crashes)
        leave_all_unsent(crash, OURS, True)
        crash.meanwhile()
        return crash
    crash = left()
    said = mount_with(crash.mount, E2BFS_FAULT_LOG=str(log)).stderr + crash.mount.log.read_text(errors="replace")
    assert crash.compare(look(crash.there), "without a kill") == ""
    copies = [name for name in os.listdir(crash.there) if ".e2bfs-conflict-" in name]
    assert copies and all(name in said for name in copies), said
    crash.mount.umount()
    problems, tried = {}, chosen(log, "the replay of conflicts")
    for point in tried:
        crash = left()
        crash.mount_to_be_killed(point)
        if wrong := crash.remount_and_check():
            problems[point] = wrong
        crash.end()
    report(problems, tried)


# --- a torn journal

TORN = [("mkdir", "own/d"), ("put", "own/d/f", b"content of d/f"), ("put", "own/f", data(20_000)), ("utime", "own/f", 1), ("symlink", "text", "own/d/l"), ("put", "own/g", b"one"),
        ("put", "own/g", b" two", os.O_APPEND),
        ("put", "old", b"PART", 0, 3)]


def flip(note, at):
    with open(note, "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x20]))


def last_said(note):
    """Where the last byte is that is not zero: a slot may be followed by nothing."""
    return len(note.read_bytes().rstrip(b"\0")) - 1


DAMAGES = {
    "the last byte is not there": lambda note: os.truncate(note, last_said(note)),
    "its half is not there": lambda note: os.truncate(note, last_said(note) // 2),
    "it is empty": lambda note: os.truncate(note, 0),
    "the last byte is another": lambda note: flip(note, last_said(note) - 1),
    "a byte in the middle is another": lambda note: flip(note, last_said(note) // 2),
    "its first byte is another": lambda note: flip(note, 0),
    "it is something else": lambda note: note.write_bytes(b"\x7fELF" + os.urandom(3000)),
    "it goes on with rubbish": lambda note: note.write_bytes(note.read_bytes() + b"+ 0 999999999 0123456789abcdef\n" + os.urandom(500)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_record(crashes, damage):
    """Of whichever object it is: the mount works, all else is exact, what is torn is set aside and said, and nothing wrong is ever in the sandbox."""
    before = {"old": b"0123456789"}
    number, problems = 0, {}
    while True:
        crash = crashes(before, own=True)
        leave_all_unsent(crash, TORN, True)
        notes = sorted((path for path in spool_files(crash.double) if path.suffix == ".note"), key=lambda path: path.read_bytes().partition(b"\npath ")[2])
        assert len(notes) >= 4, notes
        if number >= len(notes):
            mount_with(crash.mount)
            crash.mount.umount()
            break
        torn = notes[number]
        object_of = re.findall(rb"\npath (.*)\n", torn.read_bytes())
        DAMAGES[damage](torn)
        done = mount_with(crash.mount, check=False)
        wrong = [] if done.returncode == 0 else [f"it is not mounted: {done.stderr}"]
        expected, found = look(crash.told), look(crash.there)
        entries = listed(crash.double)
        kept = [pathlib.Path(entry["content"]).read_bytes() for entry in entries if os.path.exists(entry.get("content", ""))]
        unlike = differences(expected, found)
        unlike.pop("own", None)  # its time
        torn_objects = {name for name in unlike if not any(name.startswith(f"{other}/") for other in unlike)}
        for name in unlike:
            content, there = expected.get(os.fsencode(name), (0, 0, b"", 0))[2], found.get(os.fsencode(name))
            old = before.get(name, b"")
            if there and not between(old, content, there[2]) and not CONFLICT.fullmatch(os.fsencode(name)):
                wrong.append(f"{name} holds {there[2][:100]}")
            if there and there[2] == content:
                torn_objects.discard(name)  # the record before it counts: only a mode or a time was in this one
                continue
            if content and stat.S_ISREG(expected.get(os.fsencode(name), (0,))[0]) and not any(each.strip(b"\0") and each.strip(b"\0") in content for each in kept):
                wrong.append(f"{name} is lost: {unlike[name]}; kept: {[each[:50] for each in kept]}")
        if len(torn_objects) > 1:
            wrong.append(f"not only one is not as it should be: {unlike}")
        if torn_objects and not entries and "torn" not in done.stderr + crash.mount.log.read_text(errors="replace"):
            wrong.append(f"nobody says that something is torn: {unlike}")
        if wrong:
            problems[f"record {number}, of {object_of[0]}"] = wrong
        if crash.mount.mounted:
            crash.mount.umount()
        recover(crash.double, "--drop", "--all", "--yes", check=False)
        if spool_files(crash.double):
            problems.setdefault(str(number), []).append(f"left: {spool_files(crash.double)}")
            shutil.rmtree(crash.double.scratch / "state", ignore_errors=True)
        crash.end()
        number += 1 if KILLS == "all" else 2
    report(problems, [])


# --- no room on this machine's disk

@pytest.fixture
def small_spool(crashes):
    if os.geteuid() != 0:
        pytest.skip("makes a small file system: needs root")
    place = crashes.base / "small"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "small", place)
    yield place
    run("umount", "-l", place)
    place.rmdir()


MANY = [("mkdir", "d")] + [("put", f"d/f{number}", data(60_000 + number, number)) for number in range(40)] + [("put", "old", data(100_000, 9), os.O_TRUNC)]


def test_a_full_local_disk_and_killed_at_each_step(crashes, small_spool):
    """2.5 MB through a spool of 1 MiB: writers wait, or are told; and what was accepted is there after each kill."""
    log = crashes.base / "points-full"
    options = [f"spool_dir={small_spool}/spool"]

    def once(**environment):
        crash = crashes({"old": b"old content"}, options)
        crash.begin(**environment)
        crash.double.control("POST", "/_test/latency?ms=10")
        if not is_dead(crash.pid):
            crash.play(MANY, may_fail=(errno.ENOSPC,))
        crash.double.control("POST", "/_test/latency?ms=0")
        accepted = len(look(crash.told))
        return crash, crash.flush(), accepted
    crash, alive, accepted = once(E2BFS_FAULT_LOG=str(log))
    assert alive and accepted > 10, f"{accepted} of {len(MANY)} were accepted"
    assert crash.compare(look(crash.there), "without a kill") == ""
    problems = {"the end": wrong} if (wrong := crash.remount_and_check()) else {}
    tried = chosen(log, "a full disk")
    for point in tried:
        crash, _, _ = once(E2BFS_KILL_AT=point)
        if wrong := crash.remount_and_check():
            problems[point] = wrong
        if left := [path for path in small_spool.rglob("*") if path.is_file() and path.name != ".lock"]:
            problems.setdefault(point, []).append(f"left in the spool: {left}")
        crash.end()
    report(problems, tried)
