#!/usr/bin/env python3
"""Metadata operations per second through a mount: both tiers, 1 and 16 threads, near and 20 ms away.

  E2BFS_BIN_DIR=build/plain/bin tests/bench/metadata.py [--json FILE] [--smoke]
      [--tiers syscall,service] [--threads 1,16] [--latency 0,20] [--seconds 1.5]

The sandbox is e2bfs-test-sandbox on this machine; the distance is made by delayproxy.cc. "stat, cold" asks for names in
directories that were never listed; "listing" reads directories of 1,000 entries for the first time; "read" is of small
files that are known and were never read. Times say something about one machine only: compare on the same one.
"""
import argparse, json, os, pathlib

from ground import distance, helper, machine, mounted, run, test_sandbox

PHASES = ["mkdir", "create", "stat", "cold", "listing", "chmod", "rename", "write", "read", "unlink", "rmdir"]
TITLES = {"stat": "stat, warm", "cold": "stat, cold", "listing": "listing 1,000", "write": "small write", "read": "small read"}


def furnish(inside, threads, listings):
    """What is there before the mount is: files to stat and read for the first time, and full directories."""
    for thread in range(threads):
        top = inside / f"t{thread}"
        for d in range(10):
            directory = top / f"cold/d{d}"
            directory.mkdir(parents=True)
            for f in range(100):
                (directory / f"f{f}").write_bytes(b"r" * 100)
        for d in range(listings):
            directory = top / f"listing/d{d}"
            directory.mkdir(parents=True)
            for f in range(1000):
                os.close(os.open(directory / f"entry-{f}", os.O_CREAT | os.O_WRONLY))


def measure(tier, threads, latency, arguments):
    """{phase: operations per second}"""
    with test_sandbox() as double, distance(double, latency):
        inside = double.root / "bench"
        inside.mkdir()
        # One thread lists all of them; sixteen share the time.
        listings = 20 if threads == 1 else 2
        furnish(inside, threads, listings)
        program = helper("metaload", double.scratch)
        found = {}
        # The listings are few with many threads, so they run by themselves with that limit.
        parts = (["listing"], listings), ([phase for phase in PHASES if phase != "listing"], arguments.limit)
        with mounted(tier, double, "bench", ["attr_timeout=600", "negative_timeout=600"], inside) as mount:
            for phases, limit in parts:
                done = run(program, mount.path, threads, arguments.seconds, limit, *phases, timeout=1200)
                for line in done.stdout.splitlines():
                    name, operations, took = line.split()
                    if int(operations) > 0:
                        found[name] = {"operations": int(operations), "seconds": float(took), "per_second": int(operations) / float(took)}
        return found


def table(results, tiers):
    configurations = sorted({(result["latency_ms"], result["threads"]) for result in results})
    width = 11
    lines = []
    head = [f"{latency} ms, {threads} thr" for latency, threads in configurations]
    lines.append(f"{'operations/s':<14}" + "".join(f"{title:^{(width + 1) * len(tiers)}}" for title in head))
    lines.append(" " * 14 + "".join(f"{tier:>{width}} " for _ in configurations for tier in tiers))
    for phase in PHASES:
        row = f"{TITLES.get(phase, phase):<14}"
        for latency, threads in configurations:
            for tier in tiers:
                rates = [result["rates"][phase]["per_second"] for result in results
                         if (result["latency_ms"], result["threads"], result["tier"]) == (latency, threads, tier) and phase in result["rates"]]
                row += f"{rates[0]:>{width},.0f} " if rates else f"{'-':>{width}} "
        lines.append(row)
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write everything there, too")
    parser.add_argument("--smoke", action="store_true", help="a moment of each: that it works, not how fast it is")
    parser.add_argument("--tiers", default="syscall,service")
    parser.add_argument("--threads", default="1,16")
    parser.add_argument("--latency", default="0,20", help="round trips in milliseconds")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each operation and configuration")
    parser.add_argument("--limit", type=int, default=20_000, help="operations of one thread")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.threads, arguments.latency, arguments.seconds, arguments.limit = "2", "0,2", 0.05, 20
    tiers = arguments.tiers.split(",")
    results = []
    for latency in map(int, arguments.latency.split(",")):
        for threads in map(int, arguments.threads.split(",")):
            for tier in tiers:
                rates = measure(tier, threads, latency, arguments)
                results.append({"tier": tier, "threads": threads, "latency_ms": latency, "rates": rates})
                assert set(rates) == set(PHASES), f"{tier}: nothing was measured of {set(PHASES) - set(rates)}"
    print(table(results, tiers))
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
