"""The e2bfs command as its user meets it: exit statuses, one clear line for each mistake, secrets, the control plane."""
import fcntl, json, os, pathlib, pty, re, shutil, signal, socket, stat, subprocess, tempfile, termios

import pytest

from conftest import BIN, ENVD_URL, PATIENCE, PROTOCOL, TOOL_ENVIRONMENT, Double, Mount, digest_tree, eventually, is_mounted, run
from test_tools import make_tree

USAGE, CREDENTIALS, SANDBOX, NETWORK, MOUNT_POINT, REMOTE_PATH = 2, 3, 4, 5, 6, 9
KEY = "e2b_0123456789abcdef0123456789abcdef01234567"
TOKEN = "secret-token-of-the-sandbox"


def fails(double, status, words, *arguments, env=None):
    """e2bfs ends with that status and one line on stderr that has these words; nothing is mounted."""
    done = run(BIN / "e2bfs", *arguments, env={**double.environment(), **(env or {})}, check=False)
    assert done.returncode == status, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word.lower() in lines[0].lower(), lines[0]
    return lines[0]


def test_version_and_help():
    assert re.match(r"e2bfs \d+\.\d+", run(BIN / "e2bfs", "--version").stdout)
    assert "mount" in run(BIN / "e2bfs", "--help").stdout
    for command in ("mount", "umount", "list", "status", "demo"):
        text = run(BIN / "e2bfs", command, "--help").stdout
        assert len(text.splitlines()) > 5, text
    assert "symlinks" in run(BIN / "e2bfs", "mount", "--help").stdout


def test_mistakes_are_told_in_one_line(double, scratch):
    target = scratch / "mistakes"
    target.mkdir()
    good = f"debug_sandbox_id:{double.root}"
    fails(double, USAGE, ["nonsense"], "mount", good, target, "-o", "nonsense")
    fails(double, USAGE, ["attr_timeout"], "mount", good, target, "-o", "attr_timeout=soon")
    fails(double, USAGE, ["--nonsense"], "mount", good, target, "--nonsense")
    fails(double, USAGE, ["frobnicate"], "frobnicate")
    fails(double, REMOTE_PATH, ["missing"], "mount", f"debug_sandbox_id:{double.root}/missing", target)
    (double.root / "a-file").write_text("x")
    fails(double, REMOTE_PATH, ["directory"], "mount", f"debug_sandbox_id:{double.root}/a-file", target)
    fails(double, MOUNT_POINT, [str(target / "nowhere")], "mount", good, target / "nowhere")
    (target / "file").write_text("x")
    fails(double, MOUNT_POINT, ["directory"], "mount", good, target / "file")
    fails(double, MOUNT_POINT, [str(target)], "umount", target)
    fails(double, MOUNT_POINT, [str(target)], "status", target)
    fails(double, NETWORK, [], "mount", good, target, env={"E2B_SANDBOX_URL": "http://127.0.0.1:1"})
    fails(double, CREDENTIALS, ["E2B_API_KEY"], "mount", "abc", target, env={"E2B_DEBUG": "", "E2B_SANDBOX_URL": ""})
    fails(double, SANDBOX, ["other", "E2B_DEBUG"], "mount", f"other:{double.root}", target)
    fails(double, USAGE, ["user=nobody-of-that-name"], "mount", good, target, "-o", "user=nobody-of-that-name")
    fails(double, USAGE, ["user=nobody-of-that-name"], "mount", good, target, "-o", "user=nobody-of-that-name,tier=service")
    fails(double, USAGE, ["SSL_CERT_FILE", "/nowhere"], "mount", good, target, env={"SSL_CERT_FILE": "/nowhere"})
    assert not is_mounted(target)


def test_a_busy_mount_point(shared_mount, double):
    fails(double, MOUNT_POINT, [str(shared_mount.path), "mounted"], "mount", f"debug_sandbox_id:{double.root}", shared_mount.path)


