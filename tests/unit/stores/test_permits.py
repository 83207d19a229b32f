"""Permits of runs with max_workers: never more than the cap, and each process gets its share."""

from __future__ import annotations

import random

import pytest
from redis.exceptions import ResponseError

from fanout.core.errors import BrokerError, StoredDataError, UnknownRunError
from fanout.core.permits import PermitRequest, PermitShare
from tests.fakes import share_one


@pytest.fixture
def share(store):
    store.create_run("r", spec="{}", created_at=0.0)

    def ask(process, has, wanted, *, cap=10):
        return share_one(store, "r", process=process, max_workers=cap, has=has, wanted=wanted)

    return ask


def granted(*asks):
    return [each.granted for each in asks]


def test_a_process_alone_gets_what_it_wants_up_to_the_cap(share):
    assert granted(share("a", 0, 4), share("a", 4, 25), share("a", 10, 25)) == [4, 10, 10]
    assert share("a", 10, 25).level == 10, "nobody waits"


def test_a_process_leaves_others_their_part_with_its_first_request(share, store):
    for process in ("a", "b", "c"):
        store.beat(process, ttl_s=15)
    assert granted(share("a", 0, 25), share("b", 0, 25)) == [4, 4], "c may be about to ask"
    assert granted(share("b", 4, 25), share("a", 4, 25)) == [5, 5], "it has not"


def test_a_process_that_is_alone_with_a_run_gets_the_rest_with_its_next_request(share, store):
    for process in ("a", "b"):
        store.beat(process, ttl_s=15)
    assert granted(share("a", 0, 25), share("a", 5, 25)) == [5, 10]


def test_a_process_that_waits_gets_what_others_give_up(share):
    share("a", 0, 25)
    assert share("b", 0, 25).granted == 0
    assert share("a", 10, 25) == share("a", 10, 25), "it gives up none unless it says so"
    assert share("a", 10, 25).level == 5
    assert share("a", 7, 25).granted == 7, "and gets none back while another waits"
    assert share("b", 0, 25).granted == 3
    assert share("a", 5, 25).granted == 5
    assert share("b", 3, 25).granted == 5
    assert share("b", 5, 25).level == share("a", 5, 25).level == 10, "nobody waits for more"


def test_what_one_process_cannot_use_is_for_those_that_can(share):
    share("a", 0, 2)
    assert share("b", 0, 30).granted == 8
    assert share("c", 0, 30).granted == 0
    assert share("b", 8, 30).level == 4
    assert share("a", 2, 2).level == 4


def test_with_fewer_permits_than_processes_each_waits_for_the_others_to_give_up(share):
    assert share("a", 0, 5, cap=1).granted == 1
    assert share("b", 0, 5, cap=1).granted == 0
    assert share("a", 1, 5, cap=1).level == 0, "others are to have a turn"
    assert share("a", 0, 0, cap=1).granted == 0
    assert share("b", 0, 5, cap=1).granted == 1
    assert share("a", 0, 5, cap=1).granted == 0


def test_permits_of_a_dead_process_are_granted_again_and_those_of_a_silent_fleet_are_not(
    share, server_clock
):
    assert share("a", 0, 8).granted == 8
    assert share("b", 0, 8).granted == 2
    server_clock.now += 60
    assert share("b", 2, 8).granted == 2, "the server was unreachable for both"
    assert share("c", 0, 8).granted == 0, "and a newcomer cannot know"
    assert share("a", 8, 8).granted == 8
    for _ in range(4):
        server_clock.now += 4
        last = share("b", 2, 8)
    assert last.granted == 8, "a has not reported for 16 s, while b has"
    assert share("a", 8, 8).granted == 2, "another process has its permits now"


@pytest.mark.parametrize("rest_s", [4, 6, 14, 40])
def test_permits_of_a_dead_process_are_granted_again_to_those_that_ask_rarely(
    share, server_clock, rest_s
):
    """A thread or prefork child asks for a moment, and then gives its branch back to the queue."""
    assert share("dead", 0, 10).granted == 10
    for _ in range(20):
        if share("b", 0, 1).granted:
            break
        share("b", 0, 0)
        server_clock.now += rest_s
    else:
        pytest.fail("nobody ever gets the permits of the dead process")


