"""System calls that Python has no function for, each raising OSError as the functions of `os` do."""
import ctypes, os, struct

libc = ctypes.CDLL(None, use_errno=True)
AARCH64 = os.uname().machine == "aarch64"
NUMBERS = {  # x86_64, aarch64
    "renameat2": (316, 276), "name_to_handle_at": (303, 264), "statx": (332, 291), "faccessat2": (439, 439), "fchmodat2": (452, 452),
    "utimensat": (280, 88), "linkat": (265, 37), "mknodat": (259, 33), "openat2": (437, 437), "readlinkat": (267, 78),
}
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_EACCESS, AT_EMPTY_PATH = -100, 0x100, 0x200, 0x400, 0x200, 0x1000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_COLLAPSE, FALLOC_ZERO, FALLOC_INSERT = 1, 2, 8, 16, 32
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
O_TMPFILE = 0o20000000 | os.O_DIRECTORY
XATTR_CREATE, XATTR_REPLACE = 1, 2


def checked(outcome):
    if outcome < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return outcome


def argument(value):
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, (str, bytes, os.PathLike)):
        return ctypes.c_char_p(os.fsencode(value))
    return value


def syscall(name, *arguments):
    libc.syscall.restype = ctypes.c_long
    return checked(libc.syscall(ctypes.c_long(NUMBERS[name][AARCH64]), *[argument(each) for each in arguments]))


def renameat2(source, target, flags):
    syscall("renameat2", AT_FDCWD, source, AT_FDCWD, target, flags)


def linkat(source, target, flags, source_fd=AT_FDCWD):
    syscall("linkat", source_fd, source, AT_FDCWD, target, flags)


def fallocate(fd, mode, offset, length):
    libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    checked(libc.fallocate64(fd, mode, offset, length))


def utimensat(path, atime, mtime, flags=0):
    """Each time is (seconds, nanoseconds or UTIME_NOW or UTIME_OMIT)."""
    both = None if atime is None else ctypes.create_string_buffer(struct.pack("qqqq", *atime, *mtime), 32)
    syscall("utimensat", AT_FDCWD, path, both, flags)


def faccessat2(path, mode, flags):
    syscall("faccessat2", AT_FDCWD, path, mode, flags)


def fchmodat2(path, mode, flags):
    syscall("fchmodat2", AT_FDCWD, path, mode, flags)


def statx(path, flags=AT_SYMLINK_NOFOLLOW, mask=0xFFF):
    buffer = ctypes.create_string_buffer(256)
    syscall("statx", AT_FDCWD, path, flags, mask, buffer)
    names = ("mask", "blksize", "attributes", "nlink", "uid", "gid", "mode", "ino", "size", "blocks", "attributes_mask")
    found = dict(zip(names, struct.unpack_from("=IIQIIIHxxQQQQ", buffer)))
    for number, name in enumerate(("atime", "btime", "ctime", "mtime")):
        seconds, nanoseconds = struct.unpack_from("=qI", buffer, 64 + 16 * number)
        found[name] = seconds * 1_000_000_000 + nanoseconds
    return found


def name_to_handle_at(path):
    buffer = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    mount_id = ctypes.c_int()
    syscall("name_to_handle_at", AT_FDCWD, path, buffer, ctypes.byref(mount_id), 0)
    return buffer.raw[:8 + struct.unpack_from("I", buffer)[0]]


class Dirent(ctypes.Structure):
    _fields_ = [("d_ino", ctypes.c_uint64), ("d_off", ctypes.c_int64), ("d_reclen", ctypes.c_uint16), ("d_type", ctypes.c_uint8),
                ("d_name", ctypes.c_char * 256)]


class Directory:
    """opendir(3) and its companions, which `os` hides."""

    def __init__(self, path):
        libc.opendir.restype = ctypes.c_void_p
        libc.opendir.argtypes = [ctypes.c_char_p]
        libc.readdir.restype = ctypes.POINTER(Dirent)
        libc.telldir.restype = ctypes.c_long
        for name in ("readdir", "telldir", "rewinddir", "closedir"):
            getattr(libc, name).argtypes = [ctypes.c_void_p]
        libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
        self.stream = libc.opendir(os.fsencode(path))
        if not self.stream:
            checked(-1)

    def next(self):
        """(name, inode number, type), None at the end."""
        ctypes.set_errno(0)
        entry = libc.readdir(self.stream)
        if not entry:
            if ctypes.get_errno():
                checked(-1)
            return None
        return entry.contents.d_name, entry.contents.d_ino, entry.contents.d_type

    def rest(self):
        names = []
        while entry := self.next():
            names.append(entry[0])
        return names

    def tell(self):
        return libc.telldir(self.stream)

    def seek(self, where):
        libc.seekdir(self.stream, where)

    def rewind(self):
        libc.rewinddir(self.stream)

    def close(self):
        checked(libc.closedir(self.stream))
