"""Random operations of two processes through the mount and of a second client inside, each step compared with a model in memory and with the sandbox's own tree.

With -o writeback there are also `e2bfs flush`, an umount with another mount, and a kill -9 with another mount among them (the last two while no file is open); the sandbox's tree is compared
after each of these, and until something is done through the mount. The client inside waits for a flush: what becomes of changes on both sides is the matter of e2e/test_writeback.py.

Environment:
  E2BFS_MODEL_SECONDS   how long, 25 s without it
  E2BFS_MODEL_STEPS     operations of one trace, 60 without it
  E2BFS_MODEL_SEED      the only seed to run with; it is printed with each failure
  E2BFS_MODEL_SHRINK    seconds for finding a shorter trace, 60 without it
A failure prints the shortest trace found, in a form to be pasted into regressions.py.
"""
import errno, itertools, os, pprint, random, signal, stat, subprocess, time

import pytest

import calls
from conftest import TIER, eventually, is_dead
from model import INSIDE, MOUNTED, Model, Process, digest
from regressions import REGRESSIONS

SECONDS = float(os.environ.get("E2BFS_MODEL_SECONDS", 25))
STEPS = int(os.environ.get("E2BFS_MODEL_STEPS", 60))
SHRINK = float(os.environ.get("E2BFS_MODEL_SHRINK", 60))
SERVICE = TIER == "service"

NAMES = ["a", "b", "c"]
PATHS = NAMES + [f"{top}/{name}" for top in NAMES for name in NAMES]
XATTRS = ["user.x", "user.y"]
TEXTS = ["a", "b", "c", "a/b", "nowhere"]
SIZES = [0, 1, 5, 4096, 4097, 70_000]
WEIGHTS = {"create": 4, "put": 8, "write": 8, "append": 6, "get": 3, "truncate": 4, "mkdir": 6, "symlink": 2, "link": 3, "unlink": 5, "rmdir": 3, "rename": 8, "renameat2": 3, "chmod": 4, "utime": 4,
           "open": 7, "handle": 22, **({} if SERVICE else {"setxattr": 3, "getxattr": 2, "removexattr": 2})}
# The model does not know that writes by others than root clear the setuid bit: users has that.
MODES = [0o600, 0o644, 0o640, 0o755, 0o1777, *([0o4755] if os.getuid() == 0 else [])]
HANDLE_WEIGHTS = {"hread": 4, "hwrite": 6, "htruncate": 2, "hstat": 2, "hchmod": 1, "hsync": 2, "hclose": 3, **({} if SERVICE else {"hsetxattr": 1, "hgetxattr": 1, "hcopy": 2, "hpunch": 1})}


