"""What the tests of -o writeback have in common: a sandbox that stands still, trees compared, mounts that are killed and made anew."""
import contextlib, os, pathlib, re, signal, stat, subprocess, threading

from conftest import BIN, eventually, is_dead, run

LONG_AGO = 1_600_000_000  # times before it were set by who made the file: they are compared
UNSENT = 8                # exit status: not everything is in the sandbox
CONFLICT = re.compile(rb"(.*)\.e2bfs-conflict-\d{8}-\d{6}-[A-Za-z0-9]{6,8}(-\d+)?", re.DOTALL)


def options_of(tier):
    """What is known stays so for a while, on a slow machine too, where nobody is told of changes."""
    return ["writeback", *(["attr_timeout=20", "negative_timeout=20"] if tier == "service" else [])]


@contextlib.contextmanager
def standing_still(double, at_most=30):
    """The sandbox answers nobody inside `with`; what this machine does in its directory, it finds afterwards. A call that waits for it fails the test."""
    process, woken = double.process, []

    def wake():
        woken.append(True)
        os.kill(process.pid, signal.SIGCONT)
    os.kill(process.pid, signal.SIGSTOP)
    watch = threading.Timer(at_most, wake)
    watch.start()
    try:
        yield
    finally:
        watch.cancel()
        if process.poll() is None:
            os.kill(process.pid, signal.SIGCONT)
    assert not woken, f"something waited for a sandbox that stands still, until it was woken after {at_most} s"


def look(top):
    """{relative path: (type, permissions, content or link's text, time of change if it is one that was set)} of all that is below, and of `top`."""
    top = os.fsencode(top)
    found = {}

    def visit(path, name):
        status = os.lstat(path)
        kind, permissions = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)
        when = status.st_mtime_ns if status.st_mtime < LONG_AGO else None
        if stat.S_ISLNK(status.st_mode):
            found[name] = (kind, 0, os.readlink(path), None)
        elif stat.S_ISDIR(status.st_mode):
            found[name] = (kind, permissions, b"", when)
            for each in os.listdir(path):
                visit(os.path.join(path, each), os.path.join(name, each) if name else each)
        else:
            with open(path, "rb", buffering=0) as file:
                found[name] = (kind, permissions, file.readall(), when)
            assert len(found[name][2]) == status.st_size, path
    visit(top, b"")
    return found


def brief(tree):
    """For a message."""
    return {os.fsdecode(name): (oct(kind)[2:], oct(permissions), content if len(content) < 40 else f"{len(content)} bytes {content[:20]}...", when)
            for name, (kind, permissions, content, when) in sorted(tree.items())}


def differences(expected, found):
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return {os.fsdecode(name): (*(list(brief({name: tree[name]}).values())[0] if name in tree else "nothing" for tree in (expected, found)),) for name in names}


def assert_same(expected, found, what):
    assert not (wrong := differences(expected, found)), f"{what}, (expected, found): {wrong}"


def conflict_copies(top):
    """{relative path of the original: [contents of its copies]}; all that is below."""
    copies = {}
    for name, (_, _, content, _) in look(top).items():
        if found := CONFLICT.fullmatch(name):
            copies.setdefault(os.fsdecode(found[1]), []).append(content)
    return copies


def flush(mount, *arguments, check=True, **more):
    return mount.e2bfs("flush", mount.path, *arguments, check=check, **more)


def assert_all_sent(mount):
    flush(mount)
    status = mount.status()
    assert (status["dirty_bytes"], status["dirty_files"], status["unsent"]) == (0, 0, []), status


def spool_files(double, *more):
    """What mounts keep of unsent data on this machine, whoever's it is."""
    places = [double.scratch / "state/e2bfs/spool", double.scratch / "state/e2bfs/unsent", *map(pathlib.Path, more)]
    return [pathlib.Path(top) / name for place in places for top, _, files in os.walk(place) for name in files if name != ".lock"]


def mount_with(mount, check=True, **environment):
    """Mounts it, as Mount.mount does, with more in the environment of its process."""
    done = run(BIN / "e2bfs", "mount", f"debug_sandbox_id:{mount.inside}", mount.path, "-o", ",".join(mount.options), check=check,
               env={**mount.double.environment(), "XDG_CACHE_HOME": str(mount.cache), **environment})
    mount.mounted = done.returncode == 0
    return done


def kill(mount, pid):
    os.kill(pid, signal.SIGKILL)
    clear_away(mount, pid)


def clear_away(mount, pid=None):
    """What is left of a mount that was killed."""
    if pid:
        eventually(lambda: is_dead(pid), "it is dead")
    subprocess.run(["fusermount3", "-uz", str(mount.path)], stderr=subprocess.DEVNULL, check=False)
    mount.mounted = False
