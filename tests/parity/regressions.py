"""Traces that test_model.py once failed on, as it printed them, with what was wrong. They are run by name for ever.

name: (operations, {tier: reason why it still cannot})
"""
REGRESSIONS = {
}
