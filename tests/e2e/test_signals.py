"""Signals that do not end a program do not disturb its calls; those that do end it, at once."""
import os, re, signal, subprocess, sys, time

import pytest

from conftest import PATIENCE, SANITIZED, TOOL_ENVIRONMENT, eventually, run
from tiers import helper, tier, tiered

ROUNDS = 4 if SANITIZED else 12
LATENCY_MS = 4  # several timer signals fall into each call


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("mode", ["timer", "timer-plain", "storm"])
def test_no_call_fails_with_eintr(tiered, scratch, mode, threads):
    mount = tiered.mount()
    tiered.control("POST", f"/_test/latency?ms={LATENCY_MS}")
    program = helper("signals", scratch)
    local = scratch / f"local-{mode}-{threads}-{tiered.scratch.name}"
    local.mkdir()
    run(program, mode, local, ROUNDS, threads)
    done = run(program, mode, mount.path, ROUNDS, threads, check=False, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    calls, signals = map(int, re.search(r"(\d+) calls, (\d+) signals", done.stdout).groups())
    # A call that waits holds what comes meanwhile back, as one signal; most calls that wait met at least one.
    assert calls > threads * ROUNDS * 20 and signals > calls / 20, done.stdout
    assert os.listdir(mount.inside) == []


# One call each; what it works on is made before the sandbox stalls.
STALLED = {
    "stat": "os.stat('unknown')",
    "listdir": "os.listdir('d')",
    "open": "os.open('f', os.O_RDONLY)",
    "read": "open('g', 'rb').read()",
    "create": "os.open('new', os.O_CREAT | os.O_EXCL | os.O_WRONLY)",
    "mkdir": "os.mkdir('newdir')",
    "rename": "os.rename('f', 'renamed')",
    "unlink": "os.unlink('f')",
    "chmod": "os.chmod('f', 0o600)",
    "symlink": "os.symlink('x', 'newlink')",
    "truncate": "os.truncate('g', 5)",
    "statvfs": "os.statvfs('.')",
}
CALL = "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nos.chdir(sys.argv[1])\nprint('now', flush=True)\n"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda which: which.name)
def test_a_stalled_call_is_gone_at_once(tiered, how):
    """The whole sandbox is stopped: nothing is refused, and nothing answers."""
    mount = tiered.mount()
    (mount.inside / "d").mkdir()
    for name in "fg":
        (mount.inside / name).write_bytes(os.urandom(300_000))
    eventually(lambda: (mount.path / "g").exists() and (mount.path / "d").exists(), "the files are seen")
    time.sleep(1.2)  # what is known has to be asked again
    callers = {}
    os.kill(tiered.process.pid, signal.SIGSTOP)
    try:
        for name, call in STALLED.items():
            callers[name] = subprocess.Popen([sys.executable, "-c", CALL + call, mount.path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=TOOL_ENVIRONMENT)
        time.sleep(3)
        stalled = [name for name, caller in callers.items() if caller.poll() is None]
        assert len(stalled) > 8, stalled
        begun = time.monotonic()
        for name in stalled:
            callers[name].send_signal(how)
        late = []
        for name in stalled:
            try:
                assert callers[name].wait(max(0.1, begun + 5 - time.monotonic())) == -how, name
            except subprocess.TimeoutExpired:
                late.append(name)
        assert not late, f"still there 5 s after the signal: {late}"
    finally:
        os.kill(tiered.process.pid, signal.SIGCONT)
        for caller in callers.values():
            caller.kill()
            caller.wait(PATIENCE)
            caller.stdout.close()
    eventually(lambda: os.stat(mount.path / "g").st_size in (5, 300_000), "the mount goes on")
    (mount.path / "after").write_text("after")
    assert (mount.inside / "after").read_text() == "after"


def test_a_close_is_not_disturbed(tiered):
    """Ctrl-C while close sends the content: the program ends, and what it wrote arrives once the sandbox goes on."""
    mount = tiered.mount()
    script = "import os,signal,sys\nsignal.signal(signal.SIGINT,signal.SIG_DFL)\nfd=os.open(sys.argv[1],os.O_CREAT|os.O_WRONLY)\nos.write(fd,b'x'*50000)\nprint('now',flush=True)\nsys.stdin.readline()\nos.close(fd)\n"
    writer = subprocess.Popen([sys.executable, "-c", script, mount.path / "f"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=TOOL_ENVIRONMENT)
    assert writer.stdout.readline() == b"now\n"
    os.kill(tiered.process.pid, signal.SIGSTOP)
    try:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        time.sleep(0.5)
        writer.send_signal(signal.SIGINT)
        time.sleep(0.5)
    finally:
        os.kill(tiered.process.pid, signal.SIGCONT)
    assert writer.wait(30) == -signal.SIGINT
    writer.stdin.close()
    writer.stdout.close()
    eventually(lambda: (mount.inside / "f").read_bytes() == b"x" * 50000, "what was written arrived")
