"""The e2bfs command as its user meets it: exit statuses, one clear line for each mistake, secrets, the control plane."""
import contextlib, ctypes, fcntl, getpass, json, os, pathlib, pty, re, shutil, signal, socket, socketserver, stat, subprocess, tempfile, termios
import threading, time, urllib.parse

import pytest

from conftest import BIN, ENVD_URL, MOUNT_OPTIONS, PATIENCE, PROTOCOL, SANDBOX, TOOL_ENVIRONMENT, Double, Mount, digest_tree, eventually, is_mounted, run
from test_tools import make_tree

FAILURE, USAGE, CREDENTIALS, NO_SANDBOX, NETWORK, MOUNT_POINT, FUSE_MISSING, UNSENT, REMOTE_PATH = range(1, 10)
KEY = "e2b_0123456789abcdef0123456789abcdef01234567"
TOKEN = "secret-token-of-the-sandbox"
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes other users, or changes what is mounted")


def own_namespace():
    """Of mounts; not where / is no mount point, as after a mere chroot."""
    if subprocess.run(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL, check=False).returncode != 0:
        pytest.skip("no mount namespace of its own can be made here: the machine's devices cannot be replaced")


def as_user(number):
    return ["setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups"]


def fails(double, status, words, *arguments, env=None, by=(BIN / "e2bfs",)):
    """e2bfs ends with that status and one line on stderr that has these words; nothing is mounted."""
    done = run(*by, *arguments, env={**double.environment(), **(env or {})}, check=False)
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
    fails(double, NO_SANDBOX, ["other", "E2B_DEBUG"], "mount", f"other:{double.root}", target)
    fails(double, USAGE, ["user=nobody-of-that-name"], "mount", good, target, "-o", "user=nobody-of-that-name")
    fails(double, USAGE, ["user=nobody-of-that-name"], "mount", good, target, "-o", "user=nobody-of-that-name,tier=service")
    if not ENVD_URL:
        double.reset_counts()
    for option in ("timeout=3600", "keep_alive,timeout=3600"):
        fails(double, USAGE, [option.split("=")[0].split(",")[0], "E2B_DEBUG"], "mount", good, target, "-o", option)
    assert ENVD_URL or double.counts()["total_requests"] == 0
    fails(double, USAGE, ["SSL_CERT_FILE", "/nowhere"], "mount", good, target, env={"SSL_CERT_FILE": "/nowhere"})
    assert not is_mounted(target)


def test_mistakes_with_the_test_sandbox(scratch):
    for arguments, words in ((["--envd-version", "foo"], ["--envd-version", "foo"]), (["--instance", "x:bogus"], ["--instance", "x:bogus"]),
                             (["--instance", ":paused"], ["--instance"]), (["--nonsense"], ["--nonsense"])):
        done = run(SANDBOX, "--root", scratch, "--listen", "127.0.0.1:0", *arguments, check=False, timeout=10)  # not stopped if it starts
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stdout == "", done
        assert all(word in done.stderr for word in words), done.stderr
    assert "/_test/faults" in run(SANDBOX, "--help").stdout


def test_a_busy_mount_point(shared_mount, double):
    fails(double, MOUNT_POINT, [str(shared_mount.path), "mounted"], "mount", f"debug_sandbox_id:{double.root}", shared_mount.path)