def invent(chance, model, number):
    """A random operation."""
    actor = chance.choice(MOUNTED + (INSIDE,)) if chance.random() < 0.6 else MOUNTED[0]
    what = chance.choices(list(WEIGHTS), WEIGHTS.values())[0]
    path, size = chance.choice(PATHS), chance.choice(SIZES)
    offset = chance.choice([0, 1, 4095, 5_000, 100_000])
    if what == "handle":
        own = [key for key in model.handles if key[0] in MOUNTED]
        if not own:
            return None
        actor, handle = chance.choice(own)
        what = chance.choices(list(HANDLE_WEIGHTS), HANDLE_WEIGHTS.values())[0]
        others = [number for owner, number in own if owner == actor]
        more = {"hcopy": (chance.choice(others), offset, chance.choice([0, 4096, 50_000]), chance.choice([1, 4096, 30_000])), "hpunch": (offset, 3_000),
                "hsetxattr": (chance.choice(XATTRS), str(number), chance.choice([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])), "hgetxattr": (chance.choice(XATTRS),),
                "hwrite": (offset, number, size), "htruncate": (size,), "hchmod": (chance.choice([0o600, 0o644, 0o666]),)}.get(what, ())
        return (actor, what, handle, *more)
    if what == "open":
        actor = chance.choice(MOUNTED)
        free = [each for each in range(3) if (actor, each) not in model.handles]
        return (actor, "open", free[0], path, chance.choice(["r", "rw", "rw", "a", "c", "x", "t"])) if free else None
    return {"setxattr": lambda: (actor, what, path, chance.choice(XATTRS), str(number), chance.choice([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])),
            "getxattr": lambda: (actor, what, path, chance.choice(XATTRS)), "removexattr": lambda: (actor, what, path, chance.choice(XATTRS)), "create": lambda: (actor, what, path), "put": lambda: (actor, what, path, number, size), "write": lambda: (actor, what, path, offset, number, size),
            "append": lambda: (actor, what, path, number, size), "get": lambda: (actor, what, path), "truncate": lambda: (actor, what, path, size), "mkdir": lambda: (actor, what, chance.choice(NAMES)),
            "symlink": lambda: (actor, what, chance.choice(TEXTS), chance.choice(NAMES)), "link": lambda: (actor, what, path, chance.choice(PATHS)), "unlink": lambda: (actor, what, path),
            "rmdir": lambda: (actor, what, path), "rename": lambda: (actor, what, path, chance.choice(PATHS)),
            "renameat2": lambda: (actor, "rename", path, chance.choice(PATHS), chance.choice([calls.RENAME_NOREPLACE, calls.RENAME_EXCHANGE])),
            "chmod": lambda: (actor, what, path, chance.choice(MODES)), "utime": lambda: (actor, what, path, 10**18 + number)}[what]()


MOUNT_WEIGHTS = {"flush": 6, "remount": 1, "crash": 1}  # with -o writeback, of 100


def invent_behind(chance, model, number):
    if chance.random() < sum(MOUNT_WEIGHTS.values()) / 100:
        return (MOUNTED[0], chance.choices(list(MOUNT_WEIGHTS), MOUNT_WEIGHTS.values())[0])
    return invent(chance, model, number)


def touched(model, op):
    """The things that an operation would change or take the name of."""
    found = []
    for path in [each for each in op[2:] if isinstance(each, str) and (each in PATHS)]:
        for follow in (False, True):
            try:
                found.append(model.find(path, follow))
            except Exception:
                pass
    return found


def allowed(model, op):
    """What no promise covers is not done (see docs/semantics.md)."""
    actor, what = op[0], op[1]
    if what in MOUNT_WEIGHTS:
        return what == "flush" or not any(owner in MOUNTED for owner, _ in model.handles)
    if what.startswith("h"):
        handle = model.handles.get((actor, op[2]))
        return handle is not None and (not handle.stale or what == "hclose")
    if what == "open" and (actor, op[2]) in model.handles:
        return False
    if what == "symlink" and "/" in op[3]:
        return False  # its text would be relative to another directory
    things = touched(model, op)
    for thing in things:
        held = model.held(thing)
        if actor == INSIDE:
            # Both sides change it at once, while the mount has not sent its part.
            if any(handle.thing.dirty or handle.thing.unsent for handle in held):
                return False
            # The service tier has no handles there.
            if SERVICE and held and what in ("rename", "unlink", "rmdir", "link", "put", "write", "append", "truncate", "chmod", "utime"):
                return False
        elif SERVICE and what in ("write", "append", "put", "truncate", "open", "get") and any(handle.stale for handle in held):
            return False
    if SERVICE:
        if what == "rename" and len(op) > 4:
            # Exchange is not there; NOREPLACE is for files.
            return op[4] == calls.RENAME_NOREPLACE and all(thing.kind == "file" for thing in things)
        if what == "link":
            return False  # the two names are two files to its caches
    return True


def look(top):
    """{path: what is there}, as the model says it."""
    found = {}

    def visit(directory, prefix):
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                found[prefix + name] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                found[prefix + name] = ("directory", stat.S_IMODE(status.st_mode))
                visit(path, f"{prefix}{name}/")
            else:
                with open(path, "rb", buffering=0) as file:
                    content = file.readall()
                found[prefix + name] = ("file", stat.S_IMODE(status.st_mode), digest(content), status.st_size, status.st_nlink, status.st_mtime_ns,
                                         {} if SERVICE else {key: os.getxattr(path, key).decode() for key in os.listxattr(path) if key in XATTRS})
    visit(top, "")
    return found


