#!/usr/bin/env python3
"""What moving content through a mount costs, beside curl on the same endpoint and beside the bare disk.

  E2BFS_BIN_DIR=build/plain/bin tests/bench/bench.py [--json FILE] [--smoke] [--only NAME,NAME]
      [--latency 0,20,100] [--rate MBIT] [--tiers syscall,service] [--scale 1] [--dir DIRECTORY]

The sandbox is e2bfs-test-sandbox on this machine, over HTTP/2 with TLS; the distance, and with --rate a wire of that bandwidth, is made by delayproxy.cc. Every scenario has a new mount
(its caches and the kernel's are empty), which has read one file before, so that its connections are there; and the content is looked at
afterwards. Times say something about one machine only: compare on the same one. Counts are of the scenario alone:

  of curl     curl's seconds by the mount's: 1.00 is as fast. curl by HTTP/1.1 or by HTTP/2, the faster; its connecting is not counted
              (the other one is ended when it takes much longer)
  of disk     the same, of the same calls on the directory that the sandbox serves, which is in the kernel's cache
  of bindfs   the same, of a bindfs of that directory: where nothing comes from the sandbox
  ..., wb     the mount has -o writeback, and the time is until `e2bfs flush` has returned
  cpu, sandbox   CPU seconds of e2bfs, and of the test sandbox
  requests    HTTP requests that the sandbox counted; frames: of the syscall server
  waited      syscall tier: frames that somebody waited for; service tier: the longest chain of requests, each begun after another's answer
  rtts        seconds / round trip, for each operation of a thread: how many round trips one after another the time would be
  peak        resident memory of e2bfs at most (VmHWM)
"""
import argparse, contextlib, json, math, os, pathlib, resource, shutil, subprocess, time, urllib.parse

from ground import bindfs, distance, machine, mounted, run, test_sandbox
from scenarios import GIB, MIB, SCENARIOS, Library, Site, Sizes

HEAD = ["seconds", "of curl", "of disk", "cpu", "sandbox", "requests", "frames", "waited", "sent MiB", "recv MiB", "rtts", "peak MiB"]
HAS_CURL, HAS_BINDFS = shutil.which("curl"), shutil.which("bindfs")


