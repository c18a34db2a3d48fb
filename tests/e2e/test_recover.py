"""`e2bfs recover`: what could not be sent is listed, exported, sent late, and dropped only when told. Real mounts, real kills."""
import contextlib, json, os, re, signal, stat, subprocess, tempfile, time, urllib.parse

import pytest

from conftest import BIN, TOOL_ENVIRONMENT, code, eventually, is_dead, run
from tiers import tier, tiered  # noqa: F401 (fixtures)

QUICK = ["connect_timeout=2", "head_timeout=2", "idle_timeout=2", "operation_timeout=5", "transfer_timeout=5", "drain_timeout=1"]
UNSENT, CONFLICT = 8, 10


def recover(double, *arguments, check=True, **more):
    return run(BIN / "e2bfs", "recover", *arguments, env=double.environment(), check=check, **more)


def listed(double, *arguments):
    return json.loads(recover(double, *arguments, "--json").stdout)["unsent"]


def path_of(entry):
    return urllib.parse.unquote_to_bytes(entry["path_bytes"])


def mounted(double, **more):
    """Its process is asked for now: no program may be started while a file is open here, since its copy of the descriptor is closed, which sends."""
    mount = double.mount(**more)
    mount.pid = mount.status()["pid"]
    return mount


def kill_mount(mount):
    """kill -9, and the dead mount cleared away."""
    pid = mount.pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: is_dead(pid), "it is dead")
    subprocess.run(["fusermount3", "-uz", str(mount.path)], check=False)
    mount.mounted = False


def leave_unsent(mount, name, data, offset=0, flags=os.O_WRONLY | os.O_CREAT, then_kill=True):
    """Written, and neither closed nor sent when the mount is killed."""
    descriptor = os.open(os.path.join(os.fsencode(mount.path), os.fsencode(name)), flags, 0o640)
    os.pwrite(descriptor, data, offset)
    if then_kill:
        kill_mount(mount)
        with contextlib.suppress(OSError):
            os.close(descriptor)
    return descriptor


def wait_seen(mount, name, size):
    eventually(lambda: code(lambda: os.stat(mount.path / name)) == "ok" and os.stat(mount.path / name).st_size == size, f"{name} is seen")


def assert_private(double):
    """Nobody but its owner may look at it."""
    for top, directories, files in os.walk(double.scratch / "state"):
        for name in directories + files:
            found = os.lstat(os.path.join(top, name))
            assert found.st_mode & 0o077 == 0, (top, name, oct(found.st_mode))


NAMES = [b"plain", b"new\nline", b"back\\slash", b"sp ace %41", b"\xff\xfe not utf-8", b"x.note", "\u00e9\u4e2d".encode(), b"-rf"]


def test_after_kill_9_it_is_listed_and_sent(tiered):
    """New files and a changed one, under odd names."""
    mount = mounted(tiered)
    (mount.inside / "old").write_bytes(b"0123456789")
    wait_seen(mount, "old", 10)
    names = [name for name in NAMES if tiered.tier == "syscall" or b"\xff" not in name]
    held = [leave_unsent(mount, name, b"content of " + name, then_kill=False) for name in names]
    held.append(leave_unsent(mount, "old", b"xyz", 3, os.O_WRONLY, then_kill=False))
    kill_mount(mount)
    for descriptor in held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    entries = listed(tiered)
    assert_private(tiered)
    inside = os.fsencode(mount.inside) + b"/"
    assert sorted(path_of(entry) for entry in entries) == sorted(inside + name for name in [*names, b"old"])
    assert all(entry["can_be_sent"] and entry["sandbox"] == "debug_sandbox_id" and abs(time.time() - entry["since"]) < 600 for entry in entries), entries
    (changed,) = [entry for entry in entries if entry["path"].endswith("/old")]
    assert changed["ranges"] == [{"offset": 3, "length": 3}] and changed["bytes"] == 3 and not changed["made_by_mount"]
    text = recover(tiered).stdout
    assert len(text.splitlines()) == len(entries) + 1 and "new\\012line" in text and "back\\134slash" in text, text
    # The next mount says so, and sends nothing.
    mount.mounted = True
    said = mount.e2bfs("mount", f"debug_sandbox_id:{mount.inside}", mount.path, "-o", ",".join(mount.options)).stderr
    logged = mount.log.read_text() if mount.log.exists() else ""
    assert re.search(rf"in {len(entries)} files of this sandbox .* see e2bfs recover", said + logged), said + logged
    assert (mount.inside / "old").read_bytes() == b"0123456789" and (mount.inside / "plain").read_bytes() == b""
    done = recover(tiered, "--send")
    assert done.stdout.count(": sent") == len(entries), done.stdout + done.stderr
    assert (mount.inside / "old").read_bytes() == b"012xyz6789"
    for name in names:
        path = os.path.join(inside, name)
        assert open(path, "rb").read() == b"content of " + name
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    assert sorted(os.listdir(inside)) == sorted([*names, b"old"])
    assert listed(tiered) == [] and recover(tiered).stdout == "Nothing is put aside.\n"
    assert os.listdir(tiered.scratch / "state/e2bfs/unsent") == []


