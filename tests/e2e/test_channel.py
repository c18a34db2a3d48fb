"""What a program sees on the syscall tier when the way to the syscall server is cut, refused, stalled, or the server itself is lost.

The channel's own tests (tests/component/syscall/channel_test.cc) cut it at every place; these have the whole mount above it, its cache
and its unsent data.
"""
import base64, os, re, signal, subprocess, sys, threading, time

import pytest

from conftest import ENVD_URL, PATIENCE, TOOL_ENVIRONMENT, Double, Mount, eventually, is_mounted, run
from test_faults import KILL_TIMEOUTS, UPLOAD, code, seen

GONE = '{"sandboxId":"x","message":"The sandbox is not running","code":502}'
CALLS = ("process.Process/StreamInput", "process.Process/Start", "process.Process/Connect")


@pytest.fixture
def channel(faulty):
    """Its mounts are on the syscall tier."""
    plain = faulty.mount

    def mount(name="m", options=(), inside=None):
        made = plain(name, ["tier=syscall", *options], inside)
        assert made.status()["tier"] == "syscall"
        return made

    faulty.mount = mount
    faulty.cut = lambda: faulty.control("POST", "/_test/reset")
    return faulty


def server_pid(mount):
    return int(re.search(r"pid (\d+)", mount.status()["remote"]["syscall server"])[1])


def is_dead(pid):
    try:
        with open(f"/proc/{pid}/status") as status:
            return "\nState:\tZ" in status.read()
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill_server(mount, how=signal.SIGKILL):
    pid = server_pid(mount)
    os.kill(pid, how)
    if how == signal.SIGKILL:
        eventually(lambda: is_dead(pid), "the server is dead")
    return pid


def counted(mount, what):
    return int(mount.status()["remote"][what])


def test_a_killed_server_is_replaced_and_open_files_stay(channel):
    mount = channel.mount()
    content = os.urandom(300_000)
    (mount.inside / "f").write_bytes(content)
    seen(mount, "f")
    with open(mount.path / "f", "rb", buffering=0) as file, open(mount.path / "new", "wb") as new:
        assert file.read(10) == content[:10]
        new.write(b"before ")
        new.flush()
        os.rename(mount.inside / "f", mount.inside / "g")  # the old name no longer leads there
        kill_server(mount)
        new.write(b"after")
        assert file.read(1000) == content[10:1010]
        assert file.read() == content[1010:]
    assert (mount.inside / "new").read_bytes() == b"before after"
    (mount.path / "d").mkdir()
    assert (mount.inside / "d").is_dir()
    assert counted(mount, "servers started") == 2


def test_a_stopped_server_is_given_up(channel):
    mount = channel.mount()
    (mount.path / "f").write_text("content")
    pid = kill_server(mount, signal.SIGSTOP)
    began = time.monotonic()
    assert code(lambda: os.mkdir(mount.path / "d")) == "EIO"  # sent and not answered: nobody knows, and nobody does it again
    assert time.monotonic() - began < 45
    assert not (mount.inside / "d").exists()
    (mount.path / "e").mkdir()
    assert (mount.inside / "e").is_dir()
    assert (mount.path / "f").read_text() == "content"
    assert server_pid(mount) != pid
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "the stopped one is killed")


