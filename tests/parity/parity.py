"""The same calls in a fresh directory of the mount and in a fresh local one: same values, same errnos, same trees.

A case is a function of a Transcript. It runs in a process of its own (its working directory is the fresh directory, its umask 022), once here and once
there. What it called and what came out is compared line by line, and so are three trees: the local one, the one seen through the mount,
and the one in the sandbox itself.

A case that a tier cannot pass says so: service=Cannot(reason, shows), syscall=, real=, or every= for what FUSE itself cannot do. It then HAS to
differ, and each line of the differences has to match `shows`, a regular expression: a mark that is no longer true, or that hides anything else,
fails the suite. So a case keeps to one matter where a tier cannot do one.
"""
import dataclasses, errno, faulthandler, hashlib, os, pickle, select, signal, stat, sys, time, traceback
from typing import Callable, NamedTuple

PATIENCE = 180  # seconds that one case may take before it counts as hung: far above what it takes


class Cannot(NamedTuple):
    reason: str
    shows: str        # a regular expression that each line of the differences matches (re.search)
    listed: str = ""  # of a service mark: words of the line of `e2bfs status` (limits) that says it


NO_XATTRS = Cannot("the service tier has no extended attributes", r": ENOTSUP in place of |: xattrs: None in place of ", "extended attributes")


@dataclasses.dataclass
class Case:
    operation: str            # a line of the table in the matrix
    name: str
    function: Callable
    marks: dict               # tier -> Cannot
    inside: bool              # edits are made inside the sandbox: needs a mount that believes nothing for long
    setup: Callable | None    # made as root, in the sandbox itself; the case then runs as an ordinary user
    needs_root: bool
    filesystem: bool          # another file system is mounted at `other` in its directory
    module: str

    @property
    def id(self):
        return f"{self.operation}: {self.name}"


TIERS = ("service", "syscall", "real")  # real: the syscall tier with ids=real
CASES: list[Case] = []


def case(operation, name, *, inside=False, setup=None, needs_root=False, filesystem=False, every=None, service=None, syscall=None, real=None, ids=None):
    """Registers a case. `syscall` marks both identity modes of the syscall tier, `ids` what hidden ids (service and syscall) make impossible."""
    marks = {}
    if ids:
        marks |= {"service": ids, "syscall": ids}
    if every:
        marks |= {tier: every for tier in TIERS}
    if service:
        assert service.listed, f"{operation}: {name}: what the service tier cannot is told by `e2bfs status`"
        marks["service"] = service
    if syscall:
        marks |= {"syscall": syscall, "real": syscall}
    if real:
        marks["real"] = real
    assert all(isinstance(each, Cannot) and each.shows for each in marks.values()), f"{operation}: {name}: a mark says what differs"

    def register(function):
        made = Case(operation, name, function, marks, inside, setup, needs_root or filesystem, filesystem, function.__module__)
        assert made.id not in {each.id for each in CASES}, f"two cases named {made.id}"
        CASES.append(made)
        return function
    return register


class Fd(int):
    def __repr__(self):
        return "fd"


def shown(value):
    """A value as it stands in a transcript: short, and without what differs between two runs."""
    if isinstance(value, (bytes, bytearray, str)) and len(value) > 60:
        raw = os.fsencode(value) if isinstance(value, str) else bytes(value)
        return f"<{len(value)} {type(value).__name__} {hashlib.sha256(raw).hexdigest()[:12]}>"
    if isinstance(value, (list, tuple)) and len(value) > 40:
        return f"<{len(value)} entries {hashlib.sha256(repr(value).encode()).hexdigest()[:12]}>"
    return repr(value)


