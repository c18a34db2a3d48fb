"""What `e2bfs status` lists under limits, and what the cases are marked with, is the same."""
from conftest import TIER
from matrix import all_cases


def test_what_a_tier_cannot_is_listed(mounts):
    limits = mounts.usual.status()["limits"]
    marks = {mark for mark in (each.marks.get(TIER) for each in all_cases()) if mark and mark.listed}
    assert bool(marks) == (TIER == "service")
    missing = [mark for mark in marks if not any(mark.listed in line for line in limits)]
    assert not missing, f"marked, and not among the limits: {missing}; {limits}"