@needs_root
def test_a_mount_point_that_hangs_is_busy_without_being_asked(double):
    """Such as a dead sshfs: looking at it would wait for ever."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = double.scratch / "hangs"
    target.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        assert libc.mount(b"nobody", bytes(target), b"fuse.hangs", 0, options.encode()) == 0, os.strerror(ctypes.get_errno())
        try:
            fails(double, MOUNT_POINT, [str(target), "busy", "nobody"], "mount", f"debug_sandbox_id:{double.root}", target)
        finally:
            libc.umount2(bytes(target), 2)
    finally:
        os.close(device)


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


def test_a_private_authority_in_a_directory(double, scratch):
    if ENVD_URL:
        pytest.skip("no certificate of our own in this run")
    target, named, empty = scratch / "directory", scratch / "authorities", scratch / "no-authorities"
    for each in (target, named, empty):
        each.mkdir()
    shutil.copy(double.certificate, named / (run("openssl", "x509", "-hash", "-noout", "-in", double.certificate).stdout.strip() + ".0"))
    environment = {**double.environment(), "E2B_SANDBOX_URL": double.tls_url, "SSL_CERT_DIR": str(named)}
    by = ["env", "-u", "SSL_CERT_FILE", BIN / "e2bfs"]
    for protocol in ("auto", "http1"):
        arguments = ["mount", f"debug_sandbox_id:{double.root}", target, "-o", f"protocol={protocol}"]
        for directories in (named, f"/nowhere:{empty}:{named}"):  # a list, as OpenSSL reads it
            run(*by, *arguments, env={**environment, "SSL_CERT_DIR": str(directories)})
            run(*by, "umount", target, env=environment)
        fails(double, NETWORK, ["certificate"], *arguments, env={**environment, "SSL_CERT_DIR": str(empty)}, by=by)
    fails(double, USAGE, ["SSL_CERT_DIR", "/nowhere:/nowhere-else"], *arguments, env={**environment, "SSL_CERT_DIR": "/nowhere:/nowhere-else"}, by=by)
    assert not is_mounted(target)


class Proxy(socketserver.ThreadingTCPServer):
    """An HTTP proxy for one origin of this machine, whatever name it is asked for by; `seen` has the first line of each connection."""
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), None)
        self.seen = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def finish_request(self, client, _):
        head = b""
        while b"\r\n\r\n" not in head and (piece := client.recv(65536)):
            head += piece
        self.seen.append(head.decode(errors="replace").splitlines()[0])
        method, named = self.seen[-1].split()[:2]
        with socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(named if "://" in named else "//" + named).port)) as origin:
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                origin.sendall(head)
            back = threading.Thread(target=self.copy, args=(origin, client), daemon=True)
            back.start()
            self.copy(client, origin)
            back.join()

    @staticmethod
    def copy(source, target):
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxies_of_the_environment(double, scratch, scheme):
    if ENVD_URL:
        pytest.skip("needs a sandbox with and without TLS")
    inside, target = double.root / f"by-{scheme}-proxy", scratch / f"by-{scheme}-proxy"
    inside.mkdir()
    target.mkdir()
    url = double.url if scheme == "http" else double.tls_url

    def works(environment, name):
        run(BIN / "e2bfs", "mount", f"debug_sandbox_id:{inside}", target, env=environment)
        try:
            (target / name).write_text(name)
            assert (inside / name).read_text() == name
        finally:
            run(BIN / "e2bfs", "umount", target, env=environment)

    with Proxy() as proxy:
        environment = {**double.environment(), "E2B_SANDBOX_URL": url, f"{scheme}_proxy": proxy.url}
        works({**environment, "no_proxy": "127.0.0.1,localhost"}, "past-it")
        assert proxy.seen == []
        if scheme == "http":  # a name that only the proxy knows: nothing goes past it
            url = f"http://sandbox.invalid:{urllib.parse.urlsplit(url).port}"
        works({**environment, "E2B_SANDBOX_URL": url}, "by-it")
        asked = f"CONNECT {urllib.parse.urlsplit(url).netloc} " if scheme == "https" else f"POST {url}/"
        assert [line for line in proxy.seen if line.startswith(asked)], proxy.seen
        proxy.shutdown()
    closed = {**environment, "E2B_SANDBOX_URL": url, f"{scheme}_proxy": "http://127.0.0.1:1"}
    fails(double, NETWORK, ["connect", "127.0.0.1"], "mount", f"debug_sandbox_id:{inside}", target, env=closed)
    assert not is_mounted(target)


@needs_root
def test_a_machine_without_fuse(double, scratch):
    own_namespace()
    target, devices = scratch / "without-fuse", scratch / "devices"
    target.mkdir()
    devices.mkdir()
    script = f"""mount -t tmpfs -o mode=755 devices {devices}
        for name in null zero random urandom; do : >{devices}/$name; mount --bind /dev/$name {devices}/$name; done
        mount --rbind {devices} /dev
        exec "$@" """
    fails(double, FUSE_MISSING, ["/dev/fuse is missing"], "mount", f"debug_sandbox_id:{double.root}", target,
          by=["unshare", "--mount", "sh", "-ec", script, "sh", BIN / "e2bfs"])
    fails(double, FUSE_MISSING, ["root", "mount"], "mount", f"debug_sandbox_id:{double.root}", target,
          by=["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", BIN / "e2bfs"])


@pytest.fixture(scope="module")
def reachable():
    """A double whose mount points every user of this machine can get at."""
    base = pathlib.Path(tempfile.mkdtemp(prefix="e2bfs-reachable."))
    base.chmod(0o755)
    made = Double(base)
    yield made
    made.stop()
    shutil.rmtree(base, ignore_errors=True)


@needs_root
@pytest.mark.parametrize("option", ["rw", "allow_root", "allow_other"])
def test_who_may_use_a_mount_of_root(reachable, option):
    mount = Mount(reachable, option, [option, "attr_timeout=60"])
    try:
        (mount.path / "f").write_text("content")
        (reachable.scratch / "beside").write_text("content")
        run(*as_user(NOBODY), "cat", reachable.scratch / "beside")
        absent = ["stat", mount.path / "absent"]
        assert "No such file" in run(*absent, check=False).stderr
        # With allow_root others may find out which names there are, and no more.
        assert ("Permission denied" if option == "rw" else "No such file") in run(*as_user(NOBODY), *absent, check=False).stderr
        (mount.path / "d").mkdir()
        inside_d = subprocess.Popen(["sh", "-c", "echo there; read line; exec pwd -P"], cwd=mount.path / "d", stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE, text=True)
        assert inside_d.stdout.readline() == "there\n"
        run(*as_user(NOBODY), "ls", mount.path / "d", check=False)
        run(*as_user(NOBODY), "stat", mount.path / "d", check=False)
        # Who was refused took nothing from who was not.
        assert inside_d.communicate("go on\n")[0] == f"{mount.path}/d\n"
        for command in (["cat", mount.path / "f"], ["stat", mount.path / "f"], ["ls", mount.path], ["stat", mount.path], ["touch", mount.path / "g"]):
            run(*command)  # so that the kernel knows it, and could tell others
            done = run(*as_user(NOBODY), *command, check=False)
            assert done.returncode == 0 if option == "allow_other" else "Permission denied" in done.stderr, (command, done)
        if option != "rw":  # a descriptor that was given on, up to the file's end
            with open(mount.path / "f") as opened:
                assert subprocess.run([*as_user(NOBODY), "dd", "status=none"], stdin=opened, stdout=subprocess.PIPE, check=False).stdout == b"content"
        # Without an option the kernel wants the mounting user's groups too.
        of_another_group = run("setpriv", f"--regid={NOBODY}", "--clear-groups", "cat", mount.path / "f", check=False)
        assert of_another_group.stdout == ("" if option == "rw" else "content"), of_another_group
    finally:
        mount.close()


class OrdinaryUser:
    """Uid 65534 with an e2bfs and directories of its own, in a mount namespace where /dev/fuse is open to every user, as distributions have it."""

    def __init__(self, double):
        self.double = double
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="ordinary-", dir=double.scratch))
        self.base.chmod(0o755)
        self.target = self.base / "mnt"
        for name in ("mnt", "home", "run", "state"):
            (self.base / name).mkdir(mode=0o700)
            os.chown(self.base / name, NOBODY, NOBODY)
        shutil.copy(BIN / "e2bfs", self.base / "e2bfs")
        (self.base / "e2bfs").chmod(0o755)
        self.log = self.base / "state/log"
        self.environment = {**double.environment(), "HOME": str(self.base / "home"), "XDG_RUNTIME_DIR": str(self.base / "run"),
                            "XDG_STATE_HOME": str(self.base / "state"), "XDG_CACHE_HOME": str(self.base / "cache")}
        if double.certificate:
            self.environment["SSL_CERT_FILE"] = str(shutil.copy(double.certificate, self.base))
            os.chmod(self.environment["SSL_CERT_FILE"], 0o644)
        self.options = [f"log_file={self.log}"] + (["user=" + getpass.getuser()] if ENVD_URL else [])
        self.space = subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo made; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      text=True)
        assert self.space.stdout.readline() == "made\n"
        self.enter = ["nsenter", f"--mount=/proc/{self.space.pid}/ns/mnt"]
        (self.base / "own").mkdir()
        self.as_root("mount", "-t", "tmpfs", "-o", "mode=755", "own", self.base / "own")
        self.let_fuse(0o666)

    def as_root(self, *command, **more):
        return run(*self.enter, *command, **more)

    def let_fuse(self, mode):
        """/dev/fuse has that mode, in the namespace."""
        self.as_root("mknod", self.base / f"own/fuse-{mode:o}", "c", "10", "229")
        self.as_root("chmod", f"{mode:o}", self.base / f"own/fuse-{mode:o}")
        self.as_root("mount", "--bind", self.base / f"own/fuse-{mode:o}", "/dev/fuse")

    def run(self, *command, **more):
        return run(*self.enter, *as_user(NOBODY), *command, env=self.environment, **more)

    def e2bfs(self, *arguments, **more):
        return self.run(self.base / "e2bfs", *arguments, **more)

    def mount_arguments(self, inside, *options):
        return ["mount", f"debug_sandbox_id:{inside}", self.target, "-o", ",".join([*self.options, *options])]

    def fails(self, status, words, *arguments, before=()):
        return fails(self.double, status, words, *arguments, env=self.environment, by=[*self.enter, *as_user(NOBODY), *before, self.base / "e2bfs"])

    def mounts(self):
        return [line for line in open(f"/proc/{self.space.pid}/mounts") if line.split()[1] == str(self.target)]

    def close(self):
        subprocess.run([*self.enter, "fusermount3", "-uz", str(self.target)], stderr=subprocess.DEVNULL, check=False)
        self.space.communicate()
        log = self.log.read_text(errors="replace") if self.log.exists() else ""
        assert not re.search(r"Sanitizer|terminate called|Assertion", log), log


@pytest.fixture
def ordinary(reachable):
    own_namespace()
    made = OrdinaryUser(reachable)
    yield made
    made.close()


@needs_root
def test_a_mount_of_an_ordinary_user(ordinary):
    inside = ordinary.double.root / "ordinary"
    inside.mkdir()
    ordinary.e2bfs(*ordinary.mount_arguments(inside))
    (mounted,) = ordinary.mounts()
    assert f"user_id={NOBODY}" in mounted and "allow_other" not in mounted, mounted
    ordinary.run("sh", "-c", 'echo written >"$1/f"; mkdir "$1/d"; mv "$1/f" "$1/d/g"', "sh", ordinary.target)
    assert (inside / "d/g").read_text() == "written\n"
    (inside / "h").write_text("made inside")
    eventually(lambda: ordinary.run("cat", ordinary.target / "h", check=False).stdout == "made inside", "it is seen through the mount")
    assert ordinary.run("stat", "-c", "%u:%g", ordinary.target / "h").stdout == f"{NOBODY}:{NOBODY}\n"
    status = json.loads(ordinary.e2bfs("status", "--json", ordinary.target).stdout)
    assert status["mountpoint"] == str(ordinary.target) and status["dirty_bytes"] == 0
    found = json.loads(ordinary.e2bfs("list", "--json", "--mounts").stdout)["mounts"]
    assert [each["state"] for each in found if each["mountpoint"] == str(ordinary.target)] == ["mounted"]
    ordinary.e2bfs("umount", ordinary.target)
    assert ordinary.mounts() == []


@needs_root
def test_an_ordinary_user_lets_root_in_and_nobody_else(ordinary):
    if not os.path.exists("/etc/fuse.conf"):
        pytest.skip("no /etc/fuse.conf to put another in place of")
    inside = ordinary.double.root / "let-in"
    inside.mkdir()
    (inside / "f").write_text("content")
    refusing, allowing = ordinary.base / "refusing.conf", ordinary.base / "allowing.conf"
    refusing.write_text("")
    allowing.write_text("user_allow_other\n")
    ordinary.as_root("mount", "--bind", refusing, "/etc/fuse.conf")
    ordinary.fails(MOUNT_POINT, ["allow_root", "user_allow_other"], *ordinary.mount_arguments(inside, "allow_root"))
    assert ordinary.mounts() == []
    ordinary.as_root("mount", "--bind", allowing, "/etc/fuse.conf")
    ordinary.e2bfs(*ordinary.mount_arguments(inside, "allow_root", "attr_timeout=60"))
    ordinary.target.chmod(0o755)
    assert ordinary.as_root("cat", ordinary.target / "f").stdout == "content"
    for command in (["cat", ordinary.target / "f"], ["stat", ordinary.target / "f"], ["ls", ordinary.target]):
        ordinary.run(*command)
        third = ordinary.as_root(*as_user(NOBODY - 1), *command, check=False)
        assert third.returncode != 0 and "Permission denied" in third.stderr, (command, third)
    ordinary.e2bfs("umount", ordinary.target)


@needs_root
def test_what_an_ordinary_user_lacks(ordinary):
    arguments = ordinary.mount_arguments(ordinary.double.root)
    ordinary.fails(FUSE_MISSING, ["fusermount3 is missing"], *arguments, before=["env", "PATH=/nowhere"])
    os.chown(ordinary.target, 0, 0)
    ordinary.target.chmod(0o755)
    if not ENVD_URL:
        ordinary.double.reset_counts()
    ordinary.fails(MOUNT_POINT, [str(ordinary.target), "not writable"], *arguments)
    assert ENVD_URL or ordinary.double.counts()["requests"] == {}
    ordinary.let_fuse(0o600)
    ordinary.fails(FUSE_MISSING, ["/dev/fuse", "permission denied"], *arguments)
    assert ordinary.mounts() == []


def test_status(shared_mount, double):
    (shared_mount.path / "f").write_text("hello")
    status = shared_mount.status()
    assert status["sandbox"] == "debug_sandbox_id"
    assert status["mountpoint"] == str(shared_mount.path)
    tier, reason = ("service", "asked for") if "tier=service" in MOUNT_OPTIONS else ("syscall", "")
    assert status["tier"] == tier and status["tier_reason"] == reason
    assert re.match(r"\d+\.\d+\.\d+|debug$", status["envd_version"])
    assert status["dirty_bytes"] == 0
    assert status["requests"] > 0
    if not ENVD_URL:
        assert status["protocol"] == ("http/1.1" if PROTOCOL == "http1" else "h2")
    text = shared_mount.e2bfs("status", shared_mount.path).stdout
    assert "debug_sandbox_id" in text and tier in text


# A perl that does not run the program, as a script for sh; none: there is no perl.
PERLS = {"none": None, "one that fails": "echo no perl here >&2; exit 1", "one that is killed": "kill -9 $$", "one that says something else": "echo this is not it",
         "one that never answers": "exec cat >/dev/null"}


@pytest.mark.parametrize("perl", PERLS)
def test_a_sandbox_where_perl_does_not_run(tmp_path, perl):
    """The service tier, and status says why; who asks for the syscall tier gets an error."""
    if ENVD_URL:
        pytest.skip("chooses the sandbox's programs: a real envd has its own")
    programs = tmp_path / "programs"
    programs.mkdir()
    for place in ("/usr/bin", "/bin"):
        for name in os.listdir(place):
            if not name.startswith("perl") and not (programs / name).exists():
                (programs / name).symlink_to(f"{place}/{name}")
    if PERLS[perl]:
        (programs / "perl").write_text(f"#!/bin/sh\n{PERLS[perl]}\n")
        (programs / "perl").chmod(0o755)
    double = Double(tmp_path, f"--command-path={programs}")
    try:
        mount = Mount(double, "m")
        try:
            status = mount.status()
            assert status["tier"] == "service" and status["tier_reason"], status
            (mount.path / "f").write_text("content")
            assert (mount.inside / "f").read_text() == "content"
            assert status["tier_reason"] in mount.e2bfs("status", mount.path).stdout
        finally:
            mount.close()
        silent = perl.endswith("never answers")
        said = "did not answer" if silent else "perl"
        assert "the syscall server" in status["tier_reason"] and said in status["tier_reason"]
        fails(double, NETWORK if silent else FAILURE, ["tier=syscall", "does not work", said], "mount", f"debug_sandbox_id:{mount.inside}", mount.path, "-o", "tier=syscall")
        assert not is_mounted(mount.path)
    finally:
        double.stop()


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


def test_in_the_foreground_what_cannot_be_sent_is_put_aside(faulty):
    """Unlike umount, SIGTERM unmounts in any case: exit status 8 with the place."""
    inside, target = faulty.root / "foreground", faulty.scratch / "foreground"
    inside.mkdir()
    target.mkdir()
    process = subprocess.Popen([str(BIN / "e2bfs"), "mount", "-f", f"debug_sandbox_id:{inside}", str(target), "-o", "drain_timeout=1"],
                               stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**TOOL_ENVIRONMENT, **faulty.environment()})
    eventually(lambda: is_mounted(target) or process.poll() is not None, "it is mounted")
    held = os.open(target / "f", os.O_WRONLY | os.O_CREAT)
    os.write(held, b"x" * 200_000)
    faulty.fault(match="", action="stall_request", count=-1)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=PATIENCE)[1]
    with contextlib.suppress(OSError):  # the mount is gone
        os.close(held)
    assert process.returncode == UNSENT and not is_mounted(target), errors
    (place,) = set(re.findall(r"put aside in (\S+)", errors))
    assert ["x" * 200_000] == [each.read_text() for each in pathlib.Path(place).iterdir() if each.name != "UNSENT.txt" and each.suffix != ".note"]
    assert "put aside" in re.search(r"\n  8 (.*?)\n  9 ", run(BIN / "e2bfs", "--help").stdout, re.DOTALL)[1]


@pytest.mark.parametrize("log_file", [True, False], ids=["log_file", "no log_file"])
@pytest.mark.parametrize("foreground", [True, False], ids=["foreground", "background"])
def test_what_d_says_goes_where_messages_go(double, scratch, foreground, log_file):
    """libfuse's trace, too: never on the terminal of a mount in the background."""
    environment = double.environment()
    inside, target, log = double.root / "debug", scratch / "debug", pathlib.Path(environment["XDG_STATE_HOME"]) / "e2bfs/e2bfs.log"
    for each in (inside, target, log.parent):
        each.mkdir(mode=0o700, exist_ok=True)
    if log_file:
        log = scratch / f"debug-{foreground}.log"
    log.write_text("")
    options = ([f"log_file={log}"] if log_file else []) + (["user=" + os.environ.get("USER", "root")] if ENVD_URL else ["rw"])
    process = subprocess.Popen([str(BIN / "e2bfs"), "mount", *(["-f"] if foreground else []), "-d", f"debug_sandbox_id:{inside}", str(target), "-o", ",".join(options)],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**TOOL_ENVIRONMENT, **environment})
    eventually(lambda: is_mounted(target) or process.poll() not in (None, 0), "it is mounted")
    os.stat(target)
    run(BIN / "e2bfs", "umount", target, env=environment)
    said, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and said == "", (said, errors)
    shown, silent = (errors, log.read_text()) if foreground and not log_file else (log.read_text(), errors)
    assert re.search(r"debug libfuse: +unique: \d+.*opcode: GETATTR", shown), shown[:2000]
    assert silent == ""


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


