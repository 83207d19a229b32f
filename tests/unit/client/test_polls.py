"""The waits between looks at a run."""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate, islice

from fanout.client.polls import pauses


def test_the_pause_grows_with_the_time_waited():
    found = list(islice(pauses(None), 5_000))
    assert found == sorted(found)
    assert found[0] == 0.01
    ended = list(accumulate(found))
    assert [found[bisect(ended, at)] for at in (2, 29, 300)] == [0.03, 0.03, 0.25]
    # An end is seen late by a small part of the time that the run took.
    assert all(pause <= max(0.01, 0.06 * end) for pause, end in zip(found, ended, strict=True))


def test_no_pause_follows_when_the_time_is_over():
    assert list(pauses(0.0)) == []
