"""What a dead mount had accepted (-o writeback) is sent by the next one before it serves anybody: in order, once, whenever that one is killed too.

Notes are written by hand here, in the format of cache/unsent_record.h.
"""
import collections, fcntl, json, os, re, shutil, stat, subprocess, time, urllib.parse

import pytest

from conftest import BIN, TOOL_ENVIRONMENT, run
from tiers import tier, tiered  # noqa: F401 (fixtures)

CONFLICT = ".e2bfs-conflict-20251130-023709"
SINCE = 1764470229


def checksum(text, value=0xcbf29ce484222325):
    for byte in text:
        value = (value ^ byte) * 0x100000001b3 % (1 << 64)
    return value


def quoted(text):
    return urllib.parse.quote_from_bytes(os.fsencode(text), safe="/._~-").encode()


class Journal:
    """What one dead mount left."""

    def __init__(self, mount, name="left-behind-by-hand"):
        self.mount = mount
        self.state = mount.double.scratch / "state/e2bfs"
        self.directory = self.state / "unsent" / name
        self.user = mount.status()["user"]
        self.scope = "debug_sandbox_id at " + mount.double.environment()["E2B_SANDBOX_URL"]
        self.entries = 0

    def leave(self, path, *lines, content=None, accepted=True, make=None, permissions=0o644, target=None, owner=None, scope=None):
        self.entries += 1
        sandbox, user, root = owner or ("debug_sandbox_id", self.user, str(self.mount.inside))
        body = [b"id by%d" % self.entries + os.path.basename(self.directory)[-2:].encode(), b"sandbox " + quoted(sandbox), b"scope " + quoted(self.scope if scope is None else scope), b"user " + quoted(user),
                b"root " + quoted(root), b"path " + quoted(path), b"since %d" % SINCE, b"order %d" % (SINCE * 10**9 + self.entries)]
        if accepted:
            body.append(b"accepted")
        if make:
            body += [b"make " + make.encode(), b"make_permissions %d" % permissions]
        if make == "file":
            body += [b"fresh"]
        if target is not None:
            body.append(b"make_target " + quoted(target))
        if content:
            body += [b"content", b"range 0 %d" % len(content)] if make else [b"content"]
        body = b"".join(line + b"\n" for line in [*body, *(line.encode() for line in lines)])
        head = b"e2bfs-unsent 1 log  %020d %010d " % (1, len(body))
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = self.directory / f"unsent-by{self.entries}"
        if content:
            place.write_bytes(content)
        place.with_name(place.name + ".note").write_bytes(head + b"%016x\n" % checksum(body, checksum(head)) + body)
        return place

    def base(self, path):
        """As `leave` takes it, of what is in the sandbox."""
        found = os.stat(self.mount.inside / path)
        return [f"base_size {found.st_size}", f"base_mtime {found.st_mtime_ns // 10**9} {found.st_mtime_ns % 10**9}", "base_permissions 420"]

    def unsent(self):
        return json.loads(recover(self.mount.double, "--json").stdout)["unsent"]


def recover(double, *arguments, check=True):
    return run(BIN / "e2bfs", "recover", *arguments, env=double.environment(), check=check)


def mount_again(mount, check=True, options=(), **environment):
    done = run(BIN / "e2bfs", "mount", f"debug_sandbox_id:{mount.inside}", mount.path, "-o", ",".join([*mount.options, *options]),
               env={**mount.double.environment(), "XDG_CACHE_HOME": str(mount.cache), **environment}, check=check)
    mount.mounted = done.returncode == 0
    return done


def logged(mount):
    return mount.log.read_text() if mount.log.exists() else ""


@pytest.fixture
def journal(tiered):
    mount = tiered.mount()
    made = Journal(mount)
    mount.umount()
    shutil.rmtree(made.state / "unsent", ignore_errors=True)
    return made


