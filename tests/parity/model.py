"""What a file system is, in memory: for test_model.py. Operations and the errnos that Linux gives, in Linux's order."""
import errno, hashlib, os, pickle, stat

import calls

MOUNTED = ("p0", "p1")  # processes that work through the mount
INSIDE = "in"           # the second client, in the sandbox itself


def data_of(seed, length):
    return (hashlib.sha256(str(seed).encode()).digest() * (length // 32 + 1))[:length]


def digest(data):
    return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:12]}"


class Failure(Exception):
    def __init__(self, name):
        super().__init__(name)
        self.name = name


class Thing:
    def __init__(self, kind, mode, content=b""):
        self.kind, self.mode, self.content = kind, mode, content
        self.entries = {}
        self.mtime = None     # only where it was set
        self.dirty = False    # written by a handle of the mount, not yet closed or synced: the sandbox need not have it
        self.unsent = False   # nor its mode and times
        self.links = 0
        self.xattrs = {}


class Handle:
    def __init__(self, thing, readable, writable, append, created):
        self.thing, self.readable, self.writable, self.append, self.created = thing, readable, writable, append, created
        self.stale = False    # its content was changed inside since it was opened: what it reads is not promised by the service tier


class Model:
    """behind: None where all is sent at once; else (-o writeback) whether something may be unsent."""

    def __init__(self, service=False, behind=None):
        self.service, self.behind = service, behind
        self.root = Thing("directory", 0o755)
        self.handles = {}  # (actor, number) -> Handle

    # --- walking
    def walk(self, path, follow, depth=0):
        """(directory, name, thing or None) of the last component."""
        if depth > 40:
            raise Failure("ELOOP")
        return self.step([self.root], path.split("/"), follow, depth)

    def step(self, stack, parts, follow, depth):
        parts = list(parts)
        while True:
            part = parts.pop(0)
            directory = stack[-1]
            if directory.kind != "directory":
                raise Failure("ENOTDIR")
            if part == "..":
                assert len(stack) > 1, "a link that leads out"
                stack.pop()
                if not parts:
                    return None, "..", stack[-1]
                continue
            thing = directory.entries.get(part)
            if thing is not None and thing.kind == "link" and (parts or follow):
                depth += 1
                if depth > 40:
                    raise Failure("ELOOP")
                parts = thing.content.decode().split("/") + parts
                continue
            if not parts:
                return directory, part, thing
            if thing is None:
                raise Failure("ENOENT")
            stack.append(thing)

    def find(self, path, follow=False):
        directory, name, thing = self.walk(path, follow)
        if thing is None:
            raise Failure("ENOENT")
        return thing

    def everything(self, top=None, prefix=""):
        for name, thing in sorted((top or self.root).entries.items()):
            yield prefix + name, thing
            if thing.kind == "directory":
                yield from self.everything(thing, f"{prefix}{name}/")

    def below(self, top, thing):
        return top is thing or (top.kind == "directory" and any(self.below(each, thing) for each in top.entries.values()))

    def held(self, thing):
        """Handles of mounted processes on it or on something below it."""
        return [handle for (actor, _), handle in self.handles.items() if actor in MOUNTED and self.below(thing, handle.thing)]

    # --- changing
    def add(self, directory, name, thing):
        directory.entries[name] = thing
        thing.links += 1

    def remove(self, directory, name):
        directory.entries.pop(name).links -= 1

    def apply(self, op):
        actor, what, *arguments = op
        if self.behind is False and actor in MOUNTED:
            self.behind = True
        try:
            return getattr(self, "do_" + what)(actor, *arguments)
        except Failure as failure:
            return failure.name

    def do_flush(self, actor):
        """`e2bfs flush`, or the end of a mount and another one after it: everything is there."""
        self.behind = False
        for thing in [each for _, each in self.everything()] + [handle.thing for handle in self.handles.values()]:
            thing.dirty = thing.unsent = False
        return "ok"

    do_remount = do_crash = do_flush

    def changed(self, actor, thing):
        thing.mtime = None
        if actor == INSIDE and self.service:
            for handle in self.held(thing):
                handle.stale = True

    def opened(self, path, create=False, exclusive=False, write=True, mode=0o644):
        directory, name, thing = self.walk(path, follow=not exclusive)
        if thing is None:
            if not create:
                raise Failure("ENOENT")
            thing = Thing("file", mode)
            self.add(directory, name, thing)
            return thing
        if exclusive:
            raise Failure("EEXIST")
        if thing.kind == "directory" and (write or create):
            raise Failure("EISDIR")
        return thing

    def do_create(self, actor, path):
        self.opened(path, create=True, exclusive=True)
        return "ok"

    def do_put(self, actor, path, seed, length):
        thing = self.opened(path, create=True)
        self.changed(actor, thing)
        thing.content = data_of(seed, length)
        self.sent(actor, thing)
        return "ok"

    def do_write(self, actor, path, offset, seed, length):
        thing = self.opened(path)
        self.store(actor, thing, offset, data_of(seed, length))
        self.sent(actor, thing)
        return "ok"

    def do_append(self, actor, path, seed, length):
        thing = self.opened(path)
        self.store(actor, thing, len(thing.content), data_of(seed, length))
        self.sent(actor, thing)
        return "ok"

    def sent(self, actor, thing):
        if actor != INSIDE:
            thing.dirty = thing.unsent = False

    def store(self, actor, thing, offset, data):
        if data:
            self.changed(actor, thing)
            content = thing.content.ljust(offset, b"\0")
            thing.content = content[:offset] + data + content[offset + len(data):]

    def do_get(self, actor, path):
        thing = self.opened(path, write=False)
        if thing.kind == "directory":
            raise Failure("EISDIR")
        return digest(thing.content)

    def do_truncate(self, actor, path, size):
        thing = self.find(path, follow=True)
        if thing.kind == "directory":
            raise Failure("EISDIR")
        self.changed(actor, thing)
        thing.content = thing.content[:size].ljust(size, b"\0")
        self.sent(actor, thing)
        return "ok"

    def do_mkdir(self, actor, path):
        directory, name, thing = self.walk(path, follow=False)
        if thing is not None:
            raise Failure("EEXIST")
        self.add(directory, name, Thing("directory", 0o755))
        return "ok"

    def do_symlink(self, actor, text, path):
        directory, name, thing = self.walk(path, follow=False)
        if thing is not None:
            raise Failure("EEXIST")
        self.add(directory, name, Thing("link", 0o777, text.encode()))
        return "ok"

    def do_link(self, actor, source, target):
        thing = self.find(source)
        directory, name, there = self.walk(target, follow=False)
        if there is not None:
            raise Failure("EEXIST")
        if thing.kind == "directory":
            raise Failure("EPERM")
        self.add(directory, name, thing)
        return "ok"

    def do_unlink(self, actor, path):
        directory, name, thing = self.walk(path, follow=False)
        if thing is None:
            raise Failure("ENOENT")
        if thing.kind == "directory":
            raise Failure("EISDIR")
        self.remove(directory, name)
        return "ok"

    def do_rmdir(self, actor, path):
        directory, name, thing = self.walk(path, follow=False)
        if thing is None:
            raise Failure("ENOENT")
        if thing.kind != "directory":
            raise Failure("ENOTDIR")
        if thing.entries:
            raise Failure("ENOTEMPTY")
        self.remove(directory, name)
        return "ok"

    def do_rename(self, actor, source, target, flags=0):
        old_directory, old_name, old = self.walk(source, follow=False)
        new_directory, new_name, new = self.walk(target, follow=False)
        if old is None:
            raise Failure("ENOENT")
        if new is not None and flags & calls.RENAME_NOREPLACE:
            raise Failure("EEXIST")
        if new is None and flags & calls.RENAME_EXCHANGE:
            raise Failure("ENOENT")
        if self.below(old, new_directory):
            raise Failure("EINVAL")
        if new is not None and self.below(new, old_directory):
            raise Failure("EINVAL" if flags & calls.RENAME_EXCHANGE else "ENOTEMPTY")
        if old is new:
            return "ok"
        if flags & calls.RENAME_EXCHANGE:
            old_directory.entries[old_name], new_directory.entries[new_name] = new, old
            return "ok"
        if new is not None:
            if old.kind == "directory" and new.kind != "directory":
                raise Failure("ENOTDIR")
            if old.kind != "directory" and new.kind == "directory":
                raise Failure("EISDIR")
            if new.entries:
                raise Failure("ENOTEMPTY")
            self.remove(new_directory, new_name)
        self.remove(old_directory, old_name)
        self.add(new_directory, new_name, old)
        return "ok"

    def do_chmod(self, actor, path, mode):
        thing = self.find(path, follow=True)
        thing.mode = mode | 0o700 if thing.kind == "directory" else mode
        self.sent_later(actor, thing)
        return "ok"

    def do_utime(self, actor, path, mtime):
        thing = self.find(path, follow=True)
        thing.mtime = mtime
        self.sent_later(actor, thing)
        return "ok"

    def sent_later(self, actor, thing):
        """Attributes that are set on a file which is open for writing may go with what that sends: with its
        content, or where the handle made the file."""
        if actor != INSIDE and thing.kind == "file" and any(handle.writable and (thing.dirty or thing.unsent or handle.created) for handle in self.held(thing)):
            thing.unsent = True

    def do_setxattr(self, actor, path, name, value, flags):
        return self.set_xattr(self.find(path, follow=True), name, value, flags)

    def set_xattr(self, thing, name, value, flags):
        if flags & os.XATTR_CREATE and name in thing.xattrs:
            raise Failure("EEXIST")
        if flags & os.XATTR_REPLACE and name not in thing.xattrs:
            raise Failure("ENODATA")
        thing.xattrs[name] = value
        return "ok"

    def get_xattr(self, thing, name):
        if name not in thing.xattrs:
            raise Failure("ENODATA")
        return thing.xattrs[name]

    def do_getxattr(self, actor, path, name):
        return self.get_xattr(self.find(path, follow=True), name)

    def do_removexattr(self, actor, path, name):
        thing = self.find(path, follow=True)
        self.get_xattr(thing, name)
        del thing.xattrs[name]
        return "ok"

    def do_hsetxattr(self, actor, number, name, value, flags):
        return self.set_xattr(self.handles[actor, number].thing, name, value, flags)

    def do_hgetxattr(self, actor, number, name):
        return self.get_xattr(self.handles[actor, number].thing, name)

    def do_hcopy(self, actor, number, source, offset, to, length):
        """copy_file_range of two handles of one process."""
        origin, target = self.handles[actor, source], self.handles[actor, number]
        if not target.writable or target.append:
            raise Failure("EBADF")
        data = origin.thing.content[offset:offset + length]
        length = len(data)
        if origin.thing is target.thing and length and offset < to + length and to < offset + length:
            raise Failure("EINVAL")
        self.store(actor, target.thing, to, data)  # done in the sandbox
        return str(len(data))

    def do_hpunch(self, actor, number, offset, length):
        handle = self.handles[actor, number]
        if not handle.writable:
            raise Failure("EBADF")
        content = handle.thing.content
        end = min(offset + length, len(content))
        if end > offset:
            handle.thing.content = content[:offset] + bytes(end - offset) + content[end:]
        self.changed(actor, handle.thing)
        return "ok"

    # --- handles
    def do_open(self, actor, number, path, how):
        flags = HOW[how]
        before = self.walk(path, follow=True)[2] if flags & os.O_CREAT and not flags & os.O_EXCL else None
        thing = self.opened(path, create=bool(flags & os.O_CREAT), exclusive=bool(flags & os.O_EXCL), write=how != "r")
        if thing.kind == "directory":
            raise Failure("EISDIR")
        if flags & os.O_TRUNC:
            self.changed(actor, thing)
            thing.content = b""
            thing.dirty = True
        self.handles[actor, number] = Handle(thing, True, how != "r", bool(flags & os.O_APPEND), bool(flags & os.O_CREAT) and before is None)
        return "ok"

    def do_hread(self, actor, number):
        return digest(self.handles[actor, number].thing.content)

    def do_hwrite(self, actor, number, offset, seed, length):
        handle = self.handles[actor, number]
        if not handle.writable:
            raise Failure("EBADF")
        self.store(actor, handle.thing, len(handle.thing.content) if handle.append else offset, data_of(seed, length))
        handle.thing.dirty = True
        return "ok"

    def do_htruncate(self, actor, number, size):
        handle = self.handles[actor, number]
        if not handle.writable:
            raise Failure("EINVAL")
        self.changed(actor, handle.thing)
        handle.thing.content = handle.thing.content[:size].ljust(size, b"\0")
        handle.thing.dirty = True
        return "ok"

    def do_hstat(self, actor, number):
        thing = self.handles[actor, number].thing
        return f"{len(thing.content)} {thing.mode:o}"

    def do_hchmod(self, actor, number, mode):
        self.handles[actor, number].thing.mode = mode
        self.sent_later(actor, self.handles[actor, number].thing)
        return "ok"

    def do_hsync(self, actor, number):
        thing = self.handles[actor, number].thing
        thing.dirty = thing.unsent = False
        return "ok"

    def do_hclose(self, actor, number):
        handle = self.handles.pop((actor, number))
        if handle.writable:
            handle.thing.dirty = handle.thing.unsent = False
        return "ok"