def test_a_damaged_record_of_a_process_counts_as_none(share, store):
    for damage in ("", "1 2", "x y z", "1 2 nan", "99999999 1 inf"):
        store._redis.hset("fanout:run:r:permits", "damaged", damage)
        assert share("a", 0, 10).granted == 10
        share("a", 0, 0)


def test_of_a_run_that_is_gone_there_are_none(share, store):
    share("a", 0, 8)
    store.begin_delete("r")
    with pytest.raises(UnknownRunError):
        share("a", 8, 8)
    store.delete_run("r")
    assert not [key for key in store._redis.keys("*") if b"permits" in key]


def many(store, *runs, has=0, wanted=5, cap=10):
    requests = [
        PermitRequest(run_id=run_id, max_workers=cap, has=has, wanted=wanted) for run_id in runs
    ]
    return store.share_permits(requests, process="a", dies_after_s=15)


def test_the_permits_of_many_runs_are_shared_at_once(store):
    """More than the store puts into one script."""
    names = [f"r{number}" for number in range(450)]
    for name in names[::2]:
        store.create_run(name, spec="{}", created_at=0.0, max_workers=10)
    share_one(store, "r2", process="b", max_workers=10, has=0, wanted=8)
    replies = many(store, *names)
    assert replies[1::2] == [None] * 225, "there are no such runs"
    granted = [reply.granted for reply in replies[::2]]
    assert granted == [5, 2, *[5] * 223]
    assert store.run("r2").permits_used == 10
    assert many(store) == []


@pytest.mark.parametrize("key", ["fanout:run:r1", "fanout:run:r1:permits"])
def test_a_run_of_which_the_server_has_something_else_holds_up_no_other(store, key):
    for number in range(3):
        store.create_run(f"r{number}", spec="{}", created_at=0.0)
    store._redis.delete(key)
    store._redis.set(key, "x")
    first, bad, last = many(store, "r0", "r1", "r2")
    assert first == last == PermitShare(granted=5, level=10)
    assert isinstance(bad, StoredDataError)
    assert str(bad).startswith("the permits of run r1 are damaged")


def test_a_server_that_refuses_writes_is_no_damage(store, monkeypatch):
    store.create_run("r0", spec="{}", created_at=0.0)

    def refuse(*_args, **_options):
        raise ResponseError("OOM command not allowed when used memory > 'maxmemory'.")

    monkeypatch.setattr(store, "_call", refuse)
    with pytest.raises(BrokerError, match="is full"):
        many(store, "r0")


def test_the_ttl_of_the_permits_is_renewed(store):
    store.create_run("r0", spec="{}", created_at=0.0)
    many(store, "r0")
    store._redis.expire("fanout:run:r0:permits", store._ttl_s // 3)
    many(store, "r0", has=5)
    assert store._redis.ttl("fanout:run:r0:permits") > store._ttl_s - 60


@pytest.mark.parametrize("seed", range(20))
def test_never_are_more_granted_than_the_cap(share, server_clock, seed):
    """Processes report, use, die and come back in a random order."""
    dice = random.Random(seed)
    cap, has, dead = dice.choice([1, 3, 10, 64]), dict.fromkeys("abcd", 0), set()
    for _ in range(300):
        holder = dice.choice("abcd")
        if dice.random() < 0.02:
            dead.add(holder)
            for _ in range(5):
                server_clock.now += 4
                for other in set("abcd") - dead:
                    has[other] = share(other, has[other], has[other], cap=cap).granted
            has[holder] = 0
            continue
        if holder in dead:
            dead.discard(holder)
            has[holder] = 0
        keeps = dice.randint(0, has[holder])
        has[holder] = share(holder, keeps, dice.randint(keeps, 2 * cap), cap=cap).granted
        assert has[holder] >= keeps
        assert sum(has.values()) <= cap
