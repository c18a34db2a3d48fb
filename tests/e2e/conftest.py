"""End to end: the installed programs on a real mount, with real tools.

Environment:
  E2BFS_BIN_DIR          where e2bfs and e2bfs-test-sandbox are (ctest sets it)
  E2BFS_TEST_SANDBOX     another e2bfs-test-sandbox than the one there: sanitizer builds take the plain build's, since a sanitized process
                         takes long to start programs, and can hang in it (the component tests look at the sandbox itself)
  E2BFS_TEST_ENVD_URL    run against this envd in place of the test sandbox; it has to share this machine's files.
                         Tests that inject faults or count requests are skipped then, with that reason.
  E2BFS_TEST_PROTOCOL    "h2" (default: HTTP/2 over TLS), "http1", or "nghttpx": HTTP/2 over TLS by nghttpx in front of the test sandbox, an
                         edge that nobody here wrote
  E2BFS_TEST_MOUNT_OPTIONS   for each mount, with commas between
  E2BFS_SANITIZED        set in sanitizer builds: big files are smaller, repetitions fewer
"""
import ctypes, errno, getpass, hashlib, json, os, pathlib, re, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.parse, urllib.request

import pytest

BIN = pathlib.Path(os.environ.get("E2BFS_BIN_DIR", "/usr/bin"))
SANDBOX = pathlib.Path(os.environ.get("E2BFS_TEST_SANDBOX", BIN / "e2bfs-test-sandbox"))
ENVD_URL = os.environ.get("E2BFS_TEST_ENVD_URL", "")
MOUNT_OPTIONS = [option for option in os.environ.get("E2BFS_TEST_MOUNT_OPTIONS", "").split(",") if option]
PROTOCOL = os.environ.get("E2BFS_TEST_PROTOCOL", "h2")
SANITIZED = bool(os.environ.get("E2BFS_SANITIZED"))
PATIENCE = 120  # seconds that a step may take before a test gives up; far above what it takes

# Unchanged behaviour of git, tar, ls... whatever the machine's settings are.
TOOL_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LC_ALL": "C.UTF-8", "TZ": "UTC",
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.com", "GIT_TERMINAL_PROMPT": "0",
}
for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "SSL_CERT_FILE"):
    if name in os.environ:
        TOOL_ENVIRONMENT[name] = os.environ[name]


def code(call, *arguments, **more):
    """The name of the errno that a call fails with, "ok" if it does not."""
    try:
        call(*arguments, **more)
    except OSError as problem:
        return errno.errorcode[problem.errno]
    return "ok"