HOW = {"r": os.O_RDONLY, "rw": os.O_RDWR, "a": os.O_RDWR | os.O_APPEND, "c": os.O_RDWR | os.O_CREAT, "x": os.O_RDWR | os.O_CREAT | os.O_EXCL, "t": os.O_RDWR | os.O_CREAT | os.O_TRUNC}


class Worker:
    """Does the operations for real, below a directory."""

    def __init__(self, top):
        self.top, self.handles = top, {}

    def path(self, path):
        return os.path.join(self.top, path)

    def apply(self, op):
        _, what, *arguments = op
        try:
            return getattr(self, "do_" + what)(*arguments) or "ok"
        except OSError as problem:
            return errno.errorcode[problem.errno]

    def change(self, path, flags, change):
        fd = os.open(self.path(path), flags, 0o644)
        try:
            change(fd)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its error is the result

    def do_create(self, path):
        self.change(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, lambda fd: None)

    def do_put(self, path, seed, length):
        self.change(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, lambda fd: os.write(fd, data_of(seed, length)))

    def do_write(self, path, offset, seed, length):
        self.change(path, os.O_WRONLY, lambda fd: os.pwrite(fd, data_of(seed, length), offset))

    def do_append(self, path, seed, length):
        self.change(path, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, data_of(seed, length)))

    def do_get(self, path):
        with open(self.path(path), "rb", buffering=0) as file:
            return digest(file.readall())

    def do_truncate(self, path, size):
        os.truncate(self.path(path), size)

    def do_mkdir(self, path):
        os.mkdir(self.path(path))

    def do_symlink(self, text, path):
        os.symlink(text, self.path(path))

    def do_link(self, source, target):
        os.link(self.path(source), self.path(target), follow_symlinks=False)

    def do_unlink(self, path):
        os.unlink(self.path(path))

    def do_rmdir(self, path):
        os.rmdir(self.path(path))

    def do_rename(self, source, target, flags=0):
        if flags:
            calls.renameat2(self.path(source), self.path(target), flags)
        else:
            os.rename(self.path(source), self.path(target))

    def do_chmod(self, path, mode):
        path = self.path(path)
        os.chmod(path, mode | 0o700 if os.path.isdir(path) else mode)

    def do_utime(self, path, mtime):
        os.utime(self.path(path), ns=(mtime, mtime))

    def do_setxattr(self, path, name, value, flags):
        os.setxattr(self.path(path), name, value.encode(), flags)

    def do_getxattr(self, path, name):
        return os.getxattr(self.path(path), name).decode()

    def do_removexattr(self, path, name):
        os.removexattr(self.path(path), name)

    def do_hsetxattr(self, number, name, value, flags):
        os.setxattr(self.handles[number], name, value.encode(), flags)

    def do_hgetxattr(self, number, name):
        return os.getxattr(self.handles[number], name).decode()

    def do_hcopy(self, number, source, offset, to, length):
        return str(os.copy_file_range(self.handles[source], self.handles[number], length, offset, to))

    def do_hpunch(self, number, offset, length):
        calls.fallocate(self.handles[number], calls.FALLOC_PUNCH_HOLE | calls.FALLOC_KEEP_SIZE, offset, length)

    def do_open(self, number, path, how):
        fd = os.open(self.path(path), HOW[how], 0o644)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            return "EISDIR"
        self.handles[number] = fd

    def do_hread(self, number):
        return digest(os.pread(self.handles[number], 1 << 22, 0))

    def do_hwrite(self, number, offset, seed, length):
        os.pwrite(self.handles[number], data_of(seed, length), offset)

    def do_htruncate(self, number, size):
        os.ftruncate(self.handles[number], size)

    def do_hstat(self, number):
        status = os.fstat(self.handles[number])
        return f"{status.st_size} {stat.S_IMODE(status.st_mode):o}"

    def do_hchmod(self, number, mode):
        os.fchmod(self.handles[number], mode)

    def do_hsync(self, number):
        os.fsync(self.handles[number])

    def do_hclose(self, number):
        os.close(self.handles.pop(number))


class Process:
    """A Worker in a process of its own."""

    def __init__(self, top):
        request, self.requests = os.pipe()
        self.answers, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.requests), os.close(self.answers)
                os.umask(0o022)
                worker = Worker(top)
                with os.fdopen(request, "rb") as requests, os.fdopen(answer, "wb", buffering=0) as answers:
                    while True:
                        answers.write(pickle.dumps(worker.apply(pickle.load(requests))))
            except EOFError:
                pass
            finally:
                os._exit(0)
        os.close(request), os.close(answer)

    def apply(self, op):
        os.write(self.requests, pickle.dumps(op))
        return pickle.loads(os.read(self.answers, 65_536))

    def end(self):
        os.close(self.requests), os.close(self.answers)
        os.waitpid(self.pid, 0)