def test_a_mount_is_found_with_another_runtime_directory(shared_mount, double):
    other = double.scratch / "other-run"
    other.mkdir(mode=0o700, exist_ok=True)
    environment = {**double.environment(), "XDG_RUNTIME_DIR": str(other)}
    found = json.loads(run(BIN / "e2bfs", "list", "--json", env=environment).stdout)["mounts"]
    assert [each["state"] for each in found if each["mountpoint"] == str(shared_mount.path)] == ["mounted"]
    assert "debug_sandbox_id" in run(BIN / "e2bfs", "status", shared_mount.path, env=environment).stdout


def test_a_mount_that_was_killed_comes_back_and_loses_nothing(double):
    mount = Mount(double, "killed")
    try:
        (mount.inside / "f").write_text("old")
        eventually(lambda: (mount.path / "f").exists(), "it is seen")
        pid = mount.status()["pid"]
        held = open(mount.path / "f", "w")
        held.write("written and not sent")
        held.flush()  # no process may be started now: its copy of the descriptor is closed, which sends
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not os.path.exists(mount.path / "f"), "nobody answers")
        found = json.loads(mount.e2bfs("list", "--json").stdout)["mounts"]
        assert [each["state"] for each in found if each["mountpoint"] == str(mount.path)] == ["stale"]
        try:
            held.close()
        except OSError:
            pass
        mount.mount()  # clears the dead one, which nobody can use any more
        assert (mount.path / "f").read_text() == "old"
        unsent = double.scratch / "state/e2bfs/unsent"
        left = [each for each in unsent.iterdir() if each.name.startswith("left-behind-")]
        assert len(left) == 1
        text = (left[0] / "UNSENT.txt").read_text()
        assert "file in the sandbox: f\n" in text and "0+20" in text, text
        assert "written and not sent" in [each.read_text() for each in left[0].iterdir()]
        shutil.rmtree(left[0])
    finally:
        mount.close()


def test_long_paths_of_this_machine_are_no_obstacle(double):
    inside, target = double.root / "long", double.scratch / "mnt-long"
    inside.mkdir()
    target.mkdir()
    long = double.scratch / ("l" * 120)
    long.mkdir(mode=0o700)
    environment = {**double.environment(), "XDG_RUNTIME_DIR": str(long)}
    more = ["-o", "user=" + os.environ.get("USER", "root")] if ENVD_URL else []
    run(BIN / "e2bfs", "mount", f"debug_sandbox_id:{inside}", target, *more, env=environment)
    try:
        assert "debug_sandbox_id" in run(BIN / "e2bfs", "status", target, env=environment).stdout
    finally:
        run(BIN / "e2bfs", "umount", target, env=environment)
    done = run(BIN / "e2bfs", "demo", env={"HOME": str(double.scratch), "TMPDIR": str(long)})
    assert "hello" in done.stdout.lower() and os.listdir(long / "e2bfs") == []


def test_a_private_authority_has_to_be_named(double, scratch):
    if PROTOCOL != "h2" or ENVD_URL:
        pytest.skip("no TLS in this run")
    target = scratch / "authority"
    target.mkdir()
    environment = double.environment()
    del environment["SSL_CERT_FILE"]
    done = run(BIN / "e2bfs", "mount", f"debug_sandbox_id:{double.root}", target, env=environment, check=False)
    assert done.returncode == NETWORK and "certificate" in done.stderr
    assert not is_mounted(target)


def test_status(shared_mount, double):
    (shared_mount.path / "f").write_text("hello")
    status = shared_mount.status()
    assert status["sandbox"] == "debug_sandbox_id"
    assert status["mountpoint"] == str(shared_mount.path)
    assert status["tier"] == "syscall" and status["tier_reason"] == ""
    assert re.match(r"\d+\.\d+\.\d+|debug$", status["envd_version"])
    assert status["dirty_bytes"] == 0
    assert status["requests"] > 0
    if not ENVD_URL:
        assert status["protocol"] == ("h2" if PROTOCOL == "h2" else "http/1.1")
    text = shared_mount.e2bfs("status", shared_mount.path).stdout
    assert "debug_sandbox_id" in text and "syscall" in text


def test_list_shows_mounts(shared_mount, double):
    found = json.loads(shared_mount.e2bfs("list", "--json").stdout)
    assert str(shared_mount.path) in [mount["mountpoint"] for mount in found["mounts"]]  # others may be there
    assert str(shared_mount.path) in shared_mount.e2bfs("list").stdout