def test_a_sandbox_that_went_away_gets_it_when_it_is_back(tiered):
    mount = mounted(tiered, options=QUICK)
    (mount.inside / "f").write_bytes(b"old")
    wait_seen(mount, "f", 3)
    descriptor = os.open(mount.path / "f", os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, b"precious")
    tiered.kill()
    with pytest.raises(OSError):
        os.close(descriptor)
    mount.umount("--timeout", "1", "--force")
    (entry,) = listed(tiered)
    assert entry["bytes"] == 8 and entry["cut_to"] == 0 and entry["size"] == 8
    assert_private(tiered)
    # It cannot be reached: nothing is lost, and the exit status says which trouble it is.
    refused = recover(tiered, "--send", "-o", "connect_timeout=2", check=False)
    assert refused.returncode == 5 and "not sent" in refused.stderr, refused.stderr
    assert len(listed(tiered)) == 1
    tiered.start()
    assert (mount.inside / "f").read_bytes() == b"old"
    done = json.loads(recover(tiered, "--send", entry["id"], "--json").stdout)["results"]
    assert [each["outcome"] for each in done] == ["sent"], done
    assert (mount.inside / "f").read_bytes() == b"precious"
    assert listed(tiered) == []


def test_what_changed_meanwhile_is_not_overwritten(tiered):
    mount = mounted(tiered)
    (mount.inside / "f").write_bytes(b"0123456789")
    wait_seen(mount, "f", 10)
    leave_unsent(mount, "f", b"xyz", 3, os.O_WRONLY)
    (mount.inside / "f").write_bytes(b"abcdefghij")
    done = recover(tiered, "--send", check=False)
    assert done.returncode == CONFLICT and "conflict" in done.stderr and done.stdout == "", done.stderr
    assert (mount.inside / "f").read_bytes() == b"abcdefghij"
    (copy,) = [name for name in os.listdir(mount.inside) if name != "f"]
    assert re.fullmatch(r"f\.e2bfs-conflict-\d{8}-\d{6}-[A-Za-z0-9]{6,8}", copy) and copy in done.stderr
    assert (mount.inside / copy).read_bytes() == b"\0\0\0xyz"
    assert listed(tiered) == []