class Transcript:
    def __init__(self, inside, elsewhere):
        self.lines = []
        self.inside_top = inside        # the same directory, in the sandbox itself
        self.elsewhere = elsewhere      # a directory on another file system

    def inside(self, path):
        return os.path.join(self.inside_top, path)

    def placed(self, argument):
        """A path without what is different on the other side."""
        if isinstance(argument, os.PathLike):
            argument = os.fspath(argument)
        if isinstance(argument, str):
            return argument.replace(self.inside_top, "<inside>").replace(self.elsewhere, "<elsewhere>")
        return argument

    def __call__(self, call, *arguments, label=None, value=True, **more):
        """Calls, records, and returns what the call returned, None if it failed. value=False: only that it did not fail."""
        if label is None:
            words = [shown(self.placed(a)) for a in arguments] + [f"{name}={shown(self.placed(a))}" for name, a in more.items()]
            label = f"{getattr(call, '__name__', '?')}({', '.join(words)})"
        outcome = None
        try:
            outcome = call(*arguments, **more)
            said = shown(outcome) if value else "ok"
        except OSError as problem:
            said = errno.errorcode.get(problem.errno, str(problem.errno))
        except Exception as problem:
            said = type(problem).__name__
        self.lines.append((label, said))
        return outcome

    def note(self, label, value):
        self.lines.append((label, shown(value)))

    def open(self, path, flags, mode=0o644, **more):
        return self(lambda: Fd(os.open(path, flags, mode, **more)), label=f"open({shown(path)}, {flags:#o}, {mode:#o})")

    def file(self, path, content=b"content", mode=0o644):
        """Furniture: not recorded, and a failure ends the case."""
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        try:
            while content:
                content = content[os.write(fd, content):]
        finally:
            os.close(fd)

    def read(self, path):
        def read_file(path):
            with open(path, "rb", buffering=0) as file:
                return file.readall()
        return self(read_file, path)

    def stat(self, what, follow=False):
        def stat_of(what):
            status = os.fstat(what) if isinstance(what, int) else os.stat(what, follow_symlinks=follow)
            size = "" if stat.S_ISDIR(status.st_mode) else f" size {status.st_size}"
            return f"{kind(status.st_mode)} {stat.S_IMODE(status.st_mode):04o}{size}"
        return self(stat_of, what)

    def nlink(self, what):
        return self(lambda what: (os.fstat(what) if isinstance(what, int) else os.lstat(what)).st_nlink, what, label=f"nlink({shown(what)})")

    def child(self, function, *arguments):
        """Runs in another process; what it returns, pickled."""
        return in_child(lambda: function(*arguments), PATIENCE / 2)


def kind(mode):
    return {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket",
            stat.S_IFCHR: "character", stat.S_IFBLK: "block"}[stat.S_IFMT(mode)]


