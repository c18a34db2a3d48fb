#!/usr/bin/env python3
"""Asks a server some 160 questions that an envd answers, and writes the answers down in a form that can be compared.

    envd_probe.py --url http://127.0.0.1:49983 --out answers.json            record
    envd_probe.py --url … --compare ../shared/envd-0.6.13.json               exit 1 and a line per differing answer

The server must share this machine's files, run as root, and know the user named by --user (default: user). Everything
happens below a scratch directory. What differs from run to run is normalised: times are checked against the file itself
and written as "=mtime", paths below the scratch directory start with $ROOT, process ids become "PID". Error messages are
reduced to the errno text at their end, if there is one. Python's standard library only.
"""
import argparse, base64, gzip, http.client, json, os, pwd, re, shutil, struct, sys, tempfile, threading, time, urllib.parse

ERRNO_TEXTS = {os.strerror(e).lower() for e in range(1, 134)}
FS, PROC = "filesystem.Filesystem", "process.Process"
HEADERS_COMPARED = ("Content-Type", "Content-Range", "Content-Encoding", "Accept-Ranges", "Content-Disposition", "Allow")


def parsed(body):
    try:
        return json.loads(body)
    except ValueError:
        return "not JSON"


class Server:
    def __init__(self, url, user, token):
        u = urllib.parse.urlparse(url)
        self.make = lambda timeout=10: (http.client.HTTPSConnection if u.scheme == "https" else http.client.HTTPConnection)(u.hostname, u.port, timeout=timeout)
        self.user, self.token = user, token

    def headers(self, user, extra):
        h = dict(extra or {})
        if user:
            h["Authorization"] = "Basic " + base64.b64encode(f"{user}:".encode()).decode()
        if self.token:
            h["X-Access-Token"] = self.token
        return h

    def request(self, method, target, body=None, headers=None, timeout=10, user=None):
        c = self.make(timeout)
        try:
            c.request(method, target, body=body, headers=self.headers(user, headers))
            r = c.getresponse()
            return r.status, dict(r.getheaders()), r.read()
        finally:
            c.close()

    def rpc(self, service, method, message, user="", headers=None):
        status, _, body = self.request("POST", f"/{service}/{method}", json.dumps(message),
                                       {"Content-Type": "application/json", "Connect-Protocol-Version": "1", **(headers or {})},
                                       user=self.user if user == "" else user)
        return status, parsed(body)

    def stream(self, service, method, message, timeout=10, user="", headers=None):
        """Yields (flags, message) of a server-streaming call; the connection ends with the generator."""
        payload = json.dumps(message).encode()
        c = self.make(timeout)
        try:
            c.request("POST", f"/{service}/{method}", struct.pack(">BI", 0, len(payload)) + payload,
                      self.headers(self.user if user == "" else user,
                                   {"Content-Type": "application/connect+json", "Connect-Protocol-Version": "1", **(headers or {})}))
            r = c.getresponse()
            while len(head := r.read(5)) == 5:
                flags, n = struct.unpack(">BI", head)
                yield flags, json.loads(r.read(n) or b"{}")
        finally:
            c.close()