def test_export_and_drop(tiered):
    mount = mounted(tiered)
    (mount.inside / "d").mkdir()
    eventually(lambda: (mount.path / "d").exists(), "it is seen")
    held = [leave_unsent(mount, "d/sparse", b"end", 50 << 20, then_kill=False), leave_unsent(mount, "f", b"data", then_kill=False)]
    kill_mount(mount)
    for descriptor in held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    target = tiered.scratch / "export"
    recover(tiered, "--export", target)
    top = target / "debug_sandbox_id" / str(mount.inside).lstrip("/")
    assert (top / "f").read_bytes() == b"data"
    found = os.stat(top / "d/sparse")
    assert found.st_size == (50 << 20) + 3 and found.st_blocks * 512 < 1 << 20, found
    assert "its ranges:          0+4" in (target / "E2BFS-EXPORT.txt").read_text()
    for path in [target, *target.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    entries = {os.path.basename(entry["path"]): entry for entry in listed(tiered)}
    recover(tiered, "--export", target, entries["f"]["id"])  # again: beside it
    assert (top / f"f.e2bfs-{entries['f']['id']}").read_bytes() == b"data" and (top / "f").read_bytes() == b"data"
    # Only when told, and which.
    for arguments in (["--drop"], ["--drop", entries["f"]["id"]], ["--drop", "--all"], ["--drop", "nothing", "--yes"], ["--send", "--drop"], ["--yes"], ["--to", "x"]):
        assert recover(tiered, *arguments, check=False).returncode == 2, arguments
    assert len(listed(tiered)) == 2
    recover(tiered, "--drop", entries["f"]["id"], "--yes")
    assert [os.path.basename(entry["path"]) for entry in listed(tiered)] == ["sparse"]
    recover(tiered, "--drop", "--all", "--yes")
    assert listed(tiered) == []
    assert [name for _, _, files in os.walk(tiered.scratch / "state/e2bfs/unsent") for name in files] == []


def test_drop_asks_on_a_terminal(tiered):
    if tiered.tier != "syscall":
        pytest.skip("nothing of it is the tier's")
    mount = mounted(tiered)
    leave_unsent(mount, "f", b"data")
    (entry,) = listed(tiered)
    for answer, left in (b"n\n", 1), (b"\n", 1), (b"y\n", 0):
        ours, theirs = os.openpty()
        process = subprocess.Popen([BIN / "e2bfs", "recover", "--drop", entry["id"]], stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   env={**TOOL_ENVIRONMENT, **tiered.environment()})
        os.write(ours, answer)
        errors = process.communicate(timeout=60)[1]
        os.close(ours), os.close(theirs)
        assert b"for good?" in errors and process.returncode == (130 if left else 0), errors
        assert len(listed(tiered)) == left


def test_a_living_mount_is_left_alone(tiered):
    mount = mounted(tiered)
    holder = subprocess.Popen(["python3", "-c", "import os, sys; f = open(sys.argv[1], 'wb', 0); f.write(b'data'); print('written', flush=True); sys.stdin.read()",
                               str(mount.path / "f")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"written\n"
    assert listed(tiered) == []
    recover(tiered, "--send")
    recover(tiered, "--drop", "--all", "--yes")
    assert (mount.inside / "f").read_bytes() == b""
    holder.communicate(timeout=60)
    assert (mount.inside / "f").read_bytes() == b"data"


def test_a_spool_on_another_file_system(tiered):
    """It is copied to where the others are, holes included, and nothing of it stays."""
    here = os.stat(tiered.scratch).st_dev
    other = next((top for top in ("/dev/shm", "/var/tmp", "/run") if os.access(top, os.W_OK) and os.stat(top).st_dev != here), None)
    if other is None:
        pytest.skip("there is only one file system here")
    with tempfile.TemporaryDirectory(dir=other) as top:
        spool = os.path.join(top, "spool")
        mount = mounted(tiered, options=[f"spool_dir={spool}"])
        leave_unsent(mount, "far", b"content", 100 << 20)
        (entry,) = listed(tiered, "-o", f"spool_dir={spool}")
        assert path_of(entry) == os.fsencode(mount.inside) + b"/far" and os.listdir(spool) == []
        assert_private(tiered)
        kept = [path for path in (tiered.scratch / "state").rglob("unsent-*") if path.suffix != ".note"]
        assert [(path.stat().st_size, path.stat().st_blocks < 2_000) for path in kept] == [((100 << 20) + 7, True)]
        recover(tiered, "--send")
        assert (mount.inside / "far").read_bytes() == bytes(100 << 20) + b"content" and listed(tiered) == []


def test_two_at_once_send_once(tiered):
    mount = mounted(tiered)
    (mount.inside / "log").write_bytes(b"one\n")
    wait_seen(mount, "log", 4)
    held = [leave_unsent(mount, f"f{i}", b"data", then_kill=False) for i in range(20)]
    log = os.open(mount.path / "log", os.O_WRONLY | os.O_APPEND)
    os.write(log, b"two\n")
    kill_mount(mount)
    for descriptor in [*held, log]:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    assert len(listed(tiered)) == 21
    tiered.fault(match="", action="delay", delay_ms=500, count=-1)  # both would have read the list before anything is sent
    both = [subprocess.Popen([BIN / "e2bfs", "recover", "--send", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env={**TOOL_ENVIRONMENT, **tiered.environment()}) for _ in range(2)]
    results = []
    for process in both:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        results += json.loads(output)["results"]
    tiered.clear_faults()
    assert [each["outcome"] for each in results] == ["sent"] * 21, results
    assert (mount.inside / "log").read_bytes() == b"one\ntwo\n"
    assert sorted(os.listdir(mount.inside)) == sorted([f"f{i}" for i in range(20)] + ["log"])


WRITER = r"""
import os, sys
top, size = sys.argv[1], int(sys.argv[2])
for i in range(100000):
    try:
        fd = os.open(f"{top}/f{i}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        for part in range(3):
            os.write(fd, (b"%06d" % i) * (size // 3))
        print("closing", i, flush=True)
        os.close(fd)
        print("closed", i, flush=True)
    except OSError as problem:
        print("error", i, problem.errno, flush=True)
        break
"""


@pytest.mark.parametrize("size", [30, 60_000], ids=["small", "large"])
@pytest.mark.parametrize("after", [1, 5, 23])
def test_a_kill_at_any_time_loses_nothing(tiered, after, size):
    """What close accepted is in the sandbox; what it did not is there or in the list, and then there: as a whole, and once."""
    mount = mounted(tiered)
    writer = subprocess.Popen(["python3", "-c", WRITER, str(mount.path), str(size)], stdout=subprocess.PIPE, text=True)
    closed, said = set(), []
    for line in writer.stdout:
        said.append(line.split())
        if said[-1][0] == "closed":
            closed.add(int(said[-1][1]))
        if len(closed) == after and said[-1][0] == "closing":
            os.kill(mount.pid, signal.SIGKILL)
    writer.stdout.close()
    writer.wait()
    assert said[-1][0] == "error", said[-3:]
    eventually(lambda: is_dead(mount.pid), "it is dead")
    subprocess.run(["fusermount3", "-uz", str(mount.path)], check=False)
    mount.mounted = False

    def content(i):
        return (b"%06d" % i) * (size // 3) * 3

    for i in closed:
        assert (mount.inside / f"f{i}").read_bytes() == content(i)
    # The one that was open: all writes had returned if it said so.
    last = int(said[-1][1])
    entries = listed(tiered)
    waiting = {int(re.fullmatch(r".*/f(\d+)", entry["path"])[1]) for entry in entries}
    assert waiting <= {last, last - 1}, (waiting, last)
    if entries:
        done = json.loads(recover(tiered, "--send", "--json").stdout)["results"]
        assert all(each["outcome"] in ("sent", "was_there") for each in done), done
    there = {int(name[1:]) for name in os.listdir(mount.inside)}
    assert all(name.startswith("f") for name in os.listdir(mount.inside)) and closed <= there
    closing = {int(number) for word, number, *_ in said if word == "closing"}
    for i in there:
        if i in closing:
            assert (mount.inside / f"f{i}").read_bytes() == content(i), i
        else:  # killed between its writes: what was written before
            assert content(i).startswith((mount.inside / f"f{i}").read_bytes()), i
    assert closing <= there
    assert listed(tiered) == []


def test_a_recover_that_is_killed_goes_on_where_it_was(tiered):
    """However often: everything arrives, nothing twice, and nothing lies beside."""
    mount = mounted(tiered)
    (mount.inside / "log").write_bytes(b"one\n")
    (mount.inside / "changed").write_bytes(b"0" * 100_000)
    wait_seen(mount, "log", 4), wait_seen(mount, "changed", 100_000)
    contents = {f"f{i}": b"%06d" % i * (5 if i % 3 else 40_000) for i in range(120)}
    held = [leave_unsent(mount, name, data, then_kill=False) for name, data in contents.items()]
    held.append(leave_unsent(mount, "changed", b"1" * 70_000, 10_000, os.O_WRONLY, then_kill=False))
    held.append(os.open(mount.path / "log", os.O_WRONLY | os.O_APPEND))
    os.write(held[-1], b"two\n" * 10_000)
    kill_mount(mount)
    for descriptor in held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    killed = 0
    for patience in range(100):
        process = subprocess.Popen([BIN / "e2bfs", "recover", "--send"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**TOOL_ENVIRONMENT, **tiered.environment()})
        for _ in range(1 + patience % 4):  # so many are told, and the next one is on its way
            process.stdout.readline()
        time.sleep(patience % 7 * 0.002)
        process.kill()
        errors = process.communicate()[1]
        assert ": conflict:" not in errors and ": not sent:" not in errors, errors
        if process.returncode == 0:
            break
        killed += 1
    assert killed > 5 and listed(tiered) == []
    assert sorted(os.listdir(mount.inside)) == sorted([*contents, "log", "changed"])
    for name, data in contents.items():
        assert (mount.inside / name).read_bytes() == data, name
    assert (mount.inside / "changed").read_bytes() == b"0" * 10_000 + b"1" * 70_000 + b"0" * 20_000
    assert (mount.inside / "log").read_bytes() == b"one\n" + b"two\n" * 10_000


def test_what_was_refused_lies_beside(tiered):
    """Written by who may no longer write when it is sent."""
    if os.geteuid() == 0:
        pytest.skip("root may write all the same")
    mount = mounted(tiered)
    (mount.inside / "f").write_bytes(b"0123456789")
    wait_seen(mount, "f", 10)
    leave_unsent(mount, "f", b"xyz", 3, os.O_WRONLY)
    os.chmod(mount.inside / "f", 0o400)
    assert recover(tiered, "--send", check=False).returncode == CONFLICT
    (copy,) = [name for name in os.listdir(mount.inside) if name != "f"]
    assert (mount.inside / copy).read_bytes() == b"012xyz6789" and (mount.inside / "f").read_bytes() == b"0123456789"


def test_a_record_that_is_torn_is_listed_and_exported(tiered):
    mount = mounted(tiered)
    leave_unsent(mount, "f", b"data")
    (entry,) = listed(tiered)
    note = entry["content"] + ".note"
    os.truncate(note, os.stat(note).st_size // 2 + 20)
    (entry,) = listed(tiered)
    assert not entry["can_be_sent"] and "torn" in entry["why"]
    refused = recover(tiered, "--send", check=False)
    assert refused.returncode == UNSENT and "torn" in refused.stderr, refused.stderr
    recover(tiered, "--export", tiered.scratch / "export")
    assert (tiered.scratch / "export/unknown" / entry["id"]).read_bytes() == b"data"
    recover(tiered, "--drop", entry["id"], "--yes")
    assert listed(tiered) == []