def compare(model, tree, where, inside):
    expected = dict(model.everything())
    for path in sorted(expected.keys() | tree.keys()):
        if path not in tree:
            return f"{where}: {path} is missing"
        if path not in expected:
            return f"{where}: {path} is there: {tree[path]}"
        thing, got = expected[path], tree[path]
        if got[0] != thing.kind:
            return f"{where}: {path} is a {got[0]}, not a {thing.kind}"
        if thing.kind == "link":
            if got[1] != thing.content.decode():
                return f"{where}: {path} is a link to {got[1]}, not {thing.content.decode()}"
            continue
        # A file that is held with unsent writes, or that was made by who holds it, may have its mode sent along.
        if got[1] != thing.mode and not (inside and (thing.dirty or thing.unsent)):
            return f"{where}: {path} has mode {got[1]:o}, not {thing.mode:o}"
        if thing.kind == "directory" or (inside and thing.dirty):
            continue
        if got[2] != digest(thing.content) and not any(handle.stale and handle.thing.dirty for handle in model.held(thing)):
            return f"{where}: {path} holds {got[2]}, not {digest(thing.content)}"
        if got[3] != len(thing.content):
            return f"{where}: {path} has size {got[3]}, not {len(thing.content)}"
        if got[4] != thing.links and (inside or not SERVICE):
            return f"{where}: {path} has {got[4]} links, not {thing.links}"
        if got[6] != thing.xattrs:
            return f"{where}: {path} has xattrs {got[6]}, not {thing.xattrs}"
        if thing.mtime is not None and got[5] != thing.mtime and not (inside and thing.unsent):
            return f"{where}: {path} has mtime {got[5]}, not {thing.mtime}"
    return None


