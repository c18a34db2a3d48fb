"""What the benchmarks stand on: a test sandbox on this machine, the distance to it, and mounts of it."""
import contextlib, os, pathlib, shutil, subprocess, sys, tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
sys.dont_write_bytecode = True

from conftest import TOOL_ENVIRONMENT, Double, digest_tree, run  # noqa: E402
from tiers import helper, mount_on  # noqa: E402


@contextlib.contextmanager
def test_sandbox(directory=None):
    """A test sandbox whose files, like all that the mounts keep, are in a new directory below that one, or below $TMPDIR."""
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="e2bfs-bench.", dir=directory))
    try:
        double = Double(scratch)
        try:
            yield double
        finally:
            double.stop()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def distance(double, round_trip_ms, mbit=0):
    """Whoever begins to speak with the sandbox is so far away, by a wire of that bandwidth if it has one; at 0 nothing is in between."""
    if not round_trip_ms and not mbit:
        yield
        return
    near = double.tls_url
    proxy = subprocess.Popen([helper("delayproxy", double.scratch), near.split("//")[1].rstrip("/"), str(round_trip_ms), *([str(mbit)] if mbit else [])],
                             stdout=subprocess.PIPE, text=True)
    try:
        double.tls_url = f"https://127.0.0.1:{int(proxy.stdout.readline())}"
        yield
    finally:
        double.tls_url = near
        proxy.kill()
        proxy.wait()
        proxy.stdout.close()


@contextlib.contextmanager
def mounted(tier, double, name, options=(), inside=None):
    mount = mount_on(tier, double, name, options, inside)
    try:
        yield mount
    finally:
        mount.close()


@contextlib.contextmanager
def bindfs(source, target):
    """The same files by a FUSE file system that does nothing but pass on: what a mount costs at least. Gives what mounts it anew."""
    def mount():
        run("bindfs", source, target)

    def remount():
        run("fusermount3", "-u", target)
        mount()
    target.mkdir()
    mount()
    try:
        yield remount
    finally:
        run("fusermount3", "-u", target)
        target.rmdir()


def machine():
    return {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "kernel": os.uname().release}