def leave_a_tree(journal):
    """Some of everything: with what is there already, what all of it makes."""
    inside = journal.mount.inside
    shutil.rmtree(inside)
    (inside / "there").mkdir(parents=True)
    (inside / "there/changed").write_bytes(b"0123456789")
    (inside / "there/log").write_bytes(b"one\n")
    (inside / "there/other").write_bytes(b"theirs")
    (inside / "taken").write_bytes(b"a file")
    log = ["append 4 4", *journal.base("there/log")]
    journal.leave("d/e/f", "implied_mtime 1600000000 7", content=b"content of f", make="file")
    journal.leave("d/e", "permissions 365", "mtime 1500000001 0", make="directory", permissions=0o755)
    journal.leave("d/link", make="symlink", permissions=0o777, target="e/f")
    journal.leave("d", "mtime 1500000002 0", make="directory", permissions=0o755)
    journal.leave("d/empty", make="file")
    journal.leave("there/large", "permissions 256", content=b"n" * 300_000, make="file")
    journal.leave("there/changed", "range 3 3", *journal.base("there/changed"), content=b"\0\0\0xyz")
    journal.leave("there/log", *log, content=b"\0\0\0\0two\n")
    journal.leave("there/other", content=b"ours", make="file")
    journal.leave("taken", make="directory", permissions=0o700)
    journal.leave("taken/g", content=b"goes along", make="file")


ENTRIES = 11
TREE = {
    "d": (0o755, 1500000002), "d/e": (0o555, 1500000001), "d/e/f": (0o644, b"content of f"), "d/link": "e/f", "d/empty": (0o644, b""),
    "there": (0o755, None), "there/large": (0o400, b"n" * 300_000), "there/changed": (0o644, b"012xyz6789"), "there/log": (0o644, b"one\ntwo\n"),
    "there/other": (0o644, b"theirs"), "there/other" + CONFLICT: (0o644, b"ours"), "taken": (0o644, b"a file"),
    "taken" + CONFLICT: (0o700, None), "taken" + CONFLICT + "/g": (0o644, b"goes along"),
}


def found_tree(top):
    found = {}
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                what = os.readlink(path)
            elif stat.S_ISDIR(status.st_mode):
                what = (stat.S_IMODE(status.st_mode), int(status.st_mtime) if status.st_mtime < SINCE else None)
            else:
                what = (stat.S_IMODE(status.st_mode), open(path, "rb").read())
            found[re.sub(CONFLICT + "-[A-Za-z0-9]+", CONFLICT, os.path.relpath(path, top))] = what
    return found


def test_what_was_accepted_is_there_when_the_mount_is(journal):
    leave_a_tree(journal)
    kinds = collections.Counter(entry["kind"] for entry in journal.unsent())
    assert kinds == {"file": 7, "directory": 3, "symlink": 1}, kinds
    mount_again(journal.mount)
    assert found_tree(journal.mount.inside) == TREE
    assert (journal.mount.path / "d/e/f").read_bytes() == b"content of f"
    assert os.stat(journal.mount.inside / "d/e/f").st_mtime_ns == 1600000000 * 10**9 + 7
    assert journal.unsent() == [] and not journal.directory.exists()
    said = logged(journal.mount)
    assert said.count("conflict:") == 2 and "put aside" not in said, said


def test_a_replay_that_is_killed_at_any_step_goes_on_where_it_was(journal, tmp_path):
    leave_a_tree(journal)
    trace = tmp_path / "trace"
    mount_again(journal.mount, E2BFS_FAULT_LOG=str(trace))
    journal.mount.umount()
    passed = collections.Counter(line for line in trace.read_text().splitlines() if line.startswith("replay."))
    assert len(passed) > 15, passed
    whole = journal.mount.double.tier == "syscall"
    for name, count in passed.items():
        for nth in sorted({1, count, *(range(1, count + 1) if whole else [])}):
            leave_a_tree(journal)
            killed = mount_again(journal.mount, check=False, E2BFS_KILL_AT=f"{name}:{nth}")
            if killed.returncode == 0:  # several threads: it was passed less often this time
                journal.mount.umount()
            else:
                assert "signal 9" in killed.stderr, killed.stderr
                mount_again(journal.mount)
                journal.mount.umount()
            assert found_tree(journal.mount.inside) == TREE, (name, nth)
            assert journal.unsent() == [] and os.listdir(journal.state / "unsent") == [], (name, nth)