class Run:
    """Traces in fresh directories of one mount."""
    numbers = itertools.count()

    def __init__(self, mount, patience=0, behind=None):
        self.mount, self.patience, self.behind = mount, patience, behind
        self.invent = invent if behind is None else invent_behind

    def act(self, what):
        """What is done to the mount itself."""
        if what == "flush":
            self.mount.e2bfs("flush", self.mount.path)
            return "ok"
        if what == "crash":
            pid = self.mount.status()["pid"]
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: is_dead(pid), "it is dead")
            subprocess.run(["fusermount3", "-uz", str(self.mount.path)], check=False)
        else:
            self.mount.umount()
        self.mount.mount()
        return "ok"

    @staticmethod
    def still_there(model, here):
        """A name that no listing shows, and that the kernel here believes in."""
        known = dict(model.everything())
        for path in PATHS:
            directory = known.get(path.rpartition("/")[0])
            if path not in known and ("/" not in path or directory is not None and directory.kind == "directory") and os.path.lexists(here / path):
                return f"through the mount: {path} is not listed, but there"
        return None

    def compare(self, model, here, there, actor):
        """What differs. patience: the mount is told of what happens inside, and shows it soon."""
        end = time.monotonic() + (self.patience if actor == INSIDE else 0)
        while True:
            try:
                problem = None if model.behind else compare(model, look(there), "inside the sandbox", True)
                problem = problem or compare(model, look(here), "through the mount", False) or self.still_there(model, here)
            except OSError as trouble:
                problem = f"looking: {trouble}"
            if problem is None or time.monotonic() > end:
                return problem
            time.sleep(0.002)

    def play(self, source, service=SERVICE):
        """Takes operations from a function of (model, number) until it gives "end". (operations done, problem or None)."""
        name = f"trace{next(self.numbers)}"
        here, there = self.mount.path / name, self.mount.inside / name
        os.mkdir(here)
        processes = {actor: Process(str(here)) for actor in MOUNTED}
        processes[INSIDE] = Process(str(there))
        model, done, problem = Model(service, self.behind), [], None
        try:
            while problem is None:
                op = source(model, len(done))
                if op == "end":
                    break
                if op is None or not allowed(model, op):
                    continue
                if model.behind and op[0] == INSIDE:
                    self.act("flush")
                    model.do_flush(MOUNTED[0])
                expected = model.apply(op)
                got = self.act(op[1]) if op[1] in MOUNT_WEIGHTS else processes[op[0]].apply(op)
                done.append(op)
                if got != expected:
                    problem = f"{op}: {got}, not {expected}"
                    break
                problem = self.compare(model, here, there, op[0])
        finally:
            for process in reversed(processes.values()):  # each has a copy of the pipes of those before it
                process.end()
        if problem is None:
            if model.behind:
                self.act("flush")
            for thing in (each for _, each in model.everything()):
                thing.dirty = thing.unsent = False
            problem = compare(model, look(there), "inside the sandbox, after the processes ended", True)
        return done, problem

    def replay(self, operations, **more):
        left = iter(operations)
        return self.play(lambda model, number: next(left, "end"), **more)[1]

    def shrink(self, operations, seconds):
        """A shorter trace with a problem, by dropping parts and trying again."""
        end = time.monotonic() + seconds
        problem = self.replay(operations)
        if problem is None:
            return operations, "(not seen again when the trace was run a second time)"
        size = max(1, len(operations) // 2)
        while time.monotonic() < end:
            shorter = None
            for start in range(0, len(operations), size):
                candidate = operations[:start] + operations[start + size:]
                found = self.replay(candidate)
                if found is not None:
                    shorter, problem = candidate, found
                    break
                if time.monotonic() > end:
                    break
            if shorter is not None:
                operations = shorter
            elif size == 1:
                break
            else:
                size //= 2
            size = max(1, min(size, len(operations)))
        return operations, problem


@pytest.fixture(scope="module", params=["asking", "told", "behind"])
def runner(mounts, request):
    """A mount that asks each time, one that believes what it knows until it is told of a change, and one with -o writeback."""
    if request.param == "asking":
        return Run(mounts.fresh)
    if request.param == "behind":
        return Run(mounts.get("behind", ["writeback", *(["attr_timeout=0", "negative_timeout=0"] if SERVICE else [])]), 10, behind=False)
    if SERVICE:
        pytest.skip("the service tier is not told of everything")
    return Run(mounts.get("told", ["attr_timeout=600", "negative_timeout=600"]), 10)


@pytest.mark.parametrize("name", sorted(REGRESSIONS))
def test_regression(name, runner):
    operations, marks = REGRESSIONS[name]
    problem = runner.replay(operations)
    if TIER in marks:
        assert problem is not None, f"{name} is marked as failing on the {TIER} tier ({marks[TIER]}), but passes: remove the mark"
        print(f"known on the {TIER} tier: {marks[TIER]}: {problem}")
    else:
        assert problem is None, problem


def test_random_operations(runner):
    end = time.monotonic() + SECONDS
    seeds = [int(os.environ["E2BFS_MODEL_SEED"])] if "E2BFS_MODEL_SEED" in os.environ else itertools.count(1 if SECONDS <= 25 else random.randrange(1 << 32))
    steps = 0
    for traces, seed in enumerate(seeds):
        chance = random.Random(seed)

        def source(model, number):
            return "end" if number >= STEPS or (time.monotonic() > end and "E2BFS_MODEL_SEED" not in os.environ) else runner.invent(chance, model, number)
        done, problem = runner.play(source)
        steps += len(done)
        if problem is not None:
            shortest, last = runner.shrink(done, SHRINK)
            pytest.fail(f"seed {seed} (E2BFS_MODEL_SEED={seed} E2BFS_MODEL_STEPS={STEPS}), after {len(done)} operations: {problem}\n"
                        f"shortest trace, {len(shortest)} operations: {last}\n{pprint.pformat(shortest, width=150)}", pytrace=False)
        if time.monotonic() > end:
            break
    print(f"{steps} operations in {traces + 1} traces as the model says")