def listed(environment, sandbox):
    found = json.loads(run(BIN / "e2bfs", "list", "--json", env=environment).stdout)["sandboxes"]
    return next(each for each in found if each["id"] == sandbox)


def test_a_paused_sandbox_is_listed_as_such_and_life_is_extended_only_when_asked():
    if ENVD_URL:
        pytest.skip("needs a control plane: a real envd has none")
    base = tempfile.mkdtemp(prefix="e2bfs-cloud.")
    cloud = Double(base, "--api-key", KEY, "--token", TOKEN, "--instance", "running2", "--instance", "paused2:paused", "--edge-routing")
    try:
        environment = cloud_environment(cloud)
        target = cloud.scratch / "mnt-life"
        target.mkdir()
        assert listed(environment, "paused2")["state"] == "paused"
        run(BIN / "e2bfs", "mount", "paused2", target, env=environment)
        run(BIN / "e2bfs", "umount", target, env=environment)
        assert 280 < listed(environment, "paused2")["seconds_left"] <= 300
        # What the mount's user has to know beforehand.
        assert "300 seconds" in " ".join(run(BIN / "e2bfs", "mount", "--help").stdout.split())
        before = listed(environment, "running2")["ends_at"]
        run(BIN / "e2bfs", "mount", "running2", target, env=environment)
        run(BIN / "e2bfs", "umount", target, env=environment)
        assert listed(environment, "running2")["ends_at"] == before
        run(BIN / "e2bfs", "mount", "running2", target, "-o", "timeout=86400", env=environment)
        run(BIN / "e2bfs", "umount", target, env=environment)
        assert listed(environment, "running2")["seconds_left"] > 86000
    finally:
        cloud.stop()
        shutil.rmtree(base, ignore_errors=True)


