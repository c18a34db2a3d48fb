"""A random reader and writer on one file (fsx.cc), with a copy in memory as the judge.

Environment:
  E2BFS_FSX_OPS    operations of each run (100,000 by hand; few here)
  E2BFS_FSX_SEED   the only seed to run with
"""
import os, re, shlex

import pytest

from conftest import BIN, TIER, run

OPERATIONS = int(os.environ.get("E2BFS_FSX_OPS", 1_000 if TIER == "service" else 2_500))
SEEDS = [int(os.environ["E2BFS_FSX_SEED"])] if "E2BFS_FSX_SEED" in os.environ else [1, 2]
PROGRAM = BIN / "parity_fsx"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "mmap"])
@pytest.mark.parametrize("behind", [False, True], ids=["at once", "behind"])
def test_fsx(seed, behind, mapped, mounts, scratch):
    """behind: with -o writeback, where `e2bfs flush` and another mount are among the operations. The file is in a directory that the mount made."""
    mount = mounts.get("behind", ["writeback"]) if behind else mounts.usual
    name = f"fsx-{seed}-{mapped}"
    more = ["--mmap"] if mapped else []
    if behind:
        (mount.path / f"d-{name}").mkdir()
        name = f"d-{name}/file"
        options = f"debug_sandbox_id:{mount.inside}", mount.path, "-o", ",".join(mount.options)
        flush, umount, again = ("exec " + shlex.join(map(str, (BIN / "e2bfs", *command))) for command in (("flush", mount.path), ("umount", mount.path), ("mount", *options)))
        (scratch / "remount").write_text(f"({umount}) && {again}\n")
        more += ["--flush", flush, "--remount", f"exec sh {scratch / 'remount'}"]
    done = run(PROGRAM, mount.path / name, "--ops", OPERATIONS, "--seed", seed, "--inside", mount.inside / name, *more, check=False, timeout=60 + OPERATIONS,
               env={**mount.double.environment(), "XDG_CACHE_HOME": str(mount.cache)})
    print(done.stdout)
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    # What a tier has not is not passed over in silence.
    expected = "no" if TIER == "service" else "yes"
    assert f"fallocate: {expected}" in done.stdout
    assert "copy_file_range: yes" in done.stdout
    assert "SEEK_DATA: yes" in done.stdout
    holes = int(re.search(r"holes: (\d+)", done.stdout)[1])
    assert holes == 0 if TIER == "service" else holes > 0, "the service tier says that all is data; else holes are found and looked at"
    os.unlink(mount.path / name)


def test_the_judge_is_right(scratch):
    """On a local disk nothing differs."""
    done = run(PROGRAM, scratch / "local", "--ops", 2_000, "--seed", 7, "--inside", scratch / "local", "--mmap")
    assert "as expected" in done.stdout
