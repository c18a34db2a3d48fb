"""git, end to end: the same session in a local directory and on a mount of either tier, and what its status costs."""
import os, shutil, time

import pytest

from conftest import digest_tree, run
from tiers import area, mount_on, service_cannot, tier, tier_mount, tiered

LONG = 600  # for thousands of operations, in sanitizer builds too
FIXED = {"GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z", "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z"}  # the same object names


def git(*arguments, **more):
    return run("git", "-c", "safe.directory=*", *arguments, timeout=LONG, env=FIXED, **more).stdout


FILES = 60


def bare_repository(scratch, files=FILES, size=600):
    """A bare repository whose branch `side` differs from `main`."""
    work, bare = scratch / "origin-work", scratch / "origin.git"
    if bare.exists():
        return bare
    work.mkdir()
    for number in range(files):
        path = work / f"d{number % 15}" / f"s{number % 3}" / f"f{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"file {number}\n".encode() + os.urandom(size // 2).hex().encode())
    (work / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (work / "run.sh").chmod(0o755)
    os.symlink("d0/s0", work / "link")
    git("init", "-q", "-b", "main", cwd=work)
    git("add", "-A", cwd=work)
    git("commit", "-qm", "first", cwd=work)
    git("checkout", "-qb", "side", cwd=work)
    git("mv", "d1", "moved", cwd=work)
    git("rm", "-qr", "d2", cwd=work)
    (work / "run.sh").write_text("#!/bin/sh\necho side\n")
    git("commit", "-qam", "side", cwd=work)
    git("checkout", "-q", "main", cwd=work)
    git("clone", "-q", "--bare", work, bare)
    shutil.rmtree(work)
    return bare


def test_git(area, tier, scratch):
    origin = bare_repository(scratch)
    counted = ["count", "in-pack", "packs", "prune-packable", "garbage"]
    if tier == "syscall":
        counted.append("size")  # of st_blocks, which the service tier makes from the size

    def session(top):
        said = []
        clone = top / "clone"
        git("clone", "-q", origin, clone)
        said.append(git("status", "--porcelain", "--branch", cwd=clone))
        (clone / "run.sh").write_text("#!/bin/sh\necho changed\n")
        (clone / "new.txt").write_text("new\n")
        (clone / "d0/s0/f0.txt").unlink()
        said.append(git("status", "--porcelain", cwd=clone))
        git("stash", "-q", "-u", cwd=clone)
        said.append(git("status", "--porcelain", cwd=clone))
        git("checkout", "-q", "side", cwd=clone)
        said.append((clone / "run.sh").read_text())
        git("checkout", "-q", "-", cwd=clone)
        git("stash", "pop", "-q", cwd=clone)
        said.append(git("status", "--porcelain", cwd=clone))
        git("add", "-A", cwd=clone)
        git("commit", "-qm", "second", cwd=clone)
        git("merge", "-q", "-X", "ours", "-m", "merged", "origin/side", cwd=clone)
        git("tag", "t1", cwd=clone)
        said.append(git("log", "--format=%H %P %s", "--stat", cwd=clone))
        git("gc", "-q", cwd=clone)
        said.append(git("fsck", "--full", "--strict", cwd=clone))
        said.append([line for line in git("count-objects", "-v", cwd=clone).splitlines() if line.split(":")[0] in counted])
        git("reset", "-q", "--hard", "HEAD~1", cwd=clone)
        git("push", "-q", ".", "HEAD:pushed", cwd=clone)
        said.append(git("status", "--porcelain", cwd=clone))
        said.append(git("for-each-ref", cwd=clone))
        said.append((clone / ".git/config").read_text())
        return said

    local, here = session(area.local), session(area.here)
    assert here == local
    dangling = git("fsck", "--full", "--strict", cwd=area.local / "clone")
    for each in (area.there, area.here):
        assert git("fsck", "--full", "--strict", cwd=each / "clone") == dangling

    def worktree(top):
        return {path: what for path, what in digest_tree(top / "clone").items() if not path.startswith(b".git/")}
    assert worktree(area.there) == worktree(area.here) == worktree(area.local)


CONTENT = 20_000  # of one file, and it cannot be compressed: more than all that git status has to ask


def status_costs_no_content(double, clone):
    """git status reads .git/HEAD, the index, refs, ignore files; none of the work tree's files."""
    double.reset_counts()
    assert git("status", "--porcelain", cwd=clone) == ""
    counts = double.counts()
    said = {name: counts[name] for name in ("requests", "response_body_bytes")}
    assert counts["requests"].get("GET /files", 0) <= 25 and counts["response_body_bytes"] < FILES * CONTENT / 4, said


def age_index(clone):
    """Files of the second in which git wrote its index are read by it, on any disk: so it was written a little later."""
    later = time.time() + 2
    os.utime(clone / ".git/index", (later, later))


def check_index(clone):
    """git keeps what fstat said after its last write: what lstat says now has to be the same, or it reads the content again."""
    files, name = {}, None
    for line in git("ls-files", "--debug", cwd=clone).splitlines():
        if not line.startswith(" "):
            files[name := line] = []
        elif line.strip().startswith(("ctime:", "mtime:")):
            seconds, nanoseconds = line.split(":")[1:]
            files[name].append(int(seconds) * 10**9 + int(nanoseconds))
    assert len(files) == FILES + 2
    for name, times in files.items():
        told = os.lstat(clone / name)
        assert times == [told.st_ctime_ns, told.st_mtime_ns], name


def test_git_status_reads_no_content(tiered):
    mount = tiered.mount("git")
    clone = mount.path / "clone"
    git("clone", "-q", bare_repository(tiered.scratch, size=CONTENT), clone)
    check_index(clone)
    age_index(clone)
    status_costs_no_content(tiered, clone)  # at once
    time.sleep(2)  # attributes have to be asked again
    status_costs_no_content(tiered, clone)
    git("checkout", "-q", "side", cwd=clone)
    age_index(clone)
    time.sleep(2)
    status_costs_no_content(tiered, clone)


def test_git_status_on_a_new_mount_reads_no_content(tiered):
    """The first one may: inode numbers are made up for each mount, and git compares them."""
    mount = tiered.mount("git")
    clone = mount.path / "clone"
    git("clone", "-q", bare_repository(tiered.scratch, size=CONTENT), clone)
    assert mount.umount().returncode == 0
    mount.mount()
    time.sleep(1.1)  # files of the second in which the index was written are read by git, on any disk: once
    git("status", cwd=clone)
    time.sleep(2)
    status_costs_no_content(tiered, clone)


@service_cannot("no inode numbers of the sandbox: ids=real is refused")
@pytest.mark.skipif(os.getuid() != 0, reason="ids=real is for root")
def test_git_status_with_real_inode_numbers(tiered):
    mount = tiered.mount("git", ["ids=real", "user=root", "allow_other", "default_permissions"])
    clone = mount.path / "clone"
    git("clone", "-q", bare_repository(tiered.scratch, size=CONTENT), clone)
    time.sleep(1.1)
    git("status", cwd=clone)
    assert mount.umount().returncode == 0
    mount.mount()
    status_costs_no_content(tiered, clone)  # the first one on this mount