def test_keep_alive_extends_life_as_long_as_the_mount_is_there():
    if ENVD_URL:
        pytest.skip("needs a control plane: a real envd has none")
    base = tempfile.mkdtemp(prefix="e2bfs-cloud.")
    cloud = Double(base, "--api-key", KEY, "--token", TOKEN, "--instance", "kept1:paused", "--edge-routing")
    try:
        environment = cloud_environment(cloud)
        target = cloud.scratch / "mnt-kept"
        target.mkdir()
        run(BIN / "e2bfs", "mount", "kept1", target, "-o", "timeout=30,keep_alive", env=environment)
        resumed = listed(environment, "kept1")["ends_at"]
        assert resumed <= time.time() + 30
        eventually(lambda: listed(environment, "kept1")["ends_at"] > resumed + 10, "half of it is over: it is extended", timeout=30)
        run(BIN / "e2bfs", "umount", target, env=environment)
    finally:
        subprocess.run(["fusermount3", "-uz", str(target)], stderr=subprocess.DEVNULL, check=False)
        cloud.stop()
        shutil.rmtree(base, ignore_errors=True)


def test_what_fails_here_extends_no_life(cloud):
    environment = cloud_environment(cloud)
    target, file, spool = cloud.scratch / "mnt-fails", cloud.scratch / "a-file", cloud.scratch / "open-spool"
    target.mkdir()
    file.write_text("")
    spool.mkdir()
    spool.chmod(0o755)
    before = listed(environment, "running1")["ends_at"]

    def fails_unasked(status, words, at, *options):
        cloud.reset_counts()
        fails(cloud, status, words, "mount", "running1", at, "-o", ",".join(["timeout=3600", *options]), env={**environment, "E2B_DEBUG": ""})
        assert cloud.counts()["requests"] == {}

    fails_unasked(MOUNT_POINT, [str(file), "directory"], file)
    fails_unasked(MOUNT_POINT, [str(target / "absent")], target / "absent")
    fails_unasked(FAILURE, [str(spool), "other users"], target, f"spool_dir={spool}")
    fails_unasked(FAILURE, [str(target / "absent")], target, f"log_file={target}/absent/log")
    run(BIN / "e2bfs", "mount", "running1", target, env=environment)
    try:
        second = run(BIN / "e2bfs", "mount", "running1", target, "-o", "timeout=3600", env=environment, check=False)
        assert second.returncode == MOUNT_POINT and "busy" in second.stderr, second.stderr
    finally:
        run(BIN / "e2bfs", "umount", target, env=environment)
    assert listed(environment, "running1")["ends_at"] == before


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
    fails(cloud, NO_SANDBOX, ["unknown1"], "mount", "unknown1", target, env={**environment, "E2B_DEBUG": ""})
    fails(cloud, CREDENTIALS, ["key"], "mount", "running1", target,
          env={**environment, "E2B_DEBUG": "", "E2B_API_KEY": KEY.replace("0", "f")})
    fails(cloud, CREDENTIALS, ["key"], "mount", "running1", target, env={**environment, "E2B_DEBUG": "", "E2B_API_KEY": "rubbish"})
    for variable, secret in (("E2B_API_URL", "key"), ("E2B_SANDBOX_URL", "token")):
        fails(cloud, USAGE, [variable, secret, "unencrypted"], "mount", "running1", target, env={**environment, "E2B_DEBUG": "", variable: "http://192.0.2.1:1"})
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


