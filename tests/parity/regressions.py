"""Traces that test_model.py once failed on, as it printed them, with what was wrong. They are run by name for ever.

name: (operations, {tier: reason why it still cannot})
"""
REGRESSIONS = {
    "truncate by name of a file that another process has open": (
        [("p0", "mkdir", "a"), ("p1", "open", 0, "a/b", "c"), ("p0", "truncate", "a/b", 4096)],
        {}),
    # The open that followed carried the new attributes in an answer that nobody looks at, and the event passed for known.
    "a file is changed inside and opened at once": (
        [("p0", "create", "a"), ("p0", "create", "b")] + [("in", "utime", name, 10**18 + number) for number in range(20) for name in "ab"],
        {}),
}