def in_child(function, timeout, uid=None):
    """What the function returns in a forked process; TimeoutError if it hangs, RuntimeError if it dies."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            faulthandler.disable()  # a SIGBUS may be what is asked for
            os.close(reader)
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            with os.fdopen(writer, "wb") as pipe:
                try:
                    pickle.dump(function(), pipe)
                except Exception:
                    pickle.dump(RuntimeError(traceback.format_exc()), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    end = time.monotonic() + timeout
    data = bytearray()
    try:
        while True:
            if not select.select([reader], [], [], max(0, end - time.monotonic()))[0]:
                os.kill(child, signal.SIGKILL)
                raise TimeoutError(f"hung for {timeout} s")
            part = os.read(reader, 1 << 20)
            if not part:
                break
            data += part
    finally:
        os.close(reader)
        os.waitpid(child, 0)
    if not data:
        raise RuntimeError("the process died")
    outcome = pickle.loads(bytes(data))
    if isinstance(outcome, RuntimeError):
        raise outcome
    return outcome


def play(each, directory, inside, elsewhere, uid=None):
    """The transcript of one run."""
    def run():
        transcript = Transcript(os.fspath(inside), os.fspath(elsewhere))
        try:
            if uid is None or uid == os.getuid():
                os.umask(0o022)
            os.chdir(directory)
            each.function(transcript)
        except OSError as problem:  # of the furniture
            where = traceback.extract_tb(problem.__traceback__)
            place = next((frame for frame in reversed(where) if frame.filename != __file__ and "/parity/" in frame.filename), where[-1])
            transcript.lines.append((f"furniture: {place.line}", errno.errorcode.get(problem.errno, str(problem.errno))))
        finally:
            os.chdir("/")
        return transcript.lines
    try:
        return in_child(run, PATIENCE, uid)
    except TimeoutError:
        return [("the case", f"hung for {PATIENCE} s")]


def snapshot(top):
    """{path: {what: value}} of everything below a directory, and of the directory; works at any depth."""
    found, identities = {}, {}

    def content_of(name, fd, status):
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(name, dir_fd=fd)
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
        digest, size = hashlib.sha256(), 0
        try:
            while part := os.read(file, 1 << 20):
                digest.update(part)
                size += len(part)
        finally:
            os.close(file)
        return f"{size} bytes {digest.hexdigest()[:12]}"

    def visit(path, name, fd):
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        entry = {"type": kind(status.st_mode), "nlink": status.st_nlink, "owner": f"{status.st_uid}:{status.st_gid}"}
        if entry["type"] != "link":
            entry["mode"] = f"{stat.S_IMODE(status.st_mode):04o}"
        # A time that a case set is far in the past or the future; the others are the clock's.
        if not 1_600_000_000 < status.st_mtime_ns // 1_000_000_000 < 4_000_000_000:
            entry["mtime"] = status.st_mtime_ns
        if entry["type"] in ("character", "block"):
            entry["device"] = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        if entry["type"] in ("file", "link"):
            entry["size"] = status.st_size
            try:
                entry["content"] = content_of(name, fd, status)
            except OSError as problem:
                entry["content"] = errno.errorcode.get(problem.errno)
            if status.st_nlink > 1:
                entry["same"] = identities.setdefault((status.st_dev, status.st_ino), path)
        found[path] = entry
        if entry["type"] in ("file", "directory"):
            try:
                inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
            except OSError as problem:
                entry["open"] = errno.errorcode.get(problem.errno)
                return
            try:
                try:
                    xattrs = {key: os.getxattr(inner, key)[:100] for key in os.listxattr(inner) if key.startswith("user.")}
                    if xattrs:
                        entry["xattrs"] = dict(sorted(xattrs.items()))
                except OSError as problem:
                    if problem.errno != errno.ENOTSUP:
                        entry["xattrs"] = errno.errorcode.get(problem.errno)
                if entry["type"] == "directory":
                    try:
                        names = sorted(os.listdir(inner))
                    except OSError as problem:  # as good as an open that fails
                        entry["open"] = errno.errorcode.get(problem.errno)
                        return
                    for below in names:
                        visit(below if path == "." else f"{path}/{below}", below, inner)
            finally:
                os.close(inner)

    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        visit(".", ".", fd)
    finally:
        os.close(fd)
    return found


def tree_differences(what, expected, got, ignore=frozenset()):
    lines = []
    for path in sorted(expected.keys() | got.keys()):
        if path not in got or path not in expected:
            lines.append(f"{what}: {path!r} is {'missing' if path not in got else 'there, not here'}")
            continue
        for field in sorted(expected[path].keys() | got[path].keys()):
            before, after = expected[path].get(field), got[path].get(field)
            if before != after and field not in ignore:
                lines.append(f"{what}: {path!r}: {field}: {shown(after)} in place of {shown(before)}")
    return lines


def line_differences(expected, got):
    lines = []
    for number in range(max(len(expected), len(got))):
        before = expected[number] if number < len(expected) else ("(the end)", "")
        after = got[number] if number < len(got) else ("(the end)", "")
        if before != after:
            at = before[0] if before[0] == after[0] else f"{after[0]} / {before[0]}"
            lines.append(f"{at}: {after[1]} in place of {before[1]}")
    return lines