def test_umount_waits_for_who_passes_by(double):
    """As a df does that looks at every mount, one round trip long."""
    mount = Mount(double, "passed")
    try:
        descriptor = os.open(mount.path, os.O_PATH)
        passing = threading.Timer(0.7, os.close, [descriptor])
        passing.start()
        mount.umount()
        assert passing.finished.is_set()
    finally:
        mount.close()


def test_umount_ends_what_another_mount_namespace_has_a_copy_of(double):
    """A container or a service that starts meanwhile has one, and would keep the kernel's session, and so the process, for as long as it lives."""
    own_namespace()
    mount = Mount(double, "copied")
    pid = mount.status()["pid"]
    (mount.path / "file").write_text("sent")
    other = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", f"ls {mount.path}; exec sleep 1000"], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "file\n"
        assert mount.umount().returncode == 0
        assert (mount.inside / "file").read_text() == "sent"
        eventually(lambda: not os.path.exists(f"/proc/{pid}") or "State:\tZ" in pathlib.Path(f"/proc/{pid}/status").read_text(), "the mount's process has ended")
        seen = run("nsenter", "--mount", f"--target={other.pid}", "ls", mount.path, check=False)
        assert seen.returncode != 0 and "not connected" in seen.stderr
    finally:
        other.kill()
        other.wait()


