"""The reaper's decision as a table, and as a property: a healthy shard is never touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.state import ShardState, StageProgress
from fanout.policy.healing import BrokerMessages, Heal, heal_shard, heal_stage, heal_unsealed


def shard(*ended, count=4, published=True, finished=False, heals=0, held=()):
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
        (shard(), seen(), Heal.BRANCHES, (0, 1, 2, 3)),
        (shard(0, 1, heals=5), seen(3), Heal.LOSE, (2,)),
        (shard(published=False, heals=5), seen(), Heal.LOSE, (0, 1, 2, 3)),
        (shard(published=False), seen(), Heal.EXPAND, ()),
        (shard(0, 1, 2, 3), seen(), Heal.COLLECT, ()),
        (shard(0, 1, 2, 3), seen(collect=True), Heal.NOTHING, ()),
        (shard(finished=True), seen(), Heal.EXPAND, ()),  # not closed, or let in by a retry
        (shard(0, 1, 2, 3, heals=9), seen(), Heal.COLLECT, ()),
        (shard(0, 1, 2, 3, heals=10), seen(), Heal.FAIL, ()),
    ],
)
def test_what_a_shard_without_progress_needs(state, messages, heal, positions):
    remedy = heal_shard(state, messages, max_heals=5)
    assert (remedy.heal, remedy.positions) == (heal, positions)


@pytest.mark.parametrize(
    ("stage", "messages", "heal"),
    [
        (StageProgress(), seen(), Heal.NOTHING),
        (StageProgress(written=3, opened=2, open=frozenset({1})), seen(), Heal.NOTHING),
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
    """Healthy: each branch has an outcome or a message, and a step is under way."""
    ended = data.draw(st.sets(st.integers(0, count - 1)))
    waiting = set(range(count)) - ended
    held = data.draw(st.sets(st.sampled_from(sorted(waiting)))) if waiting else set()
    messages = BrokerMessages(branches=frozenset(waiting - held), collect=not waiting)
    state = shard(*ended, count=count, heals=heals, held=held)
    assert heal_shard(state, messages, max_heals=5).heal is Heal.NOTHING


@given(data=st.data(), count=st.integers(1, 40), heals=st.integers(0, 4))
def test_only_what_has_neither_outcome_nor_message_is_published_again(data, count, heals):
    ended = data.draw(st.sets(st.integers(0, count - 1)))
    waiting = data.draw(st.sets(st.integers(0, count - 1)))
    remedy = heal_shard(shard(*ended, count=count, heals=heals), seen(*waiting), max_heals=5)
    assert set(remedy.positions) == set(range(count)) - ended - waiting, "and all of it"


_SOME = st.sets(st.integers(0, 11))


@given(
    count=st.integers(1, 12),
    published=st.booleans(),
    sets=st.tuples(_SOME, _SOME, _SOME),
    heals=st.integers(0, 12),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_any_counters_have_a_remedy_unless_something_is_in_flight(
    count, published, sets, heals, flags
):
    """Also in states that nothing is known to lead to."""
    ended, waiting, held = ({position for position in some if position < count} for some in sets)
    state = ShardState(
        first=0, count=count, published=published,
        finished=flags[0], ended=frozenset(ended), held=frozenset(held), heals=heals,
    )  # fmt: skip
    messages = BrokerMessages(branches=frozenset(waiting), expand=flags[1], collect=flags[2])
    remedy = heal_shard(state, messages, max_heals=5)
    in_flight = (waiting | held) - ended
    if remedy.heal is Heal.NOTHING:
        assert flags[1] or flags[2] or in_flight
    if not (flags[1] or flags[2] or in_flight):
        assert remedy.heal is not Heal.NOTHING
    assert not set(remedy.positions) & (ended | in_flight)
    if remedy.heal in {Heal.BRANCHES, Heal.LOSE}:
        assert remedy.positions, "it is about something"


@pytest.mark.parametrize(
    ("stage", "goes_on", "heal"),
    [
        (StageProgress(), False, Heal.FAIL),
        (StageProgress(written=2, opened=2), True, Heal.GO_ON),
        (StageProgress(written=2, opened=1), True, Heal.OPEN),
        (StageProgress(written=2, opened=2, heals=5), True, Heal.FAIL),
    ],
)
def test_a_stage_that_is_not_sealed_goes_on_or_has_lost_its_records(stage, goes_on, heal):
    assert heal_unsealed(stage, goes_on=goes_on, max_heals=5).heal is heal