def test_a_cut_way_is_found_again_and_nothing_is_done_twice(channel):
    mount = channel.mount()
    (mount.path / "log").write_text("")
    stop, problems = threading.Event(), []

    def work(number):
        try:
            for turn in range(10_000):
                if stop.is_set():
                    return
                name = f"t{number}-{turn}"
                os.mkdir(mount.path / name)
                os.rename(mount.path / name, mount.path / f"{name}-renamed")
                with open(mount.path / "log", "a") as file:
                    file.write(f"{name}\n")
                done.append(name)
        except OSError as problem:
            problems.append(repr(problem))

    done = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    [thread.start() for thread in threads]
    for turn in range(8):
        time.sleep(0.3)
        channel.cut()
    before = len(done)
    eventually(lambda: len(done) >= before + 3 or problems, "they go on")
    stop.set()
    [thread.join(PATIENCE) for thread in threads]
    assert not problems
    assert sorted((mount.inside / "log").read_text().split()) == sorted(done)
    assert sorted(os.listdir(mount.inside)) == sorted(["log"] + [f"{name}-renamed" for name in done])
    assert counted(mount, "servers started") == 1
    assert counted(mount, "reattached") >= 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_way_that_is_refused_for_a_while_is_waited_for(channel, status):
    mount = channel.mount()
    (mount.path / "f").write_text("content")
    for call in CALLS:
        channel.fault(match=call, action="status", status=status, body='{"code":"unavailable","message":"later"}', count=1)
    channel.cut()
    (mount.path / "d").mkdir()
    assert (mount.inside / "d").is_dir()
    kill_server(mount)
    for call in CALLS:
        channel.fault(match=call, action="status", status=status, body='{"code":"unavailable","message":"later"}', count=1)
    (mount.path / "e").mkdir()
    assert (mount.inside / "e").is_dir()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("action", ["stall", "freeze", "reset", "cut"])
def test_a_way_that_fails_while_it_is_made(channel, call, action):
    mount = channel.mount(options=KILL_TIMEOUTS)
    (mount.path / "f").write_text("content")
    channel.fault(match=call, action=action, at_byte=-1 if action == "stall" else 0, count=1)
    if call.endswith("Start"):
        kill_server(mount)
    else:
        channel.cut()
    # What went into the way that was cut, and was not answered before a new server came, may have been done: EIO.
    assert code(lambda: os.mkdir(mount.path / "d")) in ("ok", "EIO")
    (mount.path / "e").mkdir()
    assert (mount.inside / "e").is_dir()
    assert (mount.path / "f").read_text() == "content"


def test_what_cannot_be_sent_is_kept_and_umount_refuses(channel):
    """The sandbox is paused: its edge answers 502."""
    mount = channel.mount(options=KILL_TIMEOUTS + ["transfer_timeout=5", "operation_timeout=5"])
    (mount.inside / "f").write_text("old")
    seen(mount, "f")
    descriptor = os.open(mount.path / "f", os.O_WRONLY)
    os.write(descriptor, b"precious")
    channel.fault(match="", action="status", status=502, body=GONE, count=-1)
    channel.cut()
    assert code(lambda: os.close(descriptor)) == "ENOTCONN"
    assert code(lambda: os.mkdir(mount.path / "d")) == "ENOTCONN"
    assert (mount.inside / "f").read_text() == "old"
    assert mount.status()["dirty_bytes"] == 8
    refused = mount.umount("--timeout", "2", check=False)
    assert refused.returncode == 8 and "unsent" in refused.stderr + refused.stdout
    assert is_mounted(mount.path)
    channel.clear_faults()
    (mount.path / "d").mkdir()
    mount.umount()
    assert (mount.inside / "f").read_text() == "precious"


def test_nothing_is_asked_of_a_paused_sandbox_by_itself(channel):
    mount = channel.mount()
    (mount.path / "f").write_text("content")
    channel.fault(match="", action="status", status=502, body=GONE, count=-1)
    channel.reset_counts()
    channel.cut()
    time.sleep(2)
    assert channel.counts()["total_requests"] == 0


def test_sigterm_sends_although_the_server_is_lost(channel):
    mount = channel.mount()
    holder = open(mount.path / "f", "w")
    holder.write("not closed yet")
    holder.flush()
    pid = mount.status()["pid"]
    kill_server(mount)
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not is_mounted(mount.path), "it is unmounted")
    mount.mounted = False
    eventually(lambda: (mount.inside / "f").read_text() == "not closed yet", "the data arrived")
    try:
        holder.close()
    except OSError:
        pass  # the mount is gone


