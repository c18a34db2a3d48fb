"""MATRIX.md: operation × case × test × tier, made from the cases themselves. `python3 matrix.py --write` writes it; test_matrix.py checks it."""
import ast, importlib, pathlib, sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import parity

# What is asked for, each with the operations whose cases (or the tests that) judge it.
ASKED = [
    ("hard links: true counts, shared content", ["link"]),
    ("symbolic links: raw text, dangling, relative, absolute, loops", ["symlink"]),
    ("mkfifo, mknod, sockets, devices; opening them hangs nothing", ["mknod"]),
    ("chmod with setuid, setgid, sticky; umask", ["chmod", "umask", "setuid", "setgid"]),
    ("chown, chgrp", ["chown"]),
    ("utimensat, UTIME_NOW, UTIME_OMIT", ["utimes"]),
    ("truncate and ftruncate, holes", ["truncate"]),
    ("fallocate", ["fallocate"]),
    ("O_EXCL, O_DIRECTORY, O_NOFOLLOW and the other flags", ["open"]),
    ("O_TRUNC", ["O_TRUNC"]),
    ("O_APPEND, also against a writer inside", ["O_APPEND"]),
    ("write, fsync, several descriptors", ["write"]),
    ("rename over everything, NOREPLACE, EXCHANGE, EXDEV, ENOTEMPTY, EISDIR, ENOTDIR, EINVAL", ["rename", "errno and effect"]),
    ("read, write, fstat, ftruncate, fchmod after unlink", ["unlinked while open"]),
    ("the same after rename", ["renamed while open"]),
    ("unlink of a directory, rmdir of a file, mkdir", ["unlink and rmdir", "mkdir"]),
    ("names of 255 bytes, any bytes, `.` and `..`, PATH_MAX", ["names"]),
    ("large directories, seekdir, telldir, rewinddir while entries come and go", ["directories"]),
    ("mmap shared and private", ["mmap"]),
    ("SEEK_DATA, SEEK_HOLE", ["lseek"]),
    ("copy_file_range", ["copy_file_range"]),
    ("flock and fcntl locks between processes", ["locks"]),
    ("extended attributes", ["xattrs"]),
    ("statfs", ["statfs"]),
    ("atime, ctime, mtime of each operation", ["times"]),
    ("inode numbers, st_blocks, statx", ["stat"]),
    ("a file system that is mounted below the mounted directory", ["another file system below"]),
    ("access, and who may do what", ["access", "permissions"]),
    ("programs are run", ["exec"]),
]
# Tests beside the cases, with what they judge.
OTHERS = [
    ("a model: weighted operations of several processes and of a client inside", "tests/parity/test_model.py", "test_random_operations", "all"),
    ("traces that once failed", "tests/parity/test_model.py", "test_regression", "all"),
    ("files of /proc and /sys that say size 0", "tests/parity/test_content.py", "test_files_whose_size_says_nothing", "all"),
    ("random reads and writes of one file, with and without mmap", "tests/parity/test_fsx.py", "test_fsx", "all"),
]


def e2e_tests():
    """The tests of e2e/test_semantics.py with the first line of what they say: they run on the tier that the mount takes by itself."""
    tree = ast.parse((HERE.parent / "e2e/test_semantics.py").read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def cell(case, tier):
    mark = case.marks.get(tier)
    return mark.reason if mark else "✓"


def all_cases():
    for path in sorted(HERE.glob("test_*.py")):
        if path.stem not in ("test_matrix", "test_model", "test_fsx", "test_limits"):
            importlib.import_module(path.stem)
    return parity.CASES


def text():
    all_cases()
    by_operation = {}
    for each in parity.CASES:
        by_operation.setdefault(each.operation, []).append(each)
    asked = {operation for _, operations in ASKED for operation in operations}
    assert asked == by_operation.keys(), f"asked for and not judged, or judged and not asked for: {asked ^ by_operation.keys()}"
    lines = ["# What is compared with a local disk, on which tier", "",
             "Made by `python3 tests/parity/matrix.py --write`, checked by `test_matrix.py`. ✓: value, errno and the resulting tree are those of a local directory. Anything else is the reason why the",
             "tier cannot, and the suite fails when that is no longer so. `real` is the syscall tier with `ids=real`.", "",
             f"{len(parity.CASES)} cases; deviations: " + ", ".join(f"{tier} {sum(tier in each.marks for each in parity.CASES)}" for tier in parity.TIERS) + ".", ""]
    for title, operations in ASKED:
        lines += [f"## {title}", "", "| operation | case | test | service | syscall | real |", "| --- | --- | --- | --- | --- | --- |"]
        for operation in operations:
            for each in by_operation[operation]:
                cells = [operation, each.name, f"{each.module}.py"] + [cell(each, tier) for tier in parity.TIERS]
                lines.append("| " + " | ".join(part.replace("|", "\\|") for part in cells) + " |")
        lines.append("")
    lines += ["## Beside the cases", "", "| what | test | tiers |", "| --- | --- | --- |"]
    lines += [f"| {what} | {path}: {name} | {tiers} |" for what, path, name, tiers in OTHERS]
    lines += [f"| {name[5:].replace('_', ' ')} | tests/e2e/test_semantics.py: {name} | the default |" for name in e2e_tests()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        (HERE / "MATRIX.md").write_text(text())
    else:
        sys.stdout.write(text())