class Probe:
    def __init__(self, server, root):
        self.s, self.root, self.answers = server, root, {}
        self.uid = pwd.getpwnam(server.user).pw_uid
        self.home = pwd.getpwnam(server.user).pw_dir

    # -- normalising ----------------------------------------------------------------------------------------------
    def text(self, s):
        s = s.replace(self.root, "$ROOT").replace(self.home, "$HOME")
        return "\n".join("$USER" if line == self.s.user else line.replace("$HOME " + self.s.user, "$HOME $USER") for line in s.split("\n"))

    def message(self, m):
        last = m.rsplit(": ", 1)[-1].lower().strip()
        return last if last in ERRNO_TEXTS else "…"

    def clean(self, v, key=""):
        if isinstance(v, dict):
            out = {k: self.clean(x, k) for k, x in v.items()}
            if "modifiedTime" in v:
                out["modifiedTime"] = self.mtime(v)
            if v.get("permissions", "").startswith("L") and os.readlink(v["path"]).startswith(self.root):
                out["size"] = str(int(v["size"]) - len(self.root) + len("/tmp/envd-probe-12345678"))  # as recorded
            if v.get("path") == self.home and "name" in v:
                out["name"] = "$USER"
            if v.get("type") == "FILE_TYPE_DIRECTORY" and not v.get("permissions", "").startswith("L"):
                out.pop("size", None)
            return out
        if isinstance(v, list):
            return [self.clean(x) for x in v]
        if key == "pid":
            return "PID"
        if isinstance(v, str):
            if key == "message":
                return self.message(v)
            if key in ("owner", "group") and v == self.s.user:
                return "$USER"
            return self.text(v)
        return v

    def mtime(self, entry):
        try:
            ns = os.lstat(entry["path"]).st_mtime_ns
        except OSError:
            return "?"
        m = re.fullmatch(r"(.*?)(?:\.(\d{1,9}))?Z", entry["modifiedTime"])
        got = int(__import__("calendar").timegm(time.strptime(m[1], "%Y-%m-%dT%H:%M:%S"))) * 10**9 + int((m[2] or "0").ljust(9, "0"))
        return "=mtime" if got == ns else "differs from mtime"

    # -- asking ---------------------------------------------------------------------------------------------------
    def p(self, name=""):
        return f"{self.root}/{name}" if name else self.root

    def put(self, name, data=b"hello\n", mode=0o644, owner=None):
        path = self.p(name)
        with open(path, "wb") as f:
            f.write(data)
        os.chown(path, *(owner or (self.uid, pwd.getpwuid(self.uid).pw_gid)))
        os.chmod(path, mode)
        return path

    def note(self, case, value):
        assert case not in self.answers, case
        self.answers[case] = self.clean(value)

    def fs(self, case, method, user="", **message):
        status, body = self.s.rpc(FS, method, message, user)
        self.note(case, [status, body])

    def files_target(self, path, user=None):
        return "/files?" + urllib.parse.urlencode({"path": path, "username": user or self.s.user}, quote_via=urllib.parse.quote)

    def get(self, case, path, headers=None, show=True, method="GET"):
        try:
            status, h, body = self.s.request(method, self.files_target(path), headers=headers, timeout=3)
        except TimeoutError:
            return self.note(case, "no answer in 3 s")
        if h.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        kept = {k: self.text(h[k]) for k in HEADERS_COMPARED if k in h and status < 300}
        kept = {k: re.sub(r"boundary=\w+", "boundary=B", v) for k, v in kept.items()}
        value = [status, kept, len(body) if status < 300 and show is True else None, "has Last-Modified" if "Last-Modified" in h else ""]
        if status >= 400 and body[:1] == b"{":
            value.append(parsed(body))
        self.note(case, value)
        return h

    def post(self, case, path, data, content_type="application/octet-stream", headers=None):
        status, _, body = self.s.request("POST", self.files_target(path), data, {"Content-Type": content_type, **(headers or {})})
        self.note(case, [status, parsed(body)])

    def compose(self, case, sources, destination):
        status, _, body = self.s.request("POST", "/files/compose", json.dumps({"source_paths": sources, "destination": destination, "username": self.s.user}),
                                         {"Content-Type": "application/json"})
        self.note(case, [status, parsed(body)])

    def state(self, case, name):
        """What is really on the disk."""
        try:
            st = os.lstat(self.p(name))
        except OSError as e:
            return self.note(case, e.strerror)
        kind = "link" if os.path.islink(self.p(name)) else "dir" if os.path.isdir(self.p(name)) else "file"
        self.note(case, [kind, oct(st.st_mode & 0o7777), "$USER" if st.st_uid == self.uid else st.st_uid, st.st_nlink if kind == "file" else None,
                         open(self.p(name), "rb").read().decode() if kind == "file" and st.st_size < 100 else None])

    def start(self, case, cmd, *args, cwd=None, user="", headers=None, keep=None):
        process = {"cmd": cmd, "args": list(args)}
        if cwd:
            process["cwd"] = cwd
        events, out = [], {"stdout": b"", "stderr": b""}
        for flags, m in self.s.stream(PROC, "Start", {"process": process}, user=user, headers=headers):
            data = m.get("event", {}).get("data")
            if data:
                for k, v in data.items():
                    out[k] += base64.b64decode(v)
            else:
                events.append([flags, m])
        out = {k: v.decode("latin1") for k, v in out.items() if v and keep != "events"}
        self.note(case, [events, out])

    def watch(self, case, name, acts, **options):
        events, ready = [], threading.Event()
        started = []

        def read():
            try:
                for flags, m in self.s.stream(FS, "WatchDir", {"path": self.p(name), **options}, timeout=3):
                    e = m.get("filesystem")
                    events.append([e["name"], e["type"], "entry" in e] if e else [flags, m])
                    started.append(1), ready.set()
            except (TimeoutError, OSError):
                events.append("stays open")
            ready.set()

        t = threading.Thread(target=read)
        t.start()
        ready.wait(30)
        time.sleep(0.2)
        acts()
        t.join(60)
        self.note(case, events)

    # -- the questions --------------------------------------------------------------------------------------------
    def reading(self):
        self.put("f", b"0123456789" * 1000)
        self.put("empty", b"")
        f, empty = self.p("f"), self.p("empty")
        modified = self.get("get", f)["Last-Modified"]
        old = "Mon, 01 Jan 2001 00:00:00 GMT"
        self.get("get range", f, {"Range": "bytes=10-19"})
        self.get("get range open end", f, {"Range": "bytes=9990-"})
        self.get("get range suffix", f, {"Range": "bytes=-5"})
        self.get("get range over the end", f, {"Range": "bytes=9990-20000"})
        self.get("get range past the end", f, {"Range": "bytes=20000-"})
        self.get("get two ranges", f, {"Range": "bytes=10-19,30-39"}, show=False)
        self.get("get range of an empty file", empty, {"Range": "bytes=0-99"})
        self.get("get empty", empty)
        self.get("get gzip", f, {"Accept-Encoding": "gzip"})
        self.get("get gzip with range", f, {"Accept-Encoding": "gzip", "Range": "bytes=10-19"})
        self.get("if-range same", f, {"If-Range": modified, "Range": "bytes=10-19"})
        self.get("if-range other", f, {"If-Range": old, "Range": "bytes=10-19"})
        self.get("if-unmodified-since, modified", f, {"If-Unmodified-Since": old, "Range": "bytes=10-19"})
        self.get("if-modified-since, same", f, {"If-Modified-Since": modified})
        self.get("head", f, method="HEAD")
        self.get("get missing", self.p("nope"))
        self.get("get below a file", self.p("f/x"))
        self.get("get directory", self.root)
        self.get("get proc plain", "/proc/self/status")
        self.get("get proc gzip", "/proc/cpuinfo", {"Accept-Encoding": "gzip"}, show=False)
        os.mkfifo(self.p("fifo"))
        self.get("get fifo", self.p("fifo"))
        self.put("secret", b"root only", 0o600, (0, 0))
        self.get("get a file of root's", self.p("secret"))
        raw = self.p("raw").encode() + b"\xff\xfe"
        open(raw, "wb").write(b"raw name")
        self.get("get non-UTF-8 name", raw)
        os.unlink(raw)

    def looking(self):
        for link, target in (("link", "f"), ("dangling", "nowhere"), ("linkdir", "d"), ("loop", "loop"), ("absolute", self.p("d"))):
            os.symlink(target, self.p(link))
        os.mkdir(self.p("d"))
        os.chmod(self.p("d"), 0o3775)
        self.put("suid", b"x", 0o4755)
        for name in ("f", "empty", "link", "dangling", "linkdir", "loop", "absolute", "d", "suid", "fifo", "nope", "f/x", "d/../f", "./f"):
            self.fs("stat " + name, "Stat", path=self.p(name))
        self.fs("stat a device", "Stat", path="/dev/null")
        self.fs("list", "ListDir", path=self.root, depth=1)
        self.fs("list depth 0", "ListDir", path=self.p("d"), depth=0)
        self.fs("list through a link", "ListDir", path=self.p("linkdir"), depth=1)
        self.fs("list a file", "ListDir", path=self.p("f"), depth=1)
        self.fs("list missing", "ListDir", path=self.p("nope"), depth=1)
        os.makedirs(self.p("deep/a/b/c"))
        self.put("deep/a/b/c/z")
        os.symlink("../a", self.p("deep/back"))
        for depth in (1, 2, 3, 99):
            _, body = self.s.rpc(FS, "ListDir", {"path": self.p("deep"), "depth": depth})
            self.note(f"list paths to depth {depth}", [e["path"] for e in body["entries"]])
        os.mkdir(self.p("bad"))
        open(self.p("bad/").encode() + b"x\xff", "wb").close()
        self.put("bad/good")
        self.fs("list with a non-UTF-8 name", "ListDir", path=self.p("bad"), depth=1)
        self.fs("stat relative", "Stat", path="no-such-name")
        self.fs("stat nothing", "Stat", path="")
        self.fs("stat unknown user", "Stat", user="no-such-user", path=self.p("f"))
        self.fs("stat default user", "Stat", user=None, path=self.p("f"))
        self.fs("unknown field", "Stat", path=self.p("f"), zzz=1)
        self.note("unknown method", self.s.rpc(FS, "Nope", {})[0])
        self.note("health", self.s.request("GET", "/health")[0])

    def naming(self):
        self.fs("mkdir with parents", "MakeDir", path=self.p("md/x/y"))
        self.state("mkdir with parents, disk", "md/x")
        self.fs("mkdir again", "MakeDir", path=self.p("md"))
        self.fs("mkdir over a file", "MakeDir", path=self.p("f"))
        self.fs("mkdir below a file", "MakeDir", path=self.p("f/x"))
        self.fs("mkdir name too long", "MakeDir", path=self.p("n" * 256))
        self.put("m1"), self.put("m2", b"other")
        self.fs("move over a file", "Move", source=self.p("m1"), destination=self.p("m2"))
        self.state("move over a file, disk", "m2")
        self.put("m1")
        self.fs("move a file onto a directory", "Move", source=self.p("m1"), destination=self.p("d"))
        os.makedirs(self.p("e1/k")), os.makedirs(self.p("e2/k")), os.makedirs(self.p("e3"))
        self.fs("move a directory onto a full one", "Move", source=self.p("e1"), destination=self.p("e2"))
        self.fs("move a directory onto an empty one", "Move", source=self.p("e1"), destination=self.p("e3"))
        os.makedirs(self.p("e1"), exist_ok=True)
        self.fs("move a directory onto a file", "Move", source=self.p("e1"), destination=self.p("m1"))
        self.fs("move a directory into itself", "Move", source=self.p("e1"), destination=self.p("e1/k/z"))
        self.fs("move missing", "Move", source=self.p("nope"), destination=self.p("q"))
        self.fs("move into a missing parent", "Move", source=self.p("m1"), destination=self.p("np/a/b"))
        self.state("move into a missing parent, disk", "np/a")
        os.symlink("f", self.p("ml"))
        self.fs("move a link", "Move", source=self.p("ml"), destination=self.p("ml2"))
        self.state("move a link, disk", "ml2")
        self.fs("remove missing", "Remove", path=self.p("nope"))
        self.fs("remove a full directory", "Remove", path=self.p("e2"))
        self.state("remove a full directory, disk", "e2")
        self.fs("remove a link to a directory", "Remove", path=self.p("linkdir"))
        self.state("remove a link to a directory, disk", "d")

    def writing(self):
        self.post("post new with parents", self.p("up/a/b"), b"data")
        self.state("post new, disk", "up/a/b"), self.state("post new, parent", "up/a")
        self.put("own", b"old", 0o4640, (0, 0))
        os.link(self.p("own"), self.p("own2"))
        inode = os.stat(self.p("own")).st_ino
        self.post("post over root's", self.p("own"), b"new")
        self.state("post over root's, disk", "own")
        self.note("post keeps the inode", os.stat(self.p("own")).st_ino == inode)
        self.put("target", b"old")
        os.symlink("target", self.p("wl"))
        self.post("post through a link", self.p("wl"), b"via link")
        self.state("post through a link, link", "wl"), self.state("post through a link, target", "target")
        self.post("post on a directory", self.p("d"), b"x")
        self.post("post below a file", self.p("f/x"), b"x")
        self.post("post empty", self.p("pe"), b""), self.state("post empty, disk", "pe")
        self.post("post gzip", self.p("pg"), gzip.compress(b"zipped"), headers={"Content-Encoding": "gzip"}), self.state("post gzip, disk", "pg")
        self.post("post broken gzip", self.p("pb"), b"no gzip here at all", headers={"Content-Encoding": "gzip"}), self.state("post broken gzip, disk", "pb")
        self.post("post metadata", self.p("pm"), b"x", headers={"X-Metadata-Color": "red"})
        self.fs("stat metadata", "Stat", path=self.p("pm"))
        self.post("post without metadata", self.p("pm"), b"y"), self.fs("stat cleared metadata", "Stat", path=self.p("pm"))
        for name in ("a b", "new\nline", "q?&=#%41", "-dash", " lead", "ü", "back\\slash", "n" * 255):
            self.post("post name " + repr(name[:12]), self.p(name), b"x"), self.state("post name, disk " + repr(name[:12]), name)
        self.post("post name too long", self.p("n" * 256), b"x")
        b = "bnd"
        body = b"".join(f'--{b}\r\nContent-Disposition: form-data; name="file"; filename="{self.p("mp%d" % i)}"\r\n\r\nD{i}\r\n'.encode() for i in range(3)) + f"--{b}--\r\n".encode()
        status, _, answer = self.s.request("POST", f"/files?username={self.s.user}", body, {"Content-Type": f"multipart/form-data; boundary={b}"})
        self.note("post three files in one request", [status, parsed(answer)])
        for i in range(3):
            self.state(f"post three, disk {i}", f"mp{i}")
        self.put("torn", b"A" * 1000)
        c = self.s.make()
        c.putrequest("POST", self.files_target(self.p("torn")))
        for k, v in self.s.headers(None, {"Content-Type": "application/octet-stream", "Content-Length": "1000"}).items():
            c.putheader(k, v)
        c.endheaders()
        c.send(b"B" * 10)
        c.sock.shutdown(1)  # the end of it all, but the ten bytes come first
        deadline = time.monotonic() + 5
        while os.path.getsize(self.p("torn")) != 10 and time.monotonic() < deadline:
            time.sleep(0.05)
        c.close()
        self.note("torn upload leaves bytes", os.path.getsize(self.p("torn")))
        self.put("p1", b"one"), self.put("p2", b"two"), self.put("dst", b"zzz", 0o4750)
        inode = os.stat(self.p("dst")).st_ino
        self.compose("compose", [self.p("p1"), self.p("p2")], self.p("dst"))
        self.state("compose, disk", "dst"), self.state("compose, part", "p1")
        self.note("compose keeps the inode", os.stat(self.p("dst")).st_ino == inode)
        self.put("p1", b"1"), os.symlink("f", self.p("cl"))
        self.compose("compose onto a link", [self.p("p1")], self.p("cl")), self.state("compose onto a link, disk", "cl")
        self.compose("compose missing", [self.p("nope")], self.p("dst2"))
        self.compose("compose nothing", [], self.p("dst2"))

    def running(self):
        self.start("run true", "/bin/true")
        self.start("run missing", "/bin/no-such-command", keep="events")
        self.start("run exit 3", "sh", "-c", "echo no >&2; exit 3")
        self.start("run killed", "sh", "-c", "kill -9 $$")
        self.start("run in a missing directory", "/bin/pwd", cwd=self.p("nope"))
        self.start("run in a directory", "/bin/pwd", cwd=self.p("d"))
        self.start("run identity", "sh", "-c", "id -un; umask; pwd; echo $HOME $USER")
        self.start("run as root", "id", "-u", user="root")
        self.start("run as nobody known", "id", user="no-such-user")
        self.start("run bytes", "printf", "\\377\\000x")
        self.start("run odd arguments", "printf", "%s|", "a b", "", "'\"$HOME`", "new\nline")
        self.start("run with a deadline", "sleep", "5", headers={"Connect-Timeout-Ms": "200"})
        for case, part in (("input", self.input), ("descriptors", self.descriptors)):
            try:
                part()
            except (KeyError, StopIteration, TimeoutError) as e:
                self.note(case + " ended early", type(e).__name__)

    def input(self):
        """A process with standard input; and what becomes of one whose caller went away."""
        events = self.s.stream(PROC, "Start", {"process": {"cmd": "cat", "args": []}, "stdin": True})
        pid = next(events)[1]["event"]["start"]["pid"]
        send = lambda data: self.s.rpc(PROC, "SendInput", {"process": {"pid": pid}, "input": {"stdin": base64.b64encode(data).decode()}})
        self.note("send input", send(b"one"))
        self.note("echoed", base64.b64decode(next(events)[1]["event"]["data"]["stdout"]).decode())
        connected = self.s.stream(PROC, "Connect", {"process": {"pid": pid}})
        self.note("connect", next(connected)[1])
        self.note("send input again", send(b"two"))
        self.note("both hear it", [base64.b64decode(next(s)[1]["event"]["data"]["stdout"]).decode() for s in (events, connected)])
        events.close()
        time.sleep(0.3)
        self.note("alive after its caller hung up", os.path.exists(f"/proc/{pid}"))
        self.note("close stdin", self.s.rpc(PROC, "CloseStdin", {"process": {"pid": pid}}))
        self.note("its end", [m for _, m in connected])
        time.sleep(0.2)
        self.note("send input to nobody", self.s.rpc(PROC, "SendInput", {"process": {"pid": 4194300}, "input": {"stdin": "eA=="}}))

    def descriptors(self):
        """A process can lend its open files to the files API."""
        self.put("unlinked", b"U" * 1000)
        holder = self.s.stream(PROC, "Start", {"process": {"cmd": "sh", "args": ["-c", 'exec 7<>"$1"; rm "$1"; echo ready; sleep 9', "sh", self.p("unlinked")]}})
        pid = next(holder)[1]["event"]["start"]["pid"]
        next(holder)
        status, _, body = self.s.request("GET", self.files_target(f"/proc/{pid}/fd/7"), headers={"Range": "bytes=0-9"})
        self.note("get an unlinked file by its descriptor", [status, body.decode()])
        self.note("signal", self.s.rpc(PROC, "SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"}))
        self.note("signalled end", [m for _, m in holder])

    def watching(self):
        os.makedirs(self.p("w/sub"))
        w = lambda n: self.p("w/" + n)

        def simple():
            open(w("n"), "w").write("x"), os.rename(w("n"), w("n2")), os.chmod(w("n2"), 0o600), os.mkdir(w("new"))
            open(w("sub/in"), "w").close(), os.unlink(w("n2"))

        self.watch("watch", "w", simple)
        self.watch("watch recursive", "w", lambda: (os.makedirs(w("s2/s3")), time.sleep(0.2), open(w("s2/s3/q"), "w").close(), os.unlink(w("sub/in"))), recursive=True)
        self.watch("watch links and attributes", "w", lambda: (open(w("a"), "w").close(), os.link(w("a"), w("b")), os.utime(w("a"))))
        self.watch("watch removed", "w/new", lambda: os.rmdir(w("new")))
        self.watch("watch with a non-UTF-8 name", "w", lambda: open(w("").encode() + b"n\xff", "w").close())
        self.watch("watch missing", "nope", lambda: None)
        self.watch("watch a file", "f", lambda: None)

    def run(self):
        for part in (self.reading, self.looking, self.naming, self.writing, self.running, self.watching):
            part()
        return self.answers


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--url", default="http://127.0.0.1:49983")
    a.add_argument("--user", default="user")
    a.add_argument("--token")
    a.add_argument("--out")
    a.add_argument("--compare")
    a.add_argument("--leave-out", action="append", default=[], metavar="CASE", help="do not compare this answer")
    o = a.parse_args()
    root = tempfile.mkdtemp(prefix="envd-probe-")
    os.chmod(root, 0o777)
    os.umask(0o022)
    try:
        answers = Probe(Server(o.url, o.user, o.token), root).run()
    finally:
        shutil.rmtree(os.fsencode(root), ignore_errors=True)
    if o.out:
        with open(o.out, "w") as f:
            f.write("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in answers.items()) + "\n}\n")
    if o.compare:
        want = json.load(open(o.compare))
        answers = json.loads(json.dumps(answers))
        bad = [k for k in sorted(want.keys() | answers.keys()) if want.get(k) != answers.get(k) and k not in o.leave_out]
        for k in bad:
            print(f"{k}\n  want {json.dumps(want.get(k), ensure_ascii=False)}\n  got  {json.dumps(answers.get(k), ensure_ascii=False)}")
        print(f"{len(want) - len([k for k in bad if k in want])} passed, {len(bad)} failed")
        return 1 if bad else 0
    print(f"{len(answers)} answers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