def test_the_end_does_not_wait_for_a_server_that_hangs(channel):
    mount = channel.mount()
    (mount.path / "f").write_text("content")
    pid = kill_server(mount, signal.SIGSTOP)
    began = time.monotonic()
    mount.umount()
    assert time.monotonic() - began < 30
    assert not is_mounted(mount.path)
    os.kill(pid, signal.SIGCONT)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "its input ended, and so did it")


def test_ctrl_c_ends_calls_that_wait_for_the_way(channel):
    mount = channel.mount()
    (mount.inside / "d").mkdir()
    seen(mount, "d")
    kill_server(mount, signal.SIGSTOP)
    lister = subprocess.Popen([sys.executable, "-c", "import os,signal,sys; signal.signal(2, signal.SIG_DFL); print(1, flush=True); os.listdir(sys.argv[1])",
                               str(mount.path / "d")], stdout=subprocess.PIPE, env=TOOL_ENVIRONMENT)
    lister.stdout.readline()
    time.sleep(0.5)
    began = time.monotonic()
    lister.send_signal(signal.SIGINT)
    assert lister.wait(20) == -signal.SIGINT
    assert time.monotonic() - began < 3
    lister.stdout.close()


def test_a_large_upload_survives_its_server(channel):
    """The staged file dies with the server that had it open: it is staged again."""
    mount = channel.mount()
    (mount.inside / "f").write_bytes(b"old" * 1000)
    seen(mount, "f")
    content = os.urandom(2_000_000)
    channel.fault(match=UPLOAD, action="stall_request", at_byte=500_000, count=1)
    problems = []

    def write():
        try:
            (mount.path / "f").write_bytes(content)
        except OSError as problem:
            problems.append(repr(problem))

    writer = threading.Thread(target=write)
    channel.reset_counts()
    writer.start()
    eventually(lambda: channel.counts()["requests"].get("POST /files"), "the upload is on its way")
    time.sleep(0.3)
    assert (mount.inside / "f").read_bytes() == b"old" * 1000
    kill_server(mount)
    channel.cut()
    writer.join(PATIENCE)
    assert not problems and (mount.inside / "f").read_bytes() == content
    assert os.listdir(mount.inside) == ["f"]


