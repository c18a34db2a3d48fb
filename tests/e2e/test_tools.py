"""Programs that people use, on a mount; the result is compared with what the sandbox has on its own disk."""
import os, subprocess, threading

from conftest import PATIENCE, SANITIZED, digest_tree, eventually, run


def make_tree(top, directories=4, files=6):
    """A small tree with what real trees have: modes, empty files, deep directories, links, odd names."""
    top.mkdir(parents=True, exist_ok=True)
    for d in range(directories):
        directory = top / f"d{d}" / "deep" / "er"
        directory.mkdir(parents=True)
        for f in range(files):
            (directory / f"f{f}.txt").write_bytes(os.urandom(1000 * f * f) + b"needle\n" * (f % 2))
    (top / "empty").touch()
    (top / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (top / "run.sh").chmod(0o755)
    (top / "secret").write_text("s")
    (top / "secret").chmod(0o600)
    (top / "with space and ümlaut").write_text("x")
    (top / "-dash").write_text("y")
    os.symlink("d0/deep", top / "link")
    os.symlink("nowhere", top / "dangling")
    return top


def test_cp_mv_rm(place):
    source = make_tree(place.local / "tree")
    run("cp", "-a", source, place.here / "copy")
    assert digest_tree(place.there / "copy") == digest_tree(source)
    assert digest_tree(place.here / "copy") == digest_tree(source)
    assert os.stat(place.there / "copy/run.sh").st_mtime_ns == os.stat(source / "run.sh").st_mtime_ns
    run("mv", place.here / "copy", place.here / "moved")
    assert digest_tree(place.there / "moved") == digest_tree(source)
    assert not (place.there / "copy").exists()
    run("cp", "-a", place.here / "moved", place.local / "back")
    assert digest_tree(place.local / "back") == digest_tree(source)
    run("rm", "-r", place.here / "moved")
    assert os.listdir(place.there) == []


def test_cp_keeps_times(place):
    (place.local / "f").write_text("content")
    os.utime(place.local / "f", ns=(1_500_000_000_123_456_789, 1_500_000_001_987_654_321))
    run("cp", "-p", place.local / "f", place.here / "f")
    assert os.stat(place.there / "f").st_mtime_ns == 1_500_000_001_987_654_321
    assert os.stat(place.here / "f").st_mtime_ns == 1_500_000_001_987_654_321


def test_find_and_grep(place):
    make_tree(place.there / "tree")
    found = run("find", "tree", "-type", "f", cwd=place.here).stdout.splitlines()
    expected = run("find", "tree", "-type", "f", cwd=place.there).stdout.splitlines()
    assert sorted(found) == sorted(expected) and len(found) > 20
    here = run("grep", "-rc", "needle", "tree", cwd=place.here).stdout.splitlines()
    there = run("grep", "-rc", "needle", "tree", cwd=place.there).stdout.splitlines()
    assert sorted(here) == sorted(there)


def test_tar(place):
    source = make_tree(place.local / "tree")
    run("tar", "cf", place.local / "t.tar", "-C", place.local, "tree")
    run("tar", "xpf", place.local / "t.tar", "-C", place.here)
    assert digest_tree(place.there / "tree") == digest_tree(source)
    run("tar", "czf", place.here / "back.tar.gz", "-C", place.here, "tree")
    run("tar", "xpzf", place.there / "back.tar.gz", "-C", place.there, "--one-top-level=again")
    assert digest_tree(place.there / "again/tree") == digest_tree(source)


def test_rsync(place):
    source = make_tree(place.local / "tree")
    run("rsync", "-a", f"{source}/", place.here / "tree")
    assert digest_tree(place.there / "tree") == digest_tree(source)
    (source / "d1/deep/er/f3.txt").write_text("changed")
    os.remove(source / "empty")
    run("rsync", "-a", "--delete", f"{source}/", place.here / "tree")
    assert digest_tree(place.there / "tree") == digest_tree(source)
    assert run("rsync", "-ai", "--delete", f"{source}/", place.here / "tree").stdout == ""


def test_git(place):
    origin = place.local / "origin"
    make_tree(origin)
    run("git", "init", "-q", "-b", "main", cwd=origin)
    run("git", "add", "-A", cwd=origin)
    run("git", "commit", "-qm", "first", cwd=origin)
    run("git", "clone", "-q", origin, place.here / "clone")
    clone = place.here / "clone"
    assert run("git", "status", "--porcelain", cwd=clone).stdout == ""
    (clone / "new.txt").write_text("new\n")
    (clone / "run.sh").write_text("#!/bin/sh\necho changed\n")
    assert sorted(run("git", "status", "--porcelain", cwd=clone).stdout.splitlines()) == [" M run.sh", "?? new.txt"]
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-qm", "second", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone).stdout == ""
    run("git", "checkout", "-q", "-b", "side", "HEAD~1", cwd=clone)
    assert (place.there / "clone/run.sh").read_text() == "#!/bin/sh\necho ran\n"
    run("git", "checkout", "-q", "main", cwd=clone)
    # git inside the sandbox agrees about every object; ownership is not what is asked here.
    run("git", "-c", "safe.directory=*", "fsck", "--strict", cwd=place.there / "clone")
    assert run("git", "-c", "safe.directory=*", "log", "--oneline", cwd=place.there / "clone").stdout.count("\n") == 2


def test_an_editors_save(place):
    """A temporary file beside it, renamed over; then the old name's content is the new one on both sides."""
    (place.there / "f.txt").write_text("old\n")
    (place.here / "f.txt").read_text()
    for turn in range(5):
        with open(place.here / ".f.txt.swp", "x") as file:
            file.write(f"turn {turn}\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(place.here / ".f.txt.swp", place.here / "f.txt")
        assert (place.there / "f.txt").read_text() == f"turn {turn}\n"
        assert (place.here / "f.txt").read_text() == f"turn {turn}\n"
    assert os.listdir(place.there) == ["f.txt"]


def test_sed_in_place_and_ed_style_tools(place):
    (place.there / "f").write_text("one two\n" * 100)
    run("sed", "-i", "s/two/three/", place.here / "f")
    assert (place.there / "f").read_text() == "one three\n" * 100
    run("sort", "-o", place.here / "f", place.here / "f")
    run("dd", f"if={place.here / 'f'}", f"of={place.here / 'g'}", "bs=100", "status=none")
    assert (place.there / "g").read_text() == "one three\n" * 100


def test_a_big_file_each_way(place):
    size = (32 if SANITIZED else 256) << 20
    source = place.local / "big"
    with open(source, "wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    wanted = run("sha256sum", source).stdout.split()[0]
    run("cp", source, place.here / "big", timeout=600)
    assert run("sha256sum", place.there / "big").stdout.split()[0] == wanted
    os.rename(place.there / "big", place.there / "big2")  # a name whose content nothing here has cached
    eventually(lambda: (place.here / "big2").exists(), "the file is seen under its new name")
    assert run("sha256sum", place.here / "big2", timeout=600).stdout.split()[0] == wanted
    os.remove(place.here / "big2")
    os.remove(source)


def test_df(place):
    here = os.statvfs(place.here)
    there = os.statvfs(place.there)
    assert here.f_blocks * here.f_frsize == there.f_blocks * there.f_frsize
    assert abs(here.f_bavail * here.f_frsize - there.f_bavail * there.f_frsize) < 2 << 30
    assert "e2bfs" in run("df", "-T", place.here).stdout


def test_appending(place):
    for turn in range(10):
        run("sh", "-c", f"echo line {turn} >> log", cwd=place.here)
    assert (place.there / "log").read_text() == "".join(f"line {turn}\n" for turn in range(10))
    with open(place.there / "log", "a") as inside:  # a writer in the sandbox
        inside.write("inside\n")
    run("sh", "-c", "echo after >> log", cwd=place.here)
    assert (place.there / "log").read_text().endswith("line 9\ninside\nafter\n")


def test_two_processes_append_to_one_file(place):
    (place.here / "log").touch()
    script = 'for i in 1 2 3 4 5 6 7 8 9 10; do echo "$0 $i" >> log; done'
    both = [subprocess.Popen(["sh", "-c", script, name], cwd=place.here) for name in ("a", "b")]
    assert [process.wait(PATIENCE) for process in both] == [0, 0]
    lines = (place.there / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {i}" for name in "ab" for i in range(1, 11))
    assert [line for line in lines if line[0] == "a"] == [f"a {i}" for i in range(1, 11)]


def test_two_processes_write_their_halves(place):
    (place.here / "f").write_bytes(bytes(200_000))
    writer = ("import os,sys\nfd=os.open('f',os.O_RDWR)\nstart=int(sys.argv[1])\n"
              "for i in range(100): os.pwrite(fd,bytes([65+start//100000])*1000,start+i*1000)\nos.close(fd)\n")
    both = [subprocess.Popen(["python3", "-c", writer, str(start)], cwd=place.here) for start in (0, 100_000)]
    assert [process.wait(PATIENCE) for process in both] == [0, 0]
    assert (place.there / "f").read_bytes() == b"A" * 100_000 + b"B" * 100_000


def test_mmap(place):
    script = ("import mmap,os\nf=open('f','r+b')\nm=mmap.mmap(f.fileno(),0)\nassert m[:5]==b'hello'\n"
              "m[0:5]=b'HELLO'\nm.flush()\nm.close()\nf.close()\n")
    (place.there / "f").write_bytes(b"hello" + bytes(10_000))
    eventually(lambda: (place.here / "f").exists(), "the file is seen")
    run("python3", "-c", script, cwd=place.here)
    assert (place.there / "f").read_bytes() == b"HELLO" + bytes(10_000)


def test_a_build(place):
    (place.here / "Makefile").write_text("prog: a.o b.o\n\tcc -o $@ $^\n%.o: %.c\n\tcc -c $<\n")
    (place.here / "a.c").write_text("int b(void); int main(void){return b();}\n")
    (place.here / "b.c").write_text("int b(void){return 7;}\n")
    run("make", "-j2", cwd=place.here)
    assert run(place.there / "prog", check=False).returncode == 7
    assert run(place.here / "prog", check=False).returncode == 7
    assert "up to date" in run("make", cwd=place.here).stdout


def test_many_readers(place):
    contents = {f"f{i}": os.urandom(30_000 + i) for i in range(40)}
    for name, content in contents.items():
        (place.there / name).write_bytes(content)
    problems = []

    def read(names):
        for name in names:
            if (place.here / name).read_bytes() != contents[name]:
                problems.append(name)

    eventually(lambda: len(os.listdir(place.here)) == 40, "all files are listed")
    threads = [threading.Thread(target=read, args=(list(contents)[start::2],)) for start in (0, 1, 0, 1)]
    [thread.start() for thread in threads]
    [thread.join(PATIENCE) for thread in threads]
    assert not problems
