from __future__ import annotations

import pytest

from fanout.core.queue_names import BRANCHES_QUEUE, CONTROL_QUEUE, parse_queues


@pytest.mark.parametrize(
    ("names", "queues"),
    [
        ("control", (CONTROL_QUEUE,)),
        ("fanout.branches", (BRANCHES_QUEUE,)),
        ("branches,control", (CONTROL_QUEUE, BRANCHES_QUEUE)),
        (" control , fanout.control,", (CONTROL_QUEUE,)),
    ],
)
def test_queues_are_named_short_or_in_full_and_control_comes_first(names, queues):
    assert parse_queues(names) == queues


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("branch", "no queue is called 'branch'; allowed are control, branches"),
        ("control,fanout.x", "no queue is called 'x'"),
        (",", "is empty; allowed are control, branches"),
    ],
)
def test_a_wrong_name_is_refused_with_what_is_allowed(names, words):
    with pytest.raises(ValueError, match=words):
        parse_queues(names)
