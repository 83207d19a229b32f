"""The reaper's decision as a table, and as a property: a healthy shard is never touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.state import ShardState
from fanout.policy.healing import BrokerMessages, Heal, heal_shard, heal_stage, unpublished
from fanout.stores import StageProgress


def shard(*ended, count=4, published=4, finished=False, heals=0, held=()):
    return ShardState(
        first=0, count=count, published=published, finished=finished,
        ended=frozenset(ended), held=frozenset(held), heals=heals,
    )  # fmt: skip


def seen(*branches, **others):
    return BrokerMessages(branches=frozenset(branches), **others)


@pytest.mark.parametrize(
    ("state", "messages", "heal", "positions"),
    [
        (shard(published=None), seen(), Heal.EXPAND, ()),
        (shard(published=None), seen(expand=True), Heal.NOTHING, ()),
        (shard(), seen(0, expand=True), Heal.NOTHING, ()),  # it is still being published
        (shard(), seen(0, 1, 2, 3), Heal.NOTHING, ()),
        (shard(0, 1), seen(2, 3), Heal.NOTHING, ()),
        (shard(0, 1), seen(3), Heal.BRANCHES, (2,)),
        (shard(0, 1, held=[2]), seen(3), Heal.NOTHING, ()),  # its message was a copy
        (shard(0, published=2, held=[1]), seen(), Heal.NOTHING, ()),
        (shard(), seen(), Heal.BRANCHES, (0, 1, 2, 3)),
        (shard(0, 1, heals=5), seen(3), Heal.LOSE, (2,)),
        (shard(published=None, heals=5), seen(), Heal.LOSE, (0, 1, 2, 3)),
        (shard(0, 1, 2, 3), seen(), Heal.COLLECT, ()),
        (shard(0, 1, 2, 3), seen(collect=True), Heal.NOTHING, ()),
        (shard(finished=True), seen(), Heal.EXPAND, ()),  # not closed, or let in by a retry
        (shard(0, 1, 2, 3, heals=9), seen(), Heal.COLLECT, ()),
        (shard(0, 1, 2, 3, heals=10), seen(), Heal.FAIL, ()),
        (shard(published=2), seen(0, 1), Heal.NOTHING, ()),  # a branch that ends feeds the next
        (shard(0, published=2), seen(), Heal.BRANCHES, (1,)),
        (shard(0, 1, published=2), seen(), Heal.BRANCHES, (2,)),
        (shard(0, 1, published=2), seen(0), Heal.BRANCHES, (2,)),  # a copy, which feeds none
        (shard(0, 1, 2, published=2), seen(), Heal.BRANCHES, (3,)),  # a retry has kept one
        (shard(0, 1, published=2, heals=5), seen(), Heal.BRANCHES, (2,)),  # it was never lost
        (shard(0, 1, published=2), seen(3), Heal.NOTHING, ()),
    ],
)
def test_what_a_shard_without_progress_needs(state, messages, heal, positions):
    remedy = heal_shard(state, messages, permits=1, max_heals=5)
    assert (remedy.heal, remedy.positions) == (heal, positions)


@pytest.mark.parametrize(
    ("stage", "messages", "heal"),
    [
        (StageProgress(), seen(), Heal.NOTHING),
        (StageProgress(written=3, opened=2, open={1: 0}), seen(), Heal.NOTHING),
        (StageProgress(written=3, opened=2), seen(), Heal.OPEN),
        (StageProgress(written=3, opened=3), seen(), Heal.NOTHING),  # its client is at work
        (StageProgress(written=3, opened=3, sealed=True), seen(), Heal.AGGREGATE),
        (StageProgress(written=3, opened=3, sealed=True), seen(closing=True), Heal.NOTHING),
        (StageProgress(written=3, opened=3, sealed=True, heals=5), seen(), Heal.FAIL),
        (StageProgress(sealed=True), seen(), Heal.AGGREGATE),
    ],
)
def test_what_a_stage_without_progress_needs(stage, messages, heal):
    assert heal_stage(stage, messages, incomplete=[], max_heals=5).heal is heal


def test_shards_that_have_not_ended_but_are_not_known_as_open_are_adopted():
    stage = StageProgress(written=3, opened=3, sealed=True)
    assert heal_stage(stage, seen(), incomplete=[1], max_heals=5).heal is Heal.ADOPT
    assert heal_stage(stage, seen(closing=True), incomplete=[1], max_heals=5).heal is Heal.NOTHING


@given(data=st.data(), count=st.integers(1, 40), heals=st.integers(0, 20))
def test_a_healthy_shard_is_never_touched(data, count, heals):
    """Healthy: each published branch has an outcome or a message, and a step is under way."""
    published = data.draw(st.integers(1, count))
    ended = data.draw(st.sets(st.integers(0, published - 1)))
    waiting = set(range(published)) - ended
    held = data.draw(st.sets(st.sampled_from(sorted(waiting)))) if waiting else set()
    is_complete = len(ended) == count
    messages = BrokerMessages(branches=frozenset(waiting - held), collect=is_complete)
    if waiting or is_complete:
        state = shard(*ended, count=count, published=published, heals=heals, held=held)
        permits = data.draw(st.integers(0, count))
        assert heal_shard(state, messages, permits=permits, max_heals=5).heal is Heal.NOTHING


@given(data=st.data(), count=st.integers(1, 40), heals=st.integers(0, 4))
def test_only_what_has_neither_outcome_nor_message_is_published_again(data, count, heals):
    published = data.draw(st.integers(1, count))
    ended = data.draw(st.sets(st.integers(0, published - 1)))
    waiting = data.draw(st.sets(st.integers(0, published - 1)))
    state = shard(*ended, count=count, published=published, heals=heals)
    remedy = heal_shard(state, seen(*waiting), permits=0, max_heals=5)
    assert not set(remedy.positions) & (ended | waiting)
    lost = set(range(published)) - ended - waiting
    if lost:
        assert set(remedy.positions) == lost, "and all of it"


_SOME = st.sets(st.integers(0, 11))


@given(
    count=st.integers(1, 12),
    published=st.none() | st.integers(0, 14),
    sets=st.tuples(_SOME, _SOME, _SOME),
    permits=st.integers(0, 14),
    heals=st.integers(0, 12),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_any_counters_have_a_remedy_unless_something_is_in_flight(
    count, published, sets, permits, heals, flags
):
    """Also in states that nothing is known to lead to."""
    ended, waiting, held = ({position for position in some if position < count} for some in sets)
    state = ShardState(
        first=0, count=count, published=None if published is None else min(published, count),
        finished=flags[0], ended=frozenset(ended), held=frozenset(held), heals=heals,
    )  # fmt: skip
    messages = BrokerMessages(branches=frozenset(waiting), expand=flags[1], collect=flags[2])
    remedy = heal_shard(state, messages, permits=permits, max_heals=5)
    in_flight = (waiting | held) - ended
    if remedy.heal is Heal.NOTHING:
        assert flags[1] or flags[2] or in_flight
    if not (flags[1] or flags[2] or in_flight):
        assert remedy.heal is not Heal.NOTHING
    assert not set(remedy.positions) & (ended | in_flight)
    if remedy.heal in {Heal.BRANCHES, Heal.LOSE}:
        assert remedy.positions, "it is about something"


@given(
    count=st.integers(1, 12), published=st.integers(0, 12), ended=_SOME, permits=st.integers(1, 12)
)
def test_no_more_branches_begin_anew_than_may_be_in_flight(count, published, ended, permits):
    ended = {position for position in ended if position < count}
    state = shard(*ended, count=count, published=min(published, count))
    positions = unpublished(state, seen(), permits=permits)
    lost = set(range(min(published, count))) - ended
    assert set(positions) == lost if lost else len(positions) <= permits
