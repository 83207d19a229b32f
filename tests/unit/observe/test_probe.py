from __future__ import annotations

import pytest
from msgspec import structs

from fanout.core.fleet_records import WorkerRecord
from fanout.observe.probe import probe_problem

NOW = 1_000.0


def worker(name="w1@here", host="here", silent_s=1.0, idle_s=1.0):
    polled_at = 0.0 if idle_s is None else NOW - idle_s
    return WorkerRecord(name=name, host=host, sent_at=NOW - silent_s, polled_at=polled_at)


STUCK = worker("stuck@here", idle_s=40)
NOT_MOUNTED = structs.replace(worker(idle_s=400), problem="/mnt/x has no marker")
STANDING = structs.replace(worker(), stuck=3)
AWAY = worker("away@there", host="there", silent_s=100)


@pytest.mark.parametrize(
    ("workers", "name", "words"),
    [
        ([], None, "no live worker on here is known"),
        ([AWAY], None, "no live worker on here is known"),
        ([worker()], "w2@here", "no live worker w2@here is known"),
        ([worker()], None, None),
        ([worker(), AWAY], None, None),
        ([worker(silent_s=29, idle_s=29)], None, None),
        ([worker(silent_s=31)], None, "w1@here has sent no record for 31 s"),
        ([worker(idle_s=None)], None, "w1@here has not begun to take messages"),
        ([worker(), STUCK], None, "stuck@here is alive, but has not looked for messages for 40 s"),
        ([worker(), STUCK], "w1@here", None),
        ([worker(), STUCK], "w1", None),
        ([worker(), STUCK], "stuck", "stuck@here is alive"),
        ([NOT_MOUNTED], None, "w1@here takes no messages: /mnt/x has no marker"),
        ([STANDING], None, "w1@here is alive, but 3 of its branches make no progress: restart it"),
        ([AWAY], "away@there", "away@there has sent no record for 100 s"),
    ],
)
def test_what_is_wrong_with_the_workers_of_a_machine(workers, name, words):
    problem = probe_problem(workers, host="here", name=name, now=NOW, within_s=30)
    assert (problem is None) if words is None else words in str(problem)