def run(*command, check=True, timeout=PATIENCE, env=None, **more):
    """A tool: its output as text; fails the test with everything it said."""
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=timeout, env={**TOOL_ENVIRONMENT, **(env or {})}, **more)
    done.stdout = done.stdout.decode(errors="surrogateescape")
    done.stderr = done.stderr.decode(errors="surrogateescape")
    if check and done.returncode != 0:
        pytest.fail(f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def eventually(condition, what, timeout=PATIENCE):
    """Polls until the condition holds; what it returned last is the result."""
    end = time.monotonic() + timeout
    while True:
        outcome = condition()
        if outcome:
            return outcome
        if time.monotonic() > end:
            pytest.fail(f"did not happen within {timeout} s: {what}")
        time.sleep(0.05)


def digest_tree(top):
    """{relative path: (type, permissions, content digest or link text)} of everything below."""
    top = os.fsencode(top)
    found = {}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest()
            else:
                content = ""
            permissions = 0 if os.path.islink(path) else status.st_mode & 0o7777
            found[os.path.relpath(path, top)] = (status.st_mode & 0o170000, permissions, content)
    return found


class Double:
    """One e2bfs-test-sandbox (or the envd named by the environment) and the directory it serves."""

    def __init__(self, scratch, *arguments):
        self.scratch = pathlib.Path(scratch)
        self.root = self.scratch / "sandbox"
        self.root.mkdir(exist_ok=True)
        self.process = self.edge = None
        self.arguments = arguments
        self.own_urls = None, None
        if ENVD_URL:
            self.url = self.tls_url = ENVD_URL
            self.certificate = None
        else:
            self.certificate = self.scratch / "certificate.pem"
            self.start()

    def start(self):
        errors = open(self.scratch / "sandbox.err", "ab")
        # Again at the same address, which is what tells it from other sandboxes in debug mode.
        plain, secure = (f"127.0.0.1:{urllib.parse.urlsplit(url).port if url else 0}" for url in self.own_urls)
        self.process = subprocess.Popen(
            [str(SANDBOX), "--root", str(self.root), "--listen", plain, "--tls-listen", secure,
             "--certificate-out", str(self.certificate), "--log", str(self.scratch / "sandbox.log"), *self.arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, env=TOOL_ENVIRONMENT)
        errors.close()
        self.url = self.tls_url = None
        while self.url is None or self.tls_url is None:
            line = self.process.stdout.readline()
            if not line:
                pytest.fail("the test sandbox did not start: " + (self.scratch / "sandbox.err").read_text())
            if found := re.search(r"(https?://\S+)", line):
                if found[1].startswith("https"):
                    self.tls_url = found[1]
                else:
                    self.url = found[1]
        self.own_urls = self.url, self.tls_url
        if PROTOCOL == "nghttpx":
            self.start_edge()

    def start_edge(self):
        key, certificate = self.scratch / "edge-key.pem", self.scratch / "edge.pem"
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = open(self.scratch / "edge.log", "ab")
        self.edge = subprocess.Popen(
            ["nghttpx", "--conf=/dev/null", "--single-process", "--workers=1", "--no-ocsp", f"--frontend=127.0.0.1,{port}",
             f"--backend=127.0.0.1,{urllib.parse.urlsplit(self.url).port}", str(key), str(certificate)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**TOOL_ENVIRONMENT, "PATH": TOOL_ENVIRONMENT["PATH"] + ":/usr/sbin"})
        log.close()

        def answers():
            assert self.edge.poll() is None, (self.scratch / "edge.log").read_text()
            with socket.socket() as tried:
                return tried.connect_ex(("127.0.0.1", port)) == 0
        eventually(answers, "nghttpx answers")
        self.tls_url, self.certificate = f"https://localhost:{port}", certificate

    def stop(self):
        if self.edge:
            self.edge.terminate()
            self.edge.wait()
            self.edge = None
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            status = self.process.returncode
            self.process.stdout.close()
            self.process = None
            assert status == 0, f"the test sandbox ended with {status}: " + (self.scratch / "sandbox.err").read_text()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process = None

    def control(self, method, path, body=None):
        request = urllib.request.Request(self.url + path, method=method, data=None if body is None else json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    def fault(self, **fields):
        self.control("POST", "/_test/faults", [fields])

    def clear_faults(self):
        self.control("DELETE", "/_test/faults")

    def reset_counts(self):
        self.control("POST", "/_test/counts")

    def counts(self):
        return self.control("GET", "/_test/counts")

    def environment(self):
        """What e2bfs needs to find it: debug mode, no key and no control plane."""
        url = self.url if PROTOCOL == "http1" or ENVD_URL else self.tls_url
        found = {"E2B_DEBUG": "true", "E2B_SANDBOX_URL": url, "HOME": str(self.scratch / "home"),
                 "XDG_RUNTIME_DIR": str(self.scratch / "run"), "XDG_STATE_HOME": str(self.scratch / "state"),
                 "XDG_CACHE_HOME": str(self.scratch / "cache")}
        for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
            os.makedirs(found[name], mode=0o700, exist_ok=True)
        if self.certificate:
            found["SSL_CERT_FILE"] = str(self.certificate)
        return found


class Mount:
    """One mount of a directory of the double; `path` here, `inside` there."""

    def __init__(self, double, name, options=(), inside=None):
        self.double = double
        self.path = double.scratch / f"mnt-{name}"
        self.inside = double.root / name if inside is None else pathlib.Path(inside)
        self.log = double.scratch / f"mount-{name}.log"
        self.cache = double.scratch / f"cache-{name}"  # its own: tests count requests
        self.path.mkdir(exist_ok=True)
        if inside is None:
            self.inside.mkdir(exist_ok=True)
        self.options = list(options) + MOUNT_OPTIONS + [f"log_file={self.log}"]
        if ENVD_URL:
            self.options.append("user=" + getpass.getuser())
        self.mounted = False
        self.mount()

    def e2bfs(self, *arguments, **more):
        return run(BIN / "e2bfs", *arguments, env={**self.double.environment(), "XDG_CACHE_HOME": str(self.cache)}, **more)

    def mount(self):
        self.e2bfs("mount", f"debug_sandbox_id:{self.inside}", self.path, "-o", ",".join(self.options))
        self.mounted = True

    def umount(self, *arguments, **more):
        done = self.e2bfs("umount", *arguments, self.path, **more)
        if done.returncode == 0:
            self.mounted = False
        return done

    def status(self):
        return json.loads(self.e2bfs("status", "--json", self.path).stdout)

    def close(self):
        if self.mounted:
            self.mounted = False
            try:
                done = self.e2bfs("umount", self.path, check=False, timeout=PATIENCE)
                problem = done.stderr if done.returncode != 0 else ""
            except subprocess.TimeoutExpired:
                problem = f"umount did not end within {PATIENCE} s"
            subprocess.run(["fusermount3", "-uz", str(self.path)], stderr=subprocess.DEVNULL, check=False)
            assert not problem, problem
        log = self.log.read_text(errors="replace") if self.log.exists() else ""
        assert not re.search(r"Sanitizer|terminate called|Assertion", log), log


def is_mounted(path):
    return any(line.split()[1] == str(path) for line in open("/proc/self/mounts"))


def is_dead(pid):
    """All its threads are: its first one may be a zombie while others still hold its files, and with them the lock that says it lives."""
    try:
        return os.listdir(f"/proc/{pid}/task") in ([], [str(pid)]) and open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def pytest_terminal_summary(terminalreporter):
    if SANITIZED:
        terminalreporter.write_line("a shorter run: big files are smaller and repetitions fewer in a sanitizer build")


@pytest.fixture(scope="session", autouse=True)
def fuse_is_here():
    assert os.path.exists("/dev/fuse"), "no /dev/fuse: these tests need real mounts (modprobe fuse, or a machine that has it)"


@pytest.fixture(scope="module")
def scratch():
    path = tempfile.mkdtemp(prefix="e2bfs-e2e.")
    yield pathlib.Path(path)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def double(scratch):
    made = Double(scratch)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared_mount(double):
    """One mount for the tests of a file that do not disturb each other; each works in a directory of its own."""
    made = Mount(double, "shared")
    yield made
    made.close()


class Place:
    """A directory of a test: `here` through the mount, `there` in the sandbox, `local` on the local disk."""

    def __init__(self, mount, name, scratch):
        self.mount, self.double = mount, mount.double
        self.made_there = mount.inside / name
        self.made_there.mkdir()
        self.here = mount.path / name
        self.local = scratch / f"local-{name}"
        self.local.mkdir()
        eventually(lambda: self.here.exists(), "the new directory is seen through the mount")

    @property
    def there(self):
        """Whoever looks there, with -o writeback, looks after it was sent."""
        if "writeback" in MOUNT_OPTIONS:
            self.mount.e2bfs("flush", self.mount.path, check=False)
        return self.made_there


@pytest.fixture
def place(shared_mount, scratch, request):
    return Place(shared_mount, re.sub(r"\W+", "-", request.node.name)[:60].strip("-"), scratch)


@pytest.fixture
def faulty(tmp_path):
    """A double of its own for a test that breaks it; mounts are made by its `mount`."""
    if ENVD_URL:
        pytest.skip("injects faults or counts requests: a real envd cannot")
    base = pathlib.Path(tempfile.mkdtemp(prefix="e2bfs-fault."))
    made = Double(base)
    mounts = []

    def mount(name="m", options=(), inside=None):
        mounts.append(Mount(made, name, options, inside))
        return mounts[-1]

    made.mount = mount
    yield made
    problems = []
    if made.process:
        made.clear_faults()
    for each in mounts:
        try:
            each.close()
        except AssertionError as problem:
            problems.append(str(problem))
    if made.process:
        made.stop()
    shutil.rmtree(base, ignore_errors=True)
    assert not problems, problems


libc = ctypes.CDLL(None, use_errno=True)


def renameat2(source, target, flags):
    """The errno of renameat2(2), 0 for success."""
    outcome = libc.syscall(ctypes.c_long(316 if os.uname().machine == "x86_64" else 276), ctypes.c_int(-100),
                           ctypes.c_char_p(os.fsencode(source)), ctypes.c_int(-100), ctypes.c_char_p(os.fsencode(target)),
                           ctypes.c_uint(flags))
    return ctypes.get_errno() if outcome != 0 else 0
