"""How long branches wait at a worker for others, to share a round trip."""

from types import SimpleNamespace

import pytest

from tests.fakes import Clock
from workers.context.branch_steps import BranchSteps


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def in_flight():
    return SimpleNamespace(count=200)


@pytest.fixture
def steps(clock, in_flight):
    store = SimpleNamespace(
        **dict.fromkeys(
            (
                "begin_all",
                "record_all",
                "checkpoint_all",
                "checkpoints",
                "gather_all",
                "prepared",
                "release_claim",
            )
        )
    )
    connections = SimpleNamespace(store=store, fail_fast_store=store)
    steps = BranchSteps(connections, None, in_flight, step_s=60.0, clock=clock)
    yield steps
    steps.close()


def after(steps, clock, *, seconds, ended):
    clock.now += seconds
    steps.ended += ended
    return steps.begin_linger_s()


@pytest.mark.parametrize(
    ("ended_per_s", "begin_s", "end_s"),
    [
        (10_000, 0.0001, 0.01),  # calls of 20 ms
        (1_000, 0.001, 0.01),  # calls of 200 ms
        (200, 0.005, 0.02),  # calls of 1 s
        (100, 0.01, 0.04),  # calls of 2 s
        (10, 0.02, 0.04),  # calls of 20 s
        (0, 0.02, 0.04),  # no call has ended
    ],
)
def test_a_branch_waits_for_others_for_a_small_share_of_its_call(
    steps, clock, ended_per_s, begin_s, end_s
):
    assert after(steps, clock, seconds=2.0, ended=2 * ended_per_s) == pytest.approx(begin_s)
    assert steps.linger_s() == pytest.approx(end_s)


def test_a_branch_begins_at_once_while_few_calls_are_in_flight(steps, clock, in_flight):
    in_flight.count = 63
    assert after(steps, clock, seconds=2.0, ended=20) == 0.0
    assert steps.linger_s() == 0.0


def test_a_branch_begins_at_once_until_it_is_known_how_long_calls_last(steps, clock):
    assert after(steps, clock, seconds=0.5, ended=0) == 0.0
    assert steps.linger_s() == 0.01


def test_the_wait_follows_the_calls_once_a_second(steps, clock):
    assert after(steps, clock, seconds=1.0, ended=100) == pytest.approx(0.01)
    assert after(steps, clock, seconds=0.5, ended=1_000) == pytest.approx(0.01)
    assert after(steps, clock, seconds=0.5, ended=1_000) == pytest.approx(0.0005)


def test_an_end_waits_only_while_many_calls_are_in_flight(steps, in_flight):
    assert steps.linger_s() == 0.01
    in_flight.count = 63
    assert steps.linger_s() == 0.0
