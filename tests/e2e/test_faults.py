"""What a program sees when the other side lies, stalls, dies or answers late. Faults are placed by count and position.

On both tiers, unless a test is about the requests of one: large content goes by the files API in both, everything else on the syscall
tier by the server's streams, whose loss is test_channel.py's matter.
"""
import errno, json, os, re, signal, subprocess, sys, threading, time

import pytest

from conftest import BIN, PATIENCE, TOOL_ENVIRONMENT, code, eventually, is_mounted, run
from tiers import tier, tiered  # noqa: F401 (fixtures)

KILL_TIMEOUTS = ["idle_timeout=3", "head_timeout=3"]
READ, UPLOAD = "GET /files", "POST /files"


def seen(mount, *names):
    """What was made inside is told of within moments, not at once: a file that was just created may be known as empty."""
    def known(name):
        try:
            return os.stat(mount.path / name).st_size == os.stat(mount.inside / name).st_size
        except FileNotFoundError:
            return False
    for name in names:
        eventually(lambda: known(name), f"{name} is seen through the mount as it is inside")


@pytest.fixture
def service(faulty):
    """Its mounts are on the service tier: for faults in the requests that only that one makes."""
    plain = faulty.mount
    faulty.mount = lambda name="m", options=(), inside=None: plain(name, ["tier=service", *options], inside)
    return faulty


@pytest.mark.parametrize("at_byte", [-1, 0, 1, 65_536, 1_000_000])
@pytest.mark.parametrize("action", ["reset", "close"])
def test_a_read_goes_on_after_its_connection_died(tiered, action, at_byte):
    mount = tiered.mount()
    content = os.urandom(3_000_000)
    (mount.inside / "f").write_bytes(content)
    seen(mount, "f")
    tiered.fault(match=READ, action=action, at_byte=at_byte, count=2)
    assert (mount.path / "f").read_bytes() == content


def test_a_body_that_ends_early_is_never_taken_for_complete(tiered):
    mount = tiered.mount()
    content = os.urandom(500_000)
    (mount.inside / "f").write_bytes(content)
    seen(mount, "f")
    tiered.fault(match=READ, action="cut", at_byte=100_000, count=1)
    assert (mount.path / "f").read_bytes() == content
    (mount.inside / "g").write_bytes(content)
    seen(mount, "g")
    tiered.fault(match=READ, action="cut", at_byte=0, count=-1)
    found = code(lambda: (mount.path / "g").read_bytes())
    assert found == "EIO"


@pytest.mark.parametrize("at_byte", [0, 1, 65_536, 700_000])
def test_an_upload_that_is_cut_is_sent_again(tiered, at_byte):
    mount = tiered.mount()
    (mount.inside / "old").write_bytes(b"old content " * 10)
    seen(mount, "old")
    content = os.urandom(1_000_000)
    tiered.fault(match=UPLOAD, action="reset_request", at_byte=at_byte, count=1)
    (mount.path / "new").write_bytes(content)
    assert (mount.inside / "new").read_bytes() == content
    tiered.fault(match=UPLOAD, action="reset_request", at_byte=at_byte, count=1)
    (mount.path / "old").write_bytes(content)
    assert (mount.inside / "old").read_bytes() == content


def test_old_content_survives_an_upload_that_never_arrives(tiered):
    mount = tiered.mount(options=KILL_TIMEOUTS + ["transfer_timeout=10"])
    (mount.inside / "f").write_bytes(b"old content")
    seen(mount, "f")
    content = os.urandom(200_000)  # does not shrink below the fault's position on the way
    tiered.fault(match=UPLOAD, action="reset_request", at_byte=1000, count=-1)
    descriptor = os.open(mount.path / "f", os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, content)
    with pytest.raises(OSError):
        os.close(descriptor)
    assert (mount.inside / "f").read_bytes() == b"old content"
    assert mount.status()["dirty_bytes"] > 0
    tiered.clear_faults()  # the network is back: nothing was lost
    mount.umount()
    assert (mount.inside / "f").read_bytes() == content