def cpu_seconds(pid):
    """utime + stime of all its threads, also of those that ended."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid):
    line = next(line for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


class Meter:
    """What a mount and its sandbox use inside `with`."""

    def __init__(self, mount):
        self.mount, self.double = mount, mount.double

    def read(self):
        status = self.mount.status()
        self.pid, remote = status["pid"], status["remote"]
        return {"sent_bytes": status["sent_bytes"], "received_bytes": status["received_bytes"], "retries": status["retries"],
                "frames": int(remote.get("frames", 0)), "waited": int(remote.get("round trips", 0)),
                "cpu_seconds": cpu_seconds(self.pid), "sandbox_cpu_seconds": cpu_seconds(self.double.process.pid)}

    def __enter__(self):
        self.before = self.read()
        self.double.reset_counts()
        try:
            pathlib.Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # VmHWM begins anew
        except PermissionError:  # the process has secrets: only root's
            pass
        return self

    def __exit__(self, *problem):
        peak = peak_bytes(self.pid)
        counts = self.double.counts()
        self.used = {name: value - self.before[name] for name, value in self.read().items()}
        self.used.update(peak_bytes=peak, requests=sum(counts["requests"].values()))
        if not self.used["frames"]:
            self.used["waited"] = counts["sequence"]


def timed(steps, meter=contextlib.nullcontext()):
    """Runs a scenario: what it took, after its content was found to be right."""
    what = next(steps)
    with meter:
        begin = time.perf_counter()
        what.call()
        seconds = time.perf_counter() - begin
    for _ in steps:
        raise AssertionError("a scenario times one thing")
    return {"seconds": seconds, "payload_bytes": what.payload, "operations": what.operations, "threads": what.threads}


def curl(double, protocol, transfers, at_once, limit=3600):
    """All transfers by one curl, without the time until its first connection is there. A transfer ends after `limit` seconds."""
    def section(transfer):
        lines = [f"url = {double.tls_url}/files?path={urllib.parse.quote(str(transfer.path))}", f"cacert = {double.certificate}", protocol,
                 "output = /dev/null", "silent", "show-error", "fail", f"max-time = {limit:.3f}",
                 r'write-out = "%{time_pretransfer} %{time_total} %{size_download} %{size_upload}\n"']
        if transfer.range:
            lines.append(f"range = {transfer.range}")
        if transfer.upload:
            lines += [f"upload-file = {transfer.upload}", "request = POST", 'header = "Content-Type: application/octet-stream"', 'header = "Expect:"']
        return "\n".join(lines)

    config = double.scratch / "curl.config"
    config.write_text("\nnext\n".join(map(section, transfers)) + "\n")
    parallel = ["--parallel", "--parallel-max", at_once] if at_once > 1 else []
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = run("curl", *parallel, "--config", config, timeout=7200, check=False)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode == 28:  # the time was up
        return {"seconds": wall, "ended": True}
    assert done.returncode == 0, done.stderr
    rows = [list(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(rows) == len(transfers)
    seconds = wall - rows[0][0] if at_once > 1 else sum(total - connected for connected, total, *_ in rows)
    return {"seconds": seconds, "payload_bytes": sum(int(up or down) for _, _, down, up in rows),
            "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


class Bench:
    def __init__(self, double, arguments):
        self.double, self.arguments, self.results, self.works = double, arguments, [], 0
        self.made = Library(double.root / "library", double.scratch / "local", Sizes(arguments.scale))

    @contextlib.contextmanager
    def work(self):
        """The name of a directory of the sandbox that is empty, and does not outlive the scenario."""
        self.works += 1
        name = f"work{self.works}"
        (self.double.root / name).mkdir()
        try:
            yield name
        finally:
            shutil.rmtree(self.double.root / name)

    def site(self, top, name, latency, **more):
        return Site(self.made, top, self.double.root, name, latency, **more)

    def add(self, each, latency, who, found, notes=()):
        self.results.append({"scenario": each.name, "latency_ms": latency, "who": who, **found, **dict(notes)})
        return self.results[-1]

    def on_disk(self, each, latency):
        with self.work() as name:
            site = self.site(self.double.root, name, latency)
            return self.add(each, latency, "disk", timed(each.steps(site)), site.notes)

    def on_bindfs(self, each, latency):
        target = self.double.scratch / "bindfs"
        with self.work() as name, bindfs(self.double.root, target) as remount:
            return self.add(each, latency, "bindfs", timed(each.steps(self.site(target, name, latency, remount=remount))))

    def by_curl(self, each, latency):
        """By each protocol; the second is ended when it takes much longer than the first: the faster one is what counts."""
        found, limit = [], 3600
        for protocol in ("http1.1", "http2") if each.curl and HAS_CURL else ():
            with self.work() as name:
                transfers, at_once = each.curl(self.site(self.double.root, name, latency))
                found.append(self.add(each, latency, f"curl {protocol}", curl(self.double, protocol, transfers, at_once, limit)))
                limit = 5 + 3 * found[0]["seconds"]
        return found

    def on_mount(self, each, latency, tier, behind=False):
        options = ["cache_after=2", *(["writeback"] if behind else [])]
        with self.work() as name, mounted(tier, self.double, f"{name}-{tier}", options, inside=self.double.root) as mount:
            def flush():
                if behind:
                    mount.e2bfs("flush", mount.path)

            def remount():
                mount.umount()
                mount.mount()

            def settle():
                before = -1
                while before != (now := mount.status()["counters"].get("cache.store_written_bytes", 0)):
                    before = now
                    time.sleep(0.3)
            site, meter = self.site(mount.path, name, latency, remount=remount, settle=settle, flush=flush), Meter(mount)
            site.see(self.made.warm).read_bytes()
            found = timed(each.steps(site), meter)
            return self.add(each, latency, tier + (", wb" if behind else ""), {**found, **meter.used}, site.notes)

    def measure(self, latency, tiers, scenarios):
        print(f"\n{latency} ms round trip".ljust(17) + "".join(f"{title:>9}" for title in HEAD))
        for each in scenarios:
            disk, by_curl = self.on_disk(each, latency), self.by_curl(each, latency)
            passed_on = self.on_bindfs(each, latency) if each.local and HAS_BINDFS else None
            others = [disk, *by_curl, *([passed_on] if passed_on else [])]
            beside = ", ".join(f"{one['who']} {'over ' if 'ended' in one else ''}{one['seconds']:.3f} s" for one in others)
            print(f"{each.title} ({each.name}): {beside}", flush=True)
            fastest = min((one for one in by_curl if "ended" not in one), key=lambda one: one["seconds"], default=None)
            for tier, behind in [(tier, behind) for tier in tiers for behind in ([False, True] if each.behind else [False])]:
                found = self.on_mount(each, latency, tier, behind)
                found["of_disk"] = disk["seconds"] / found["seconds"]
                if fastest:
                    found["of_curl"] = fastest["seconds"] / found["seconds"]
                    found["curl_cpu_seconds"] = fastest["cpu_seconds"]
                    if each.name != "first-byte":
                        assert fastest["payload_bytes"] == found["payload_bytes"], "curl moved other bytes than the mount"
                if passed_on:
                    found["of_bindfs"] = passed_on["seconds"] / found["seconds"]
                if latency:
                    found["rtts"] = found["seconds"] * 1000 / latency / found["operations"]
                print(row(found), flush=True)


def row(found):
    def cell(name, form, unit=1):
        return format(found[name] / unit, form) if name in found else "-"
    cells = [cell("seconds", ".3f"), cell("of_curl", ".2f"), cell("of_disk", ".2f"), cell("cpu_seconds", ".2f"), cell("sandbox_cpu_seconds", ".2f"),
             str(found["requests"]), str(found["frames"]), str(found["waited"]),
             cell("sent_bytes", ".2f", MIB), cell("received_bytes", ".2f", MIB), cell("rtts", ".2f"), cell("peak_bytes", ".1f", MIB)]
    return f"  {found['who']:<15}" + "".join(f"{text:>9}" for text in cells) + "  " + remarks(found)


def remarks(found):
    said = []
    payload = found["payload_bytes"]
    if payload >= MIB and found["operations"] == 1:
        said.append(f"{payload / MIB / found['seconds']:.0f} MiB/s, {found['cpu_seconds'] / payload * GIB:.2f} CPU s/GiB")
    if found["operations"] > 1:
        said.append(f"{found['seconds'] / found['operations'] * 1000:.2f} ms each")
    if "of_bindfs" in found:
        said.append(f"{found['of_bindfs']:.2f} of bindfs")
    if "ls_ms" in found:
        said.append(f"ls -l {found['ls_ms']:.1f} ms, idle {found['idle_ls_ms']:.1f} ms")
    return ", ".join(said)


def goals(results):
    """What DESIGN.md and the issue about the data path ask for, where it was measured: (what, found, comparison, limit)."""
    rows = {(each["scenario"], each["latency_ms"], each["who"]): each for each in results}
    for (name, latency, who), found in rows.items():
        if "peak_bytes" not in found:
            continue
        where = f"{name}, {latency} ms, {who}"
        each_ms = found["seconds"] * 1000 / found["operations"]
        if name in ("read", "write") and latency in (0, 20) and "of_curl" in found:
            yield f"{where}: throughput by curl's", found["of_curl"], ">=", 0.6 if latency == 0 else 0.9
        if name in ("read", "write", "crowd"):
            yield f"{where}: resident MiB", found["peak_bytes"] / MIB, "<=", 128
        if name.startswith("again") and who == "syscall":
            yield f"{where}: requests", found["requests"], "<=", 0
        if name.startswith("again") and "of_bindfs" in found:
            yield f"{where}: throughput by bindfs's", found["of_bindfs"], ">=", 0.95 if name == "again" else 0.7
        if name == "first-byte":
            yield f"{where}: ms", each_ms, "<=", latency + 5
        if name.startswith("random"):
            yield f"{where}: bytes received by bytes read", found["received_bytes"] / found["payload_bytes"], "<=", 1.5
        if name == "random-1" and latency:
            yield f"{where}: round trips each", found["rtts"], "<=", 1.25
        alone = rows.get(("random-1", latency, who))
        if name == "random-16" and latency == 20 and alone:
            yield f"{where}: reads a second by one thread's", alone["seconds"] / alone["operations"] * 16000 / each_ms, ">=", 12
        if name == "both-ways" and latency == 20:
            yield f"{where}: ls -l by the idle mount's", found["ls_ms"] / found["idle_ls_ms"], "<=", 2
        if name == "untar-200" and latency == 20 and who == "syscall, wb":
            yield f"{where}: seconds", found["seconds"], "<=", 0.5
        if name == "new-files" and who.endswith(", wb"):
            yield f"{where}: round trips", found["waited"], "<=", 6 if who == "syscall, wb" else 20
        if name == "git-status-warm" and latency == 20 and "of_bindfs" in found:
            yield f"{where}: seconds by bindfs's", 1 / found["of_bindfs"], "<=", 3


def check_goals(results):
    checked = []
    for what, found, comparison, limit in goals(results):
        met = found >= limit if comparison == ">=" else found <= limit
        checked.append({"what": what, "found": found, "comparison": comparison, "limit": limit, "met": met})
        print(f"{'met   ' if met else 'MISSED'} {what}: {found:.2f} {comparison} {limit:g}")
    return checked


def file_system(path):
    return run("stat", "-f", "-c", "%T", path).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, epilog="scenarios: " + ", ".join(SCENARIOS), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write everything there, too")
    parser.add_argument("--smoke", action="store_true", help="a moment of each: that it works, not how fast it is")
    parser.add_argument("--only", metavar="NAME,NAME", default=",".join(SCENARIOS))
    parser.add_argument("--latency", default="0,20,100", help="round trips in milliseconds")
    parser.add_argument("--rate", type=float, default=0, metavar="MBIT", help="of the wire, each way; default: what this machine moves")
    parser.add_argument("--tiers", default="syscall,service")
    parser.add_argument("--scale", type=float, default=1, help="of files' sizes and of counts")
    parser.add_argument("--dir", help="where the sandbox's files and the spool are made: /dev/shm leaves the disk out; default: $TMPDIR")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.latency, arguments.scale = "0,2", 1 / 64
    if unknown := set(arguments.only.split(",")) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(unknown)}")
    scenarios = [SCENARIOS[name] for name in arguments.only.split(",")]
    latencies, tiers = [int(text) for text in arguments.latency.split(",")], arguments.tiers.split(",")

    with test_sandbox(arguments.dir) as double:
        where = {"directory": str(double.scratch), "file_system": file_system(double.scratch)}
        print(f"the sandbox's files and the spool: {where['directory']} ({where['file_system']})" + ("" if HAS_CURL else "; no curl here, so no ratio to it"))
        bench = Bench(double, arguments)
        for latency in latencies:
            with distance(double, latency, arguments.rate):
                bench.measure(latency, tiers, scenarios)
    print()
    checked = [] if arguments.smoke else check_goals(bench.results)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps({
            "machine": machine(), "where": where, "rate_mbit": arguments.rate, "scale": arguments.scale, "results": bench.results, "goals": checked}, indent=1) + "\n")
    for each in bench.results:
        assert all(math.isfinite(value) for value in each.values() if isinstance(value, (int, float))) and each["seconds"] > 0, each
    assert len({(each["scenario"], each["latency_ms"], each["who"]) for each in bench.results}) == len(bench.results)


if __name__ == "__main__":
    main()