def test_a_mount_that_is_read_only_sends_nothing(journal):
    journal.leave("f", content=b"content", make="file")
    mount_again(journal.mount, options=["ro"])
    assert os.listdir(journal.mount.inside) == [] and len(journal.unsent()) == 1
    assert "read-only" in logged(journal.mount)
    journal.mount.umount()
    mount_again(journal.mount)
    assert (journal.mount.inside / "f").read_bytes() == b"content" and journal.unsent() == []


def test_what_fails_is_named_and_stays_and_the_mount_starts(journal):
    journal.leave("gone/f", content=b"content", make="file")
    journal.leave("g", content=b"content", make="file")
    journal.leave("not accepted", content=b"content", make="file", accepted=False)
    journal.leave("not ours", content=b"content", make="file", owner=("debug_sandbox_id", journal.user, "/elsewhere"))
    journal.leave("another envd's", content=b"content", make="file", scope="debug_sandbox_id at http://127.0.0.1:1")
    journal.leave("whose is it", content=b"content", make="file", scope="")  # by its id alone
    torn = journal.leave("torn", content=b"content", make="file")
    os.truncate(f"{torn}.note", 100)
    mount_again(journal.mount)
    assert os.listdir(journal.mount.path) == ["g"] and os.listdir(journal.mount.inside) == ["g"]
    assert sorted(entry.get("path", "torn").rsplit("/", 1)[-1] for entry in journal.unsent()) == ["another envd's", "f", "not accepted", "not ours", "torn", "whose is it"]
    said = logged(journal.mount)
    assert re.search(r"gone/f: accepted by an earlier mount, and not sent: .*directory is not there", said), said
    assert "of 1 file(s) that earlier mounts left no record can be read" in said and "see e2bfs recover" in said
    assert "mounts of another directory or user of this sandbox accepted 1 entry that is not sent" in said and "in 3 files of this sandbox could not be sent" in said, said
    (journal.mount.inside / "gone").mkdir()
    journal.mount.umount()
    mount_again(journal.mount)
    assert (journal.mount.inside / "gone/f").read_bytes() == b"content" and len(journal.unsent()) == 5


def test_two_mounts_at_once_send_once(journal):
    """And both have it when they are there."""
    for i in range(100):
        journal.leave(f"f{i}", content=b"data", make="file")
    (journal.mount.inside / "log").write_bytes(b"one\n")
    journal.leave("log", "append 4 4", *journal.base("log"), content=b"\0\0\0\0two\n")
    mount = journal.mount
    other = mount.double.scratch / "mnt-other"
    other.mkdir()
    both = [subprocess.Popen([BIN / "e2bfs", "mount", f"debug_sandbox_id:{mount.inside}", place, "-o", ",".join(mount.options)], stderr=subprocess.PIPE, text=True,
                             env={**TOOL_ENVIRONMENT, **mount.double.environment(), "XDG_CACHE_HOME": str(mount.cache)}) for place in (mount.path, other)]
    for process in both:
        assert process.wait(120) == 0, process.stderr.read()
    mount.mounted = True
    names = sorted([f"f{i}" for i in range(100)] + ["log"])
    try:
        assert sorted(os.listdir(mount.path)) == sorted(os.listdir(other)) == names
        assert (other / "log").read_bytes() == b"one\ntwo\n"
    finally:
        run(BIN / "e2bfs", "umount", other, env=mount.double.environment())
    assert sorted(os.listdir(mount.inside)) == names and journal.unsent() == []


def test_ctrl_c_ends_it_and_the_rest_stays(journal):
    for i in range(200):
        journal.leave(f"f{i}", content=b"data", make="file")
    mount = journal.mount
    mount.double.fault(match="", action="delay", delay_ms=300, count=-1)
    process = subprocess.Popen([BIN / "e2bfs", "mount", f"debug_sandbox_id:{mount.inside}", mount.path, "-o", ",".join(mount.options)], stderr=subprocess.PIPE, text=True,
                               env={**TOOL_ENVIRONMENT, **mount.double.environment()})
    deadline = time.monotonic() + 60
    while not os.listdir(mount.inside) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    assert process.wait(20) == 130
    assert 0 < len(journal.unsent()) <= 200
    mount.double.clear_faults()
    mount_again(mount)
    assert len(os.listdir(mount.inside)) == 200 and journal.unsent() == []