def test_a_forced_umount_does_not_wait_for_a_sandbox_that_hangs(tiered):
    mount = tiered.mount()
    # Begun before the file is open, or its copy of the descriptor would be closed, which sends.
    command = subprocess.Popen(["sh", "-c", 'read go; exec "$@"', "sh", str(BIN / "e2bfs"), "umount", "--force", str(mount.path)],
                               stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**TOOL_ENVIRONMENT, **tiered.environment()})
    held = os.open(mount.path / "f", os.O_WRONLY | os.O_CREAT)
    os.write(held, b"x" * 1000)
    os.kill(tiered.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        errors = command.communicate("go\n", timeout=PATIENCE)[1]
    finally:
        os.kill(tiered.process.pid, signal.SIGCONT)
    assert time.monotonic() - began < 50
    mount.mounted = False
    assert command.returncode == 0 and "put aside in" in errors, errors
    place = re.search(r"put aside in (\S+)", errors)[1]
    assert ["x" * 1000] == [open(os.path.join(place, name)).read() for name in os.listdir(place) if name != "UNSENT.txt" and not name.endswith(".note")]
    assert code(lambda: os.write(held, b"y")) == "ENOTCONN"
    assert code(lambda: os.close(held)) in ("ENOTCONN", "ok")
    assert not is_mounted(mount.path)


def test_a_500_without_a_reason_is_asked_about(service):
    if os.geteuid() != 0:
        pytest.skip("makes a small file system: needs root")
    mount = service.mount(options=["transfer_timeout=20"])
    stage = mount.status()["remote"]["staging directory"]
    run("mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "small", stage)
    try:
        (mount.inside / "f").write_bytes(b"old content")
        seen(mount, "f")
        service.fault(match="POST /files?", action="status", status=500, body='{"code":500,"message":"something went wrong"}', count=-1)

        def write(length):
            descriptor = os.open(mount.path / "f", os.O_WRONLY | os.O_TRUNC)
            os.write(descriptor, b"n" * length)
            os.close(descriptor)
        assert code(lambda: write(1000)) == "EIO"
        assert code(lambda: write(8 << 20)) == "ENOSPC"
        assert (mount.inside / "f").read_bytes() == b"old content"
    finally:
        run("umount", "-l", stage)
        service.clear_faults()


def test_no_space_is_reported_by_close_and_keeps_the_old(tiered):
    mount = tiered.mount(options=["transfer_timeout=10"])
    (mount.inside / "f").write_bytes(b"old content")
    seen(mount, "f")
    tiered.fault(match=UPLOAD, action="status", status=507, body='{"code":507,"message":"not enough disk space"}', count=-1)
    descriptor = os.open(mount.path / "f", os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, b"n" * 200_000)
    with pytest.raises(OSError) as problem:
        os.close(descriptor)
    assert problem.value.errno == errno.ENOSPC
    assert (mount.inside / "f").read_bytes() == b"old content"
    tiered.clear_faults()


@pytest.mark.parametrize("status", [429, 503])
def test_too_many_requests_is_waited_out(tiered, status):
    mount = tiered.mount()
    content = os.urandom(500_000)
    (mount.inside / "f").write_bytes(content)
    tiered.fault(match="", action="status", status=status, body='{"code":"unavailable","message":"later"}', count=3)
    seen(mount, "f")
    assert (mount.path / "f").read_bytes() == content
    tiered.fault(match=UPLOAD, action="status", status=status, body='{"code":"unavailable","message":"later"}', count=2)
    (mount.path / "g").write_bytes(content)
    assert (mount.inside / "g").read_bytes() == content


@pytest.mark.parametrize("action", ["refuse", "goaway", "goaway_refuse"])
def test_refused_streams_and_goaway_are_not_seen(tiered, action):
    mount = tiered.mount()
    # Large enough for the files API on both tiers.
    contents = [os.urandom(300_000) for _ in range(10)]
    for i, content in enumerate(contents):
        (mount.inside / f"f{i}").write_bytes(content)
    seen(mount, *[f"f{i}" for i in range(10)])
    tiered.fault(match="", action=action, skip=1, count=2)
    for i, content in enumerate(contents):
        assert (mount.path / f"f{i}").read_bytes() == content
    tiered.fault(match="", action=action, skip=1, count=2)
    for i in range(5):
        (mount.path / f"g{i}").write_bytes(contents[i])
        assert (mount.inside / f"g{i}").read_bytes() == contents[i]


def test_a_change_is_not_done_twice(service):
    """The connection dies after the server did the work: the answer is found out, or EIO; never a second mkdir's EEXIST."""
    mount = service.mount()
    for number in range(3):
        service.fault(match="POST /process.Process/Start", action="reset", at_byte=-2, count=1)
        found = code(lambda: os.mkdir(mount.path / f"d{number}"))
        assert found in ("ok", "EIO")
        eventually(lambda: (mount.inside / f"d{number}").is_dir(), "the directory is there")
    service.clear_faults()
    (mount.path / "log").write_text("")
    for number in range(5):
        service.fault(match="POST /process.Process/Start", action="reset", at_byte=-2, count=1)
        with open(mount.path / "log", "a") as file:
            file.write(f"{number}\n")
    assert (mount.inside / "log").read_text() == "0\n1\n2\n3\n4\n"


def test_a_stalled_read_ends_with_ctrl_c(tiered):
    mount = tiered.mount()
    (mount.inside / "f").write_bytes(os.urandom(1_000_000))
    (mount.inside / "g").write_text("other")
    seen(mount, "f")
    seen(mount, "g")
    tiered.fault(match=READ, action="stall", at_byte=1000, count=-1)
    reader = subprocess.Popen(["cat", str(mount.path / "f")], stdout=subprocess.DEVNULL)
    eventually(lambda: tiered.counts()["requests"].get("GET /files", 0) >= 1, "the read is on its way")
    time.sleep(0.3)
    assert reader.poll() is None
    assert "g" in os.listdir(mount.path)  # names are answered meanwhile
    (mount.path / "new").mkdir()
    reader.send_signal(signal.SIGINT)
    assert reader.wait(20) == -signal.SIGINT
    tiered.clear_faults()


def test_a_stalled_server_is_given_up_and_the_read_repeated(tiered):
    mount = tiered.mount(options=KILL_TIMEOUTS)
    content = os.urandom(1_000_000)
    (mount.inside / "f").write_bytes(content)
    seen(mount, "f")
    tiered.fault(match=READ, action="stall", at_byte=5000, count=1)
    assert (mount.path / "f").read_bytes() == content


def test_a_frozen_connection_is_replaced(tiered):
    mount = tiered.mount(options=KILL_TIMEOUTS)
    content = os.urandom(300_000)
    (mount.inside / "f").write_bytes(content)
    seen(mount, "f")
    tiered.fault(match=READ, action="freeze", count=1)
    assert (mount.path / "f").read_bytes() == content
    assert sorted(os.listdir(mount.path)) == ["f"]


def test_a_stalled_sandbox_never_blocks_what_is_cached(tiered):
    mount = tiered.mount(options=["attr_timeout=600"])
    (mount.inside / "f").write_text("content")
    (mount.inside / "g").write_bytes(bytes(1_000_000))
    seen(mount, "f", "g")
    assert (mount.path / "f").read_text() == "content"
    os.stat(mount.path / "f")
    tiered.fault(match="", action="stall", at_byte=-1, count=-1)
    reader = subprocess.Popen(["cat", str(mount.path / "g")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        script = "import os,sys; print(os.stat(sys.argv[1]).st_size)"
        assert run(sys.executable, "-c", script, mount.path / "f", timeout=30).stdout == "7\n"
    finally:
        reader.kill()
        reader.wait(30)
        tiered.clear_faults()


HOSTILE_ENTRIES = ["..", ".", "a/b", "/etc/passwd", "", "x\u0000y", "n" * 300]


@pytest.mark.parametrize("name", HOSTILE_ENTRIES, ids=range(len(HOSTILE_ENTRIES)))
def test_hostile_names_do_not_get_in(service, name):
    mount = service.mount()
    entry = {"name": name, "type": "FILE_TYPE_FILE", "path": str(mount.inside / "x"), "size": "5", "mode": 420, "permissions": "-rw-r--r--",
             "owner": "root", "group": "root", "modifiedTime": "2026-01-01T00:00:00Z"}
    service.fault(match="POST /filesystem.Filesystem/ListDir", action="replace_body", body=json.dumps({"entries": [entry]}), count=-1)
    listed = []
    found = code(lambda: listed.extend(os.listdir(mount.path)))
    assert found == "EIO" or listed == [], (found, listed)
    service.clear_faults()
    eventually(lambda: code(lambda: os.listdir(mount.path)) == "ok", "the mount goes on")


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '{"entry": 5}', '{"entry": {"name": "f", "size": "-5"}}', '{"entries": {}}', "\x00" * 100,
                                  '{"entry":' * 2000],
                         ids=range(9))
def test_rubbish_is_an_error_not_a_crash(service, body):
    mount = service.mount(options=["attr_timeout=0"])
    (mount.inside / "f").write_text("x")
    seen(mount, "f")
    service.fault(match="POST /filesystem.Filesystem/", action="replace_body", body=body, count=-1)
    assert code(lambda: os.stat(mount.path / "unknown")) == "EIO"  # never "not there": who believes it would make it anew
    code(lambda: os.listdir(mount.path))
    service.clear_faults()
    eventually(lambda: code(lambda: os.stat(mount.path / "f")) == "ok", "the mount goes on")


def test_a_sandbox_that_goes_away_with_unsent_data(tiered):
    mount = tiered.mount(options=KILL_TIMEOUTS + ["transfer_timeout=5", "operation_timeout=5"])
    (mount.inside / "f").write_text("old")
    seen(mount, "f")
    descriptor = os.open(mount.path / "f", os.O_WRONLY)
    os.write(descriptor, b"precious")
    tiered.kill()
    with pytest.raises(OSError):
        os.close(descriptor)
    refused = mount.umount("--timeout", "2", check=False)
    assert refused.returncode != 0 and "unsent" in refused.stderr + refused.stdout
    assert is_mounted(mount.path)
    forced = mount.umount("--timeout", "2", "--force", check=False)
    assert forced.returncode == 0, forced.stderr
    eventually(lambda: not is_mounted(mount.path), "it is unmounted")
    kept = [os.path.join(top, name) for top, _, names in os.walk(tiered.scratch / "state") for name in names]
    assert any(b"precious" in open(path, "rb").read() for path in kept), kept
    assert "state" in forced.stdout + forced.stderr  # says where


def test_a_sandbox_that_comes_back_gets_what_it_missed(service):
    mount = service.mount(options=KILL_TIMEOUTS + ["transfer_timeout=5", "operation_timeout=5"])
    (mount.inside / "f").write_text("old")
    seen(mount, "f")
    descriptor = os.open(mount.path / "f", os.O_WRONLY)
    os.write(descriptor, b"precious")
    service.fault(match="", action="status", status=502, body='{"sandboxId":"x","message":"not running","code":502}', count=-1)
    with pytest.raises(OSError):
        os.close(descriptor)
    assert (mount.inside / "f").read_text() == "old"
    service.clear_faults()
    mount.umount()
    assert (mount.inside / "f").read_text() == "precious"


@pytest.mark.parametrize("command", [["fusermount3", "-u"], ["umount"]], ids=lambda command: command[0])
def test_other_commands_unmount_too(tiered, command):
    if command == ["umount"] and os.getuid() != 0:
        pytest.skip("umount is for root")
    mount = tiered.mount()
    (mount.path / "f").write_text("first")
    run(*command, mount.path)
    mount.mounted = False
    assert (mount.inside / "f").read_text() == "first"
    eventually(lambda: not is_mounted(mount.path), "it is unmounted")
    mount.mount()
    assert (mount.path / "f").read_text() == "first"


def test_sigterm_sends_and_unmounts(tiered):
    mount = tiered.mount()
    holder = open(mount.path / "f", "w")
    holder.write("not closed yet")
    holder.flush()
    os.kill(mount.status()["pid"], signal.SIGTERM)
    eventually(lambda: not is_mounted(mount.path), "it is unmounted")
    mount.mounted = False
    eventually(lambda: (mount.inside / "f").read_text() == "not closed yet", "the data arrived")
    try:
        holder.close()
    except OSError:
        pass  # the mount is gone


def test_writes_of_many_threads_all_arrive(tiered):
    mount = tiered.mount()
    tiered.fault(match="", action="reset", skip=30, at_byte=-1, count=3)
    length = 10_000 if tiered.tier == "service" else 100_000  # small ones are in no request of their own
    problems = []

    def write(number):
        for turn in range(5):
            content = os.urandom(length)
            try:
                (mount.path / f"f{number}").write_bytes(content)
                if (mount.inside / f"f{number}").read_bytes() != content:
                    problems.append(f"f{number} turn {turn}: other content")
            except OSError as problem:
                problems.append(repr(problem))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join(PATIENCE) for thread in threads]
    assert not problems


def test_warm_answers_cost_no_request(tiered):
    mount = tiered.mount(options=["attr_timeout=600"])
    (mount.inside / "d").mkdir()
    for i in range(50):
        (mount.inside / f"d/f{i}").write_text("x")
    run("ls", "-l", mount.path / "d")
    tiered.reset_counts()
    run("ls", "-l", mount.path / "d")
    assert tiered.counts()["total_requests"] == 0


def test_the_first_listing_is_one_request(service):
    mount = service.mount()
    (mount.inside / "d").mkdir()
    for i in range(50):
        (mount.inside / f"d/f{i}").write_text("x")
    service.reset_counts()
    assert len(os.listdir(mount.path / "d")) == 50
    for i in range(50):
        os.stat(mount.path / f"d/f{i}")
    requests = service.counts()["requests"]
    assert requests.get("POST /filesystem.Filesystem/ListDir") == 1
    assert sum(requests.values()) <= 3, requests


def test_reading_in_order_costs_few_requests(tiered):
    mount = tiered.mount()
    content = os.urandom(1 << 20) * 64  # many windows of the kernel's read-ahead, which is 1 MiB where root mounts
    (mount.inside / "f").write_bytes(content)
    seen(mount, "f")
    tiered.reset_counts()
    assert (mount.path / "f").read_bytes() == content
    counts = tiered.counts()
    assert counts["requests"]["GET /files"] <= 16, counts  # ranges that grow to 8 MiB
    assert counts["response_body_bytes"] <= 1.2 * len(content), counts


def test_what_is_written_after_a_name_went_reaches_the_others_or_is_kept(tiered):
    mount = tiered.mount()
    (mount.inside / "f").write_text("0123")
    os.link(mount.inside / "f", mount.inside / "g")
    seen(mount, "f")
    descriptor = os.open(mount.path / "f", os.O_RDWR)
    os.unlink(mount.path / "f")
    os.pwrite(descriptor, b"XX", 1)
    assert os.pread(descriptor, 10, 0) == b"0XX3"
    if tiered.tier == "syscall":
        os.close(descriptor)
        assert (mount.inside / "g").read_text() == "0XX3"
        return
    # The service tier does not find it by the other name: the program is told, and so is whoever reads the log.
    for call in (os.fsync, os.close):
        assert code(lambda: call(descriptor)) == "ESTALE"
    assert (mount.inside / "g").read_text() == "0123"

    def kept():
        places = [os.path.join(top, name) for top, _, names in os.walk(tiered.scratch / "state") for name in names if name.endswith("-f")]
        return places and open(places[0], "rb").read()[1:3] == b"XX"
    eventually(kept, "it is put aside")
    eventually(lambda: "what was written is put aside in" in mount.log.read_text(), "the log says so")
