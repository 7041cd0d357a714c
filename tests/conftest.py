"""For every test: hypothesis draws the same examples in each run, and is never judged by the clock."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