def test_what_takes_long_is_said(journal):
    journal.leave("f", content=b"content", make="file")
    mount = journal.mount
    with open(journal.state / "recover.lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = subprocess.Popen([BIN / "e2bfs", "mount", f"debug_sandbox_id:{mount.inside}", mount.path, "-o", ",".join(mount.options)], stderr=subprocess.PIPE, text=True,
                                   env={**TOOL_ENVIRONMENT, **mount.double.environment()})
        said = process.stderr.readline()
        assert re.search(r"^e2bfs mount: sending what earlier mounts accepted, .* 0 of 1 entries so far$", said), said
    assert process.wait(60) == 0
    mount.mounted = True
    assert "waiting for another e2bfs" in logged(mount) and journal.unsent() == [] and os.listdir(mount.path) == ["f"]


# --- e2bfs recover with directories and links

def test_recover_sends_in_the_same_order(journal):
    leave_a_tree(journal)
    done = recover(journal.mount.double, "--send", "--json", check=False)
    assert done.returncode == 10, done.stderr  # some of it lies beside what others made
    outcomes = collections.Counter(each["outcome"] for each in json.loads(done.stdout)["results"])
    assert outcomes == {"sent": ENTRIES - 2, "conflict_copy": 2}, done.stdout
    assert found_tree(journal.mount.inside) == TREE and journal.unsent() == []


def test_recover_exports_directories_and_links(journal):
    leave_a_tree(journal)
    target = journal.mount.double.scratch / "export"
    for _ in range(3):  # never over what is there, however often
        exported = json.loads(recover(journal.mount.double, "--export", target, "--json").stdout)["exported"]
        assert len(exported) == ENTRIES and all(each["exported"] for each in exported), exported
    top = target / "debug_sandbox_id" / str(journal.mount.inside).lstrip("/")
    assert (top / "d/e").is_dir() and (top / "d/e/f").read_bytes() == b"content of f" and os.readlink(top / "d/link") == "e/f"
    assert (top / "d/empty").read_bytes() == b"" and len(list((top / "d/e").iterdir())) == 3
    text = (target / "E2BFS-EXPORT.txt").read_text()
    assert "a link to e/f" in text and "a new directory" in text and "a new file" in text
    assert len(journal.unsent()) == ENTRIES
    recover(journal.mount.double, "--drop", "--all", "--yes")
    assert journal.unsent() == []


def test_recover_asks_before_it_keeps_others_waiting(journal):
    """And what a mount sent meanwhile is not dropped."""
    journal.leave("f", content=b"content", make="file")
    lock = journal.state / "recover.lock"
    person, terminal = os.openpty()
    process = subprocess.Popen([BIN / "e2bfs", "recover", "--drop", "--all"], stdin=terminal, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               env={**TOOL_ENVIRONMENT, **journal.mount.double.environment()})
    said = b""
    while b"[y/N] " not in said:
        said += os.read(process.stderr.fileno(), 1000)
    with open(lock, "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    mount_again(journal.mount)
    os.write(person, b"y\n")
    assert process.wait(20) == 0, process.stderr.read()
    assert (journal.mount.inside / "f").read_bytes() == b"content" and journal.unsent() == []
    for each in (person, terminal, process.stderr):
        os.close(each) if isinstance(each, int) else each.close()


def test_recover_sends_a_part_with_the_directories_above_it(journal):
    shutil.rmtree(journal.mount.inside)
    journal.mount.inside.mkdir()
    journal.leave("d", "permissions 365", "mtime 1500000002 0", make="directory", permissions=0o755)
    journal.leave("d/f", content=b"f", make="file")
    journal.leave("d/g", content=b"g", make="file")
    ids = {os.path.basename(entry["path"]): entry["id"] for entry in journal.unsent()}
    alone = recover(journal.mount.double, "--send", ids["d"], check=False)
    assert alone.returncode == 8 and "waits for what goes into it: d/" in alone.stderr, alone.stderr
    recover(journal.mount.double, "--send", ids["f"])
    assert len(journal.unsent()) == 2
    recover(journal.mount.double, "--send", ids["g"])
    assert journal.unsent() == []
    assert found_tree(journal.mount.inside) == {"d": (0o555, 1500000002), "d/f": (0o644, b"f"), "d/g": (0o644, b"g")}
