"""Processes of test_rename_storm.py.

  storm.py rename TOP SECONDS SEED          renames the directories of TOP for ever so long
  storm.py work TOP SECONDS SEED WAY        makes, writes, reads, renames and removes files below them; WAY is "path" or "descriptor"

TOP has two directories, left and right, and in one of them for each number n the directory n-a or n-b; its file ID says
which one it is, since names are swapped too. A file's name and content say in which directory it has to be. A worker ends
with what it left, as JSON: {"files": [[id, name, content]...], "problems": [...], "done": operations}.
"""
import errno, json, os, random, sys, time

DIRECTORIES = 4
MOVED = {errno.ENOENT}  # by path, while somebody renames what is above: as a local disk


def names():
    return [f"{side}/{number}-{half}" for side in ("left", "right") for number in range(DIRECTORIES) for half in "ab"]


def make(top):
    for side in ("left", "right"):
        os.makedirs(os.path.join(top, side))
    for number in range(DIRECTORIES):
        directory = os.path.join(top, "left", f"{number}-a")
        os.mkdir(directory)
        with open(os.path.join(directory, "ID"), "w") as file:
            file.write(str(number))


def rename(top, until, rng):
    """Only this process renames them, so it knows where each is."""
    os.chdir(top)
    where = [next(name for name in names() if name.split("/")[1][0] == str(number) and os.path.isdir(name)) for number in range(DIRECTORIES)]
    swapped, problems, done = set(), [], 0

    def move(source, target):
        nonlocal done
        try:
            os.rename(source, target)
            done += 1
        except OSError as problem:
            problems.append(f"rename {source} {target}: {problem!r}")
            raise

    try:
        while time.monotonic() < until:
            number = rng.randrange(DIRECTORIES)
            if rng.random() < 0.3:  # two directories take each other's names: a path alone says nothing then
                other = (number + 1) % DIRECTORIES
                move(where[number], "aside")
                move(where[other], where[number])
                move("aside", where[other])
            else:
                fresh = rng.choice([name for name in names() if name.split("/")[1][0] == where[number].split("/")[1][0] and name != where[number]])
                move(where[number], fresh)
                where[number] = fresh
            time.sleep(rng.random() * 0.004)
    except OSError:
        pass
    return {"files": [], "problems": problems, "done": done}


class Worker:
    def __init__(self, top, seed, way):
        os.chdir(top)
        self.seed, self.way, self.rng = seed, way, random.Random(seed)
        self.files, self.problems, self.done, self.serial = {}, [], 0, 0

    def attempt(self, what, call, allowed=()):
        """The call's result; None if it failed, and a problem if it failed in a way that a local disk would not."""
        try:
            result = call()
            self.done += 1
            return True if result is None else result
        except OSError as problem:
            if problem.errno not in allowed:
                self.problems.append(f"{what}: {errno.errorcode.get(problem.errno, problem.errno)}")
            return None

    def wrong(self, what):
        self.problems.append("wrong: " + what)

    @staticmethod
    def read(name, directory):
        file = os.open(name, os.O_RDONLY, dir_fd=directory)
        try:
            return os.read(file, 1000).decode()
        finally:
            os.close(file)

    def by_descriptor(self):
        """Below a directory that is open: nothing may fail, wherever it is by now."""
        directory = self.attempt("open directory", lambda: os.open(self.rng.choice(names()), os.O_RDONLY | os.O_DIRECTORY), MOVED)
        if directory is None:
            return
        try:
            which = self.attempt("read ID", lambda: self.read("ID", directory))
            if which is None:
                return
            for _ in range(self.rng.randrange(1, 5)):
                self.one_file(which, directory)
        finally:
            os.close(directory)

    def one_file(self, which, directory):
        self.serial += 1
        name = f"{which}.{self.seed}.{self.serial}"
        content = f"{name} in {which}"
        file = self.attempt("create", lambda: os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=directory))
        if file is None:
            return
        self.attempt("write", lambda: os.write(file, content[:5].encode()))
        time.sleep(self.rng.random() * 0.003)
        self.attempt("write", lambda: os.write(file, content[5:].encode()))
        self.attempt("close", lambda: os.close(file))
        self.files[name] = (which, content)
        found = self.attempt("read back", lambda: self.read(name, directory))
        if found is not None and found != content:
            self.wrong(f"{name} has {found!r}")
        if self.attempt("stat", lambda: os.stat(name, dir_fd=directory)) and name not in (self.attempt("list", lambda: os.listdir(directory)) or [name]):
            self.wrong(f"{name} is not listed")
        dice = self.rng.random()
        if dice < 0.3:
            if self.attempt("unlink", lambda: os.unlink(name, dir_fd=directory)):
                del self.files[name]
        elif dice < 0.6:
            if self.attempt("rename", lambda: os.rename(name, name + ".r", src_dir_fd=directory, dst_dir_fd=directory)):
                self.files[name + ".r"] = self.files.pop(name)
        elif dice < 0.8:
            if self.attempt("mkdir", lambda: os.mkdir(name + ".d", dir_fd=directory)):
                self.attempt("rmdir", lambda: os.rmdir(name + ".d", dir_fd=directory))

    def by_path(self):
        """What is above may move at any moment; a call then fails with ENOENT and has changed nothing, or is done."""
        top = self.rng.choice(names())
        self.serial += 1
        name = f"any.{self.seed}.{self.serial}"
        content = f"{name}\n" * 3
        file = self.attempt("create", lambda: os.open(f"{top}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), MOVED)
        if file is None:
            return
        self.attempt("write", lambda: os.write(file, content.encode()))
        self.attempt("close", lambda: os.close(file))
        self.files[name] = ("any", content)
        found = self.attempt("read back", lambda: self.read(f"{top}/{name}", None), MOVED)
        if found is not None and found != content:
            self.wrong(f"{name} has {found!r}")
        dice = self.rng.random()
        if dice < 0.3:
            if self.attempt("unlink", lambda: os.unlink(f"{top}/{name}"), MOVED):
                del self.files[name]
        elif dice < 0.7:
            target = self.rng.choice(names())
            if self.attempt("rename", lambda: os.rename(f"{top}/{name}", f"{target}/{name}.r"), MOVED):
                self.files[name + ".r"] = self.files.pop(name)
        elif dice < 0.8:
            self.attempt("chmod", lambda: os.chmod(f"{top}/{name}", 0o600), MOVED)

    def work(self, until):
        step = self.by_path if self.way == "path" else self.by_descriptor
        while time.monotonic() < until and len(self.problems) < 20:
            step()
        return {"files": [[which, name, content] for name, (which, content) in self.files.items()], "problems": self.problems, "done": self.done}


if __name__ == "__main__":
    mode, top, seconds, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    until = time.monotonic() + seconds
    result = rename(top, until, random.Random(seed)) if mode == "rename" else Worker(top, seed, sys.argv[5]).work(until)
    print(json.dumps(result))