def in_base64(text):
    """What of a text's base64 is the same wherever it stands: at each of the three places within a group of three bytes."""
    found = []
    for before in range(3):
        code = base64.b64encode(b"\0" * before + text.encode()).decode()
        found.append(code[(before * 8 + 5) // 6:(before + len(text)) * 8 // 6])
    return found


def test_the_log_of_the_sandbox_has_no_content_and_no_program(channel):
    mount = channel.mount()
    secret = "a-secret-in-a-file"
    (mount.path / "small").write_text(secret)
    (mount.path / "large").write_text(secret * 10_000)
    with open(mount.path / "small", "a") as file:
        file.write(secret)
    os.symlink(secret, mount.path / "link")
    kill_server(mount)
    run("cat", mount.path / "small", mount.path / "large")
    mount.umount()
    log = (channel.scratch / "sandbox.log").read_text(errors="replace")
    assert "process.Process/StreamInput" in log
    for text in (secret, "use strict", "openat"):  # content, and two words of the program
        for form in (text, *in_base64(text)):
            assert form not in log, (text, form)
    assert "SendInput" not in log


def test_changes_inside_are_never_missed(channel):
    """A file that is made and written inside while it is looked at here: what the news say last is what stays."""
    mount = channel.mount()
    problems = []

    def size(path):
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return -1
    for number in range(60):
        name = f"f{number}"
        watcher = subprocess.Popen(["sh", "-c", 'i=0; while [ $i -lt 40 ]; do stat "$0" >/dev/null 2>&1; i=$((i+1)); done', str(mount.path / name)]) if number % 6 == 0 else None
        with open(mount.inside / name, "wb", buffering=0) as file:
            file.write(b"x" * 1000)
            os.path.exists(mount.path / name)
            file.write(b"y" * 1000)
        end = time.monotonic() + 10
        while size(mount.path / name) != 2000 and time.monotonic() < end:
            time.sleep(0.01)
        if size(mount.path / name) != 2000:
            problems.append((name, size(mount.path / name)))
        if watcher:
            watcher.wait(PATIENCE)
    assert not problems


def test_at_most_48_kib_go_to_a_server_that_does_not_read(channel):
    """More would fill the pipe, and block even envd's own calls for that process."""
    mount = channel.mount()
    for number in range(12):
        (mount.path / f"f{number}").write_text("old")
    kill_server(mount, signal.SIGSTOP)
    channel.reset_counts()
    problems = []

    def write(number):
        try:
            (mount.path / f"f{number}").write_bytes(b"n" * 20_000)  # each goes within a request
        except OSError as problem:
            problems.append(problem.errno)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    [writer.start() for writer in writers]
    eventually(lambda: channel.counts()["input_bytes"] > 40_000, "what is allowed has come")
    time.sleep(2)  # for the rest, if it came; before the server is given up
    assert counted(mount, "servers started") == 1
    assert channel.counts()["input_bytes"] <= 48 << 10
    os.kill(server_pid(mount), signal.SIGCONT)
    [writer.join(PATIENCE) for writer in writers]
    assert not problems
    assert all((mount.inside / f"f{number}").read_bytes() == b"n" * 20_000 for number in range(12))
    assert channel.counts()["input_bytes"] > 12 * 20_000


def test_descriptors_given_to_transfers_only_grow(channel):
    """A late request of a cancelled transfer must never meet another file."""
    mount = channel.mount()
    content = os.urandom(400_000)
    for number in range(6):
        (mount.inside / f"r{number}").write_bytes(content)
        seen(mount, f"r{number}")
        assert (mount.path / f"r{number}").read_bytes() == content  # by the files API
        (mount.path / f"w{number}").write_bytes(content)
    pid = server_pid(mount)
    log = (channel.scratch / "sandbox.log").read_text(errors="replace")
    numbers = [int(number) for number in re.findall(rf"/proc/{pid}/fd/(\d+)", log)]
    firsts = list(dict.fromkeys(numbers))
    assert len(firsts) >= 12 and firsts == sorted(firsts), numbers
    # One that went is not used again: the later number's first request comes after the earlier one's last.
    assert numbers == sorted(numbers), numbers


def test_the_templates_environment_does_not_reach_perl(tmp_path):
    """PERL5OPT and its kind would stop the server, or break what it reads."""
    if ENVD_URL:
        pytest.skip("sets the template's environment")
    harmful = {"PERL5OPT": "-Mno::such::module", "PERL5LIB": str(tmp_path), "PERL_UNICODE": "SDA"}
    (tmp_path / "strict.pm").write_text("die 'a strict of the template';")
    for name, value in harmful.items():
        program = ["/usr/bin/perl", "-e", "use strict; my $n = sysread(STDIN, my $bytes, 10); exit($n == 2 ? 0 : 3)"]
        assert subprocess.run(program, input="\u00e9".encode(), env={name: value}, capture_output=True, check=False).returncode != 0, f"{name} does no harm"
    double = Double(tmp_path, *[f"--env={name}={value}" for name, value in harmful.items()], "--env=E2BFS_TEMPLATE=here")
    try:
        mount = Mount(double, "m", ["tier=syscall"])
        try:
            with open(f"/proc/{server_pid(mount)}/environ", "rb") as file:
                environment = dict(line.split(b"=", 1) for line in file.read().split(b"\0") if line)
            assert environment[b"E2BFS_TEMPLATE"] == b"here"
            assert all(environment.get(name.encode(), b"") == b"" for name in harmful)
            content = bytes(range(256)) * 50
            (mount.path / "\u00e9\udcff").write_bytes(content)
            assert (mount.inside / "\u00e9\udcff").read_bytes() == content == (mount.path / "\u00e9\udcff").read_bytes()
        finally:
            mount.close()
    finally:
        double.stop()
