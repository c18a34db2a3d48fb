#!/usr/bin/env python3
"""The table of system call numbers in server.pl against the kernel's own headers: x86_64, and aarch64, which has the generic ones.

  syscall_numbers.py PROJECT COMPILER

The tests run the server on one kind of machine; a wrong number for the other would be found by its users.
"""
import pathlib, re, subprocess, sys

HEADERS = {"x86_64": "asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
# What differs in flags: arch/arm64/include/uapi/asm/fcntl.h, which is in no package of another machine.
ARM_FLAGS = "? (040000, 0100000) : (0200000, 0400000)"


def numbers(compiler, header):
    """{name: number} of a header; None where this machine has no such header."""
    done = subprocess.run([compiler, "-x", "c", "-E", "-dM", "-include", header, "/dev/null"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    defined = dict(re.findall(r"^#define (__NR\w+) (\w+)$", done.stdout, re.M))
    found = {}
    for name, value in defined.items():
        while value in defined:
            value = defined[value]
        if value.isdigit() and name.startswith("__NR_"):
            found[name.removeprefix("__NR_")] = int(value)
    return found


def main():
    project, compiler = sys.argv[1:]
    program = (pathlib.Path(project) / "transport/syscall/server.pl").read_text()
    table = re.findall(r"\[(\w+) => (\d+), (\d+)\]", program)
    assert len(table) > 40, "the table was not found"
    assert ARM_FLAGS in program, "O_DIRECTORY and O_NOFOLLOW of aarch64"
    problems, compared = [], 0
    for column, (machine, header) in enumerate(HEADERS.items()):
        true = numbers(compiler, header)
        if true is None:
            print(f"SKIPPED {machine}: this machine has no {header}")
            continue
        for name, *ours in table:
            compared += 1
            if true.get(name) != int(ours[column]):
                problems.append(f"{machine} {name}: {ours[column]} in server.pl, {true.get(name)} in {header}")
    print("\n".join(problems) or f"{compared} numbers are the kernel's")
    return 1 if problems or compared < len(table) else 0


if __name__ == "__main__":
    sys.exit(main())