def test_in_the_foreground(double, scratch):
    inside, target = double.root / "foreground", scratch / "foreground"
    inside.mkdir()
    target.mkdir()
    process = subprocess.Popen([str(BIN / "e2bfs"), "mount", "-f", f"debug_sandbox_id:{inside}", str(target)]
                               + (["-o", "user=" + os.environ.get("USER", "root")] if ENVD_URL else []),
                               stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**TOOL_ENVIRONMENT, **double.environment()})
    eventually(lambda: is_mounted(target) or process.poll() is not None, "it is mounted")
    eventually(lambda: not os.path.exists(target / "x"), "it answers")
    (target / "f").write_text("x")
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, errors
    assert (inside / "f").read_text() == "x" and not is_mounted(target)


def test_systemd_is_told_when_the_mount_answers(double, scratch):
    inside, target = double.root / "notified", scratch / "notified"
    inside.mkdir()
    target.mkdir()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(scratch / "notify"))
    listener.settimeout(PATIENCE)
    process = subprocess.Popen([str(BIN / "e2bfs"), "mount", "-f", f"debug_sandbox_id:{inside}", str(target)]
                               + (["-o", "user=" + os.environ.get("USER", "root")] if ENVD_URL else []),
                               stdin=subprocess.DEVNULL, env={**TOOL_ENVIRONMENT, **double.environment(), "NOTIFY_SOCKET": str(scratch / "notify")})
    try:
        assert b"READY=1" in listener.recv(4096)
        assert is_mounted(target) and os.listdir(target) == []
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
        listener.close()


def test_the_demo_leaves_nothing_behind(scratch):
    (scratch / "tmp").mkdir()
    done = run(BIN / "e2bfs", "demo", env={"HOME": str(scratch), "TMPDIR": str(scratch / "tmp")})
    assert "hello" in done.stdout.lower()
    assert os.listdir(scratch / "tmp") == []
    assert "e2bfs-demo" not in open("/proc/self/mounts").read()


def test_the_demo_on_a_terminal_stays_until_ctrl_c(scratch):
    (scratch / "terminal").mkdir()
    main, other = pty.openpty()
    process = subprocess.Popen([str(BIN / "e2bfs"), "demo"], stdin=other, stdout=other, stderr=other, start_new_session=True,
                               preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
                               env={**TOOL_ENVIRONMENT, "HOME": str(scratch), "TMPDIR": str(scratch / "terminal")})
    os.close(other)
    said = b""
    try:
        while b"Ctrl-C" not in said:
            said += os.read(main, 4096)
        (mounted,) = [line.split()[1] for line in open("/proc/self/mounts") if str(scratch / "terminal") in line]
        (pathlib.Path(mounted) / "played").write_text("with")
        os.write(main, b"\x03")
        try:
            while os.read(main, 4096):
                pass
        except OSError:
            pass  # the other end is closed
        assert process.wait(PATIENCE) in (0, 130)
    finally:
        process.kill()
        process.wait()
        os.close(main)
    assert os.listdir(scratch / "terminal") == [] and not is_mounted(mounted)


@pytest.fixture(scope="module")
def cloud():
    """A double with its control plane, a key and a token: the way to a real sandbox."""
    if ENVD_URL:
        pytest.skip("needs a control plane: a real envd has none")
    base = tempfile.mkdtemp(prefix="e2bfs-cloud.")
    made = Double(base, "--api-key", KEY, "--token", TOKEN, "--instance", "running1", "--instance", "paused1:paused", "--edge-routing")
    yield made
    made.stop()
    shutil.rmtree(base, ignore_errors=True)


def cloud_environment(cloud):
    environment = cloud.environment()
    del environment["E2B_DEBUG"]
    return {**environment, "E2B_API_URL": cloud.url, "E2B_API_KEY": KEY, "E2B_SANDBOX_URL": cloud.tls_url}


