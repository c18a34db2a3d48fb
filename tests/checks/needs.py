"""packaging/install-needs.sh: sudo may ask wherever there is a terminal, and a root who may not mount is told so before anything is built."""
import os, pathlib, pty, shutil, subprocess, sys, tempfile

NEEDS = pathlib.Path(sys.argv[1]) / "packaging/install-needs.sh"
INSTALL = ["bash", "-c", f"exec </dev/null; . {NEEDS}; as_root apt-get update"]


def of_a_user(directory):
    """The environment of somebody who is not root, with a sudo that tells how it was called."""
    for name, script in {"sudo": 'echo "sudo $*"', "id": "echo 1000"}.items():
        program = directory / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    return dict(os.environ, PATH=f"{directory}:{os.environ['PATH']}")


def on_a_terminal(command, environment):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, environment)
    said = os.read(terminal, 4096).decode()
    os.waitpid(pid, 0)
    return said.strip()


def main():
    with tempfile.TemporaryDirectory() as directory:
        environment = of_a_user(pathlib.Path(directory))
        said = on_a_terminal(INSTALL, environment)
        assert said == "sudo apt-get update", said
        said = subprocess.run(["setsid", "-w", *INSTALL], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
        assert said.strip() == "sudo -n apt-get update", said
    if os.getuid() == 0 and os.path.exists("/dev/fuse") and shutil.which("fusermount3"):
        check = ["bash", "-c", f". {NEEDS}; check_fuse"]
        done = subprocess.run(["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", *check], capture_output=True, text=True)
        assert done.returncode == 1 and "CAP_SYS_ADMIN" in done.stderr, done
        subprocess.run(check, check=True)


main()