def test_umount_on_a_terminal_shows_what_is_left(faulty):
    mount = faulty.mount()
    faulty.fault(match="POST /files", action="status", status=507, body='{"code":507,"message":"not enough disk space"}', count=1)
    faulty.fault(match="POST /files", action="stall_request", count=-1)
    with pytest.raises(OSError):
        (mount.path / "f").write_bytes(b"x" * 200_000)
    main, other = pty.openpty()
    process = subprocess.Popen([str(BIN / "e2bfs"), "umount", str(mount.path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=other,
                               env={**TOOL_ENVIRONMENT, **faulty.environment()})
    os.close(other)
    said = b""
    try:
        while said.count(b"195.3 KiB left to send") < 2:
            said += os.read(main, 4096)
        assert process.poll() is None and is_mounted(mount.path) and (mount.inside / "f").read_bytes() == b""
        faulty.clear_faults()
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(main, 4096):
                said += piece
        assert process.wait(PATIENCE) == 0
        mount.mounted = False
    finally:
        process.kill()
        assert process.communicate()[0] == b""
        os.close(main)
    line = said.split(b"\r\x1b[K")  # each of them clears it
    assert line[0] == line[-1] == b"" and len(line) > 3 and b"\n" not in said, said
    assert not is_mounted(mount.path) and (mount.inside / "f").read_bytes() == b"x" * 200_000