@pytest.mark.parametrize("sandbox", ["running1", "paused1"])
def test_a_sandbox_by_its_id(cloud, sandbox):
    target = cloud.scratch / f"mnt-{sandbox}"
    target.mkdir()
    environment = cloud_environment(cloud)
    run(BIN / "e2bfs", "mount", sandbox, target, env=environment)
    try:
        (cloud.root / f"of-{sandbox}").write_text("x")  # the default path is the user's home
        eventually(lambda: (target / f"of-{sandbox}").exists(), "the home is what is mounted")
        status = json.loads(run(BIN / "e2bfs", "status", "--json", target, env=environment).stdout)
        assert status["sandbox"] == sandbox
        assert re.match(r"\d+\.\d+\.\d+$", status["envd_version"])
        pid = status["pid"]
        exposed = [open(f"/proc/{pid}/cmdline", "rb").read(), json.dumps(status).encode(),
                   run(BIN / "e2bfs", "status", target, env=environment).stdout.encode(), run(BIN / "e2bfs", "list", "--json", env=environment).stdout.encode()]
        for text in exposed:
            assert KEY.encode() not in text and TOKEN.encode() not in text
        try:
            exposed = open(f"/proc/{pid}/environ", "rb").read()
            assert exposed and KEY.encode() not in exposed and TOKEN.encode() not in exposed
        except PermissionError:
            assert os.getuid() != 0  # it is closed even to the user whose process it is
        limits = open(f"/proc/{pid}/limits").read()
        assert re.search(r"Max core file size\s+0\s", limits)
    finally:
        run(BIN / "e2bfs", "umount", target, env=environment)


@pytest.mark.parametrize("version", ["0.2.11", "0.5.5"])
def test_an_old_envd(version):
    """Before default users, octet-stream uploads, gzip and all that the syscall tier needs."""
    if ENVD_URL:
        pytest.skip("needs a control plane, which tells the version: a real envd has none")
    base = tempfile.mkdtemp(prefix="e2bfs-cloud.")
    old = Double(base, "--envd-version", version, "--api-key", KEY, "--token", TOKEN, "--instance", "old1", "--edge-routing")
    target = old.scratch / "mnt-old"
    target.mkdir()
    environment = cloud_environment(old)
    try:
        run(BIN / "e2bfs", "mount", f"old1:{old.root}", target, "-o", "user=root", env=environment)
        status = json.loads(run(BIN / "e2bfs", "status", "--json", target, env=environment).stdout)
        assert status["tier"] == "service" and status["envd_version"] == version
        source = make_tree(old.scratch / "tree", directories=2, files=3)
        run("cp", "-a", source, target / "copy")
        assert digest_tree(old.root / "copy") == digest_tree(source) == digest_tree(target / "copy")
        with open(target / "copy/empty", "a") as file:
            file.write("appended")
        os.rename(target / "copy/empty", target / "copy/full")
        assert (old.root / "copy/full").read_text() == "appended"
        run("rm", "-r", target / "copy")
        assert not (old.root / "copy").exists()
        run(BIN / "e2bfs", "umount", target, env=environment)
    finally:
        subprocess.run(["fusermount3", "-uz", str(target)], stderr=subprocess.DEVNULL, check=False)
        old.stop()
        shutil.rmtree(base, ignore_errors=True)


def test_a_log_has_no_secrets(cloud):
    target, log = cloud.scratch / "mnt-log", cloud.scratch / "debug.log"
    target.mkdir()
    environment = cloud_environment(cloud)
    run(BIN / "e2bfs", "mount", "running1", target, "-d", "-o", f"log_file={log}", env=environment)
    (target / "logged").write_text("the content of the file")
    (target / "logged").read_text()
    run(BIN / "e2bfs", "umount", target, env=environment)
    text = log.read_text(errors="replace")
    assert len(text) > 200
    for secret in (KEY, TOKEN, "the content of the file"):
        assert secret not in text
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    # envd logs unary requests and command lines: neither content nor secret is in them.
    assert "the content of the file" not in (cloud.scratch / "sandbox.log").read_text(errors="replace")


def test_list_asks_the_control_plane(cloud):
    found = json.loads(run(BIN / "e2bfs", "list", "--json", env=cloud_environment(cloud)).stdout)
    sandboxes = {each["id"]: each for each in found["sandboxes"]}
    assert sandboxes.keys() == {"running1", "paused1"}
    assert sandboxes["running1"]["state"] == "running" and 0 < sandboxes["running1"]["seconds_left"] <= 3600
    assert sandboxes["running1"]["template"] and isinstance(sandboxes["running1"]["metadata"], dict)
    text = run(BIN / "e2bfs", "list", env=cloud_environment(cloud)).stdout
    assert "running1" in text and "paused1" in text


def test_a_paused_sandbox_is_listed_as_such_and_life_is_extended_only_when_asked():
    if ENVD_URL:
        pytest.skip("needs a control plane: a real envd has none")
    base = tempfile.mkdtemp(prefix="e2bfs-cloud.")
    cloud = Double(base, "--api-key", KEY, "--token", TOKEN, "--instance", "running2", "--instance", "paused2:paused", "--edge-routing")
    try:
        environment = cloud_environment(cloud)
        target = cloud.scratch / "mnt-life"
        target.mkdir()

        def listed(sandbox):
            found = json.loads(run(BIN / "e2bfs", "list", "--json", env=environment).stdout)["sandboxes"]
            return next(each for each in found if each["id"] == sandbox)

        assert listed("paused2")["state"] == "paused"
        before = listed("running2")["ends_at"]
        run(BIN / "e2bfs", "mount", "running2", target, env=environment)
        run(BIN / "e2bfs", "umount", target, env=environment)
        assert listed("running2")["ends_at"] == before
        run(BIN / "e2bfs", "mount", "running2", target, "-o", "timeout=86400", env=environment)
        run(BIN / "e2bfs", "umount", target, env=environment)
        assert listed("running2")["seconds_left"] > 86000
    finally:
        cloud.stop()
        shutil.rmtree(base, ignore_errors=True)


def test_the_key_as_a_credential_of_systemd(cloud):
    environment = cloud_environment(cloud)
    del environment["E2B_API_KEY"]
    credentials = cloud.scratch / "credentials"
    credentials.mkdir(mode=0o700)
    (credentials / "e2b_api_key").write_text(KEY + "\n")
    assert "running1" in run(BIN / "e2bfs", "list", env={**environment, "CREDENTIALS_DIRECTORY": str(credentials)}).stdout


def test_what_the_control_plane_refuses(cloud):
    target = cloud.scratch / "refused"
    target.mkdir()
    environment = cloud_environment(cloud)
    fails(cloud, SANDBOX, ["unknown1"], "mount", "unknown1", target, env={**environment, "E2B_DEBUG": ""})
    fails(cloud, CREDENTIALS, ["key"], "mount", "running1", target,
          env={**environment, "E2B_DEBUG": "", "E2B_API_KEY": KEY.replace("0", "f")})
    fails(cloud, CREDENTIALS, ["key"], "mount", "running1", target, env={**environment, "E2B_DEBUG": "", "E2B_API_KEY": "rubbish"})
    assert not is_mounted(target)


def test_the_key_of_the_e2b_tool(cloud):
    environment = cloud_environment(cloud)
    del environment["E2B_API_KEY"]
    configuration = cloud.scratch / "home/.e2b"
    configuration.mkdir(exist_ok=True)
    for content in ({"version": 2, "projectApiKey": KEY}, {"version": 1, "teamApiKey": KEY}):
        (configuration / "config.json").write_text(json.dumps(content))
        assert "running1" in run(BIN / "e2bfs", "list", env=environment).stdout
    (configuration / "config.json").unlink()


def test_umount_waits_and_reports(double):
    mount = Mount(double, "umounted")
    try:
        (mount.path / "f").write_text("x")
        with open(mount.path / "g", "w") as held:
            held.write("open while it is unmounted")
            held.flush()
            busy = mount.umount(check=False)
            assert busy.returncode != 0 and "busy" in busy.stderr, busy.stderr
        mount.umount()
        assert not is_mounted(mount.path)
        assert (mount.inside / "g").read_text() == "open while it is unmounted"
    finally:
        mount.close()
