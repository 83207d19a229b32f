"""Kept answers in the store: found, kept, moved, deleted; and the leases of the calls for them."""

from __future__ import annotations

import os

import msgspec
import pytest

from fanout.core.kept_answers import (
    AnswerCounts,
    AnswerRequest,
    AnswerSettled,
    KeptAnswer,
    SharedFailure,
)
from fanout.core.records import ErrorKind, Usage
from fanout.stores import RedisStore
from fanout.stores.blobs import FileBlobs
from fanout.stores.redis.answer_cache import FREE_S
from tests.fakes import Clock, fake_redis, fake_store, set_server_clock


@pytest.fixture
def store(any_store):
    return any_store


DAY = 24 * 3600


def key(number):
    return bytes([number]) * 20


def find(store, *keys, token="me", how="ask", ttl_s=DAY):
    asked = [AnswerRequest(one, how) for one in keys]
    return store.find_answers(asked, token=token, ttl_s=ttl_s, lease_s=10)


def verdicts(store, *keys, **more):
    return [one.verdict for one in find(store, *keys, **more)]


def keep(store, *pairs, token="me", limit_mb=100, ttl_s=DAY):
    settled = [AnswerSettled(one, "kept", answer) for one, answer in pairs]
    return store.settle_answers(settled, token=token, ttl_s=ttl_s, limit_mb=limit_mb)


def answer(text="yes", **usage):
    return KeptAnswer(
        text=text, usage=Usage(calls=2, **usage), confidence=0.5, finish_reason="stop"
    )


def test_an_answer_is_found_as_it_was_kept(store):
    kept = answer(input_tokens=7, output_tokens=2, cost_usd=0.25)
    long = answer("ü" * 40_000)
    assert verdicts(store, key(1), key(2)) == ["ask", "ask"]
    assert keep(store, (key(1), kept), (key(2), long)) == [True, True]
    first, second, third = find(store, key(1), key(2), key(3))
    assert (first.answer, second.answer, third.verdict) == (kept, long, "ask")
    assert kept.saved == Usage(calls=1, input_tokens=7, output_tokens=2, cost_usd=0.25)
    stats = store.cache_stats()
    assert (stats.answers, stats.hits, stats.misses, stats.kept) == (2, 2, 0, 2)
    assert stats.saved_usd == 0.25
    assert 0 < stats.bytes < 40_000


def test_one_process_asks_and_the_others_wait_until_it_has_ended(store):
    assert verdicts(store, key(1)) == ["ask"]
    assert verdicts(store, key(1), token="you") == ["wait"]
    assert verdicts(store, key(1)) == ["ask"], "it has the lease"
    store.settle_answers([AnswerSettled(key(1), "left")], token="you", ttl_s=DAY, limit_mb=1)
    assert verdicts(store, key(1), token="you") == ["wait"], "a lease is its holder's alone"
    store.settle_answers([AnswerSettled(key(1), "left")], token="me", ttl_s=DAY, limit_mb=1)
    assert verdicts(store, key(1), token="you") == ["ask"], "it was stopped: the next one asks"
    store.settle_answers([AnswerSettled(key(1), "failed")], token="you", ttl_s=DAY, limit_mb=1)
    assert verdicts(store, key(1)) == ["free"], "nobody waits for another failure"
    assert keep(store, (key(1), answer())) == [True]
    assert verdicts(store, key(1)) == ["hit"]


FAILURE = SharedFailure(kind=ErrorKind.TRUNCATED, message="cut", terms="t", attempt="r")


def fail(store, number, token="me"):
    settled = AnswerSettled(key(number), "failed", failure=FAILURE)
    store.settle_answers([settled], token=token, ttl_s=DAY, limit_mb=1)


def test_a_failure_takes_the_place_of_the_lease_for_some_seconds(monkeypatch):
    store = fake_store()
    set_server_clock(monkeypatch, clock := Clock(1_000))
    assert verdicts(store, key(1), key(2)) == ["ask", "ask"]
    fail(store, 1)
    fail(store, 2, token="you")
    # Nobody had a lease for the third one: a batch has brought it.
    fail(store, 3)
    found = find(store, key(1), key(2), key(3), token="you")
    assert [one.verdict for one in found] == ["failed", "wait", "failed"]
    assert [one.failure for one in found] == [FAILURE, None, FAILURE]
    assert verdicts(store, key(1), how="anew") == ["ask"], "a retry"
    assert verdicts(store, key(1), token="you", how="anew") == ["wait"]
    assert store.cache_stats().answers == 0
    clock.now = 1_000 + FREE_S + 1
    assert verdicts(store, key(3), token="you") == ["ask"]


def test_a_damaged_failure_is_none(store):
    store._redis.set(store._lease(key(1)), "!{")
    assert verdicts(store, key(1)) == ["free"]


def test_a_lease_lapses_unless_it_is_renewed(monkeypatch):
    store = fake_store()
    set_server_clock(monkeypatch, clock := Clock(1_000))
    assert verdicts(store, key(1), key(2)) == ["ask", "ask"]
    clock.now = 1_009
    assert store.renew_leases([key(2), key(3)], token="me", lease_s=10) == 1
    assert store.renew_leases([key(2)], token="you", lease_s=10) == 0
    clock.now = 1_011
    assert verdicts(store, key(1), key(2), token="you") == ["ask", "wait"]


def test_an_answer_expires(monkeypatch):
    store = fake_store()
    set_server_clock(monkeypatch, clock := Clock(1_000))
    keep(store, (key(1), answer()), ttl_s=100)
    clock.now = 1_099
    assert verdicts(store, key(1), ttl_s=100) == ["hit"]
    keep(store, (key(2), answer()), ttl_s=100)
    clock.now = 1_101
    assert verdicts(store, key(1), key(2), ttl_s=100) == ["ask", "hit"]
    assert store.cache_stats().answers == 1


def test_the_room_is_kept_and_what_is_used_stays(store):
    # Those in files go by their age alone.
    big = os.urandom(7_000).hex()
    keep(store, (key(0), answer(big)), limit_mb=1)
    for number in range(1, 250):
        keep(store, (key(number), answer(big[number:])), limit_mb=1)
        assert verdicts(store, key(0)) == ["hit"], number
        assert store.cache_stats().bytes <= 1_000_000
    stats = store.cache_stats()
    assert stats.answers + stats.evicted == 250
    assert verdicts(store, key(249), key(1)) == ["hit", "ask"]
    held = [store._redis.hlen(name) for name in store._answers[1:]]
    assert sum(held) == stats.answers


def test_an_answer_kept_again_is_there_once(store):
    for text in ("a", "b" * 9_000, "c"):
        keep(store, (key(1), answer(text)))
    assert find(store, key(1))[0].answer == answer("c")
    assert store.cache_stats().answers == 1
    assert store.cache_stats().bytes < 1_000
    # Also if it is in an older generation by then.
    fillers = [(key(number), answer(os.urandom(6_000).hex())) for number in range(2, 42)]
    keep(store, *fillers, (key(1), answer("d")), limit_mb=1)
    assert find(store, key(1))[0].answer == answer("d")
    held = [store._redis.hlen(name) for name in store._answers[1:]]
    assert sum(count > 0 for count in held) > 1
    assert sum(held) == store.cache_stats().answers == 41


def test_an_answer_that_is_too_large_for_the_room_is_not_kept(store):
    assert verdicts(store, key(1)) == ["ask"]
    assert keep(store, (key(1), answer(os.urandom(100_000).hex())), limit_mb=1) == [False]
    assert verdicts(store, key(1), token="you") == ["ask"], "its lease has ended"


def test_clearing_and_shrinking(store):
    keep(store, *((key(n), answer("long " * 20_000)) for n in range(5)))
    assert store.shrink_answers() == 5
    assert store.shrink_answers() == 0
    keep(store, (key(1), answer()))
    assert store.clear_answers() == 1
    assert store.cache_stats() == msgspec.convert({}, type(store.cache_stats()))
    assert verdicts(store, key(1)) == ["ask"]


@pytest.mark.parametrize(
    "held",
    [b"", b"x", b"9999999999 0 ", b"9999999999 0 {", b"9999999999 0 x\x9c\x00", b"1e999 ? {}",
     b"9999999999 0 @ffffffff@aaaaaaaa /etc", b'9999999999 0 {"text": 5}'],
)  # fmt: skip
def test_a_damaged_answer_is_asked_for_anew(store, held):
    keep(store, (key(1), answer()))
    store._redis.hset(store._answers[1], key(1).hex(), held)
    assert verdicts(store, key(1)) == ["ask"]
    assert keep(store, (key(1), answer("new"))) == [True]
    assert find(store, key(1))[0].answer == answer("new")


@pytest.mark.parametrize("damage", ["x", "", "nan", "inf", "1 2"])
def test_damaged_counters_lose_no_answer(store, damage):
    keep(store, (key(1), answer(cost_usd=0.25)))
    counters = store._answers[0]
    for name in (*store._redis.hgetall(counters), "hits", "misses", "saved", "evicted"):
        store._redis.hset(counters, name, damage)
    assert find(store, key(1), key(2))[0].answer == answer(cost_usd=0.25)
    assert keep(store, (key(2), answer("new"))) == [True]
    assert find(store, key(2))[0].answer == answer("new")
    store.count_answers(AnswerCounts(misses=1), ttl_s=60)
    stats = store.cache_stats()
    assert (stats.hits, stats.misses, stats.saved_usd) == (2, 1, 0.25)
    store.count_answers(AnswerCounts(hits=2, misses=3, saved_usd=0.5), ttl_s=60)
    stats = store.cache_stats()
    assert (stats.hits, stats.misses, stats.saved_usd) == (4, 4, 0.75)


def test_a_server_with_little_memory_left_keeps_none_and_makes_room(monkeypatch):
    store = fake_store()
    keep(store, (key(1), answer()))
    monkeypatch.setattr(type(store), "_server_memory", lambda _: (81, 100))
    assert keep(store, (key(2), answer())) == [False]
    assert verdicts(store, key(1), key(2)) == ["ask", "ask"]


def test_large_answers_are_files_that_go_with_their_generation(tmp_path):
    store = fake_store(blobs=FileBlobs(str(tmp_path)))
    text = os.urandom(20_000).hex()

    def files():
        return [path for path in tmp_path.glob("answers-*/**/*") if path.is_file()]

    keep(store, (key(1), answer(text)))
    assert len([path for path in files() if path.parent.name == "s0"]) == 1
    assert len(store._redis.hget(store._answers[1], key(1).hex())) < 200
    assert store.sweep_files() == 0, "it is in use"
    assert find(store, key(1))[0].answer == answer(text)
    for path in files():
        if path.parent.name == "s0":
            path.unlink()
    assert verdicts(store, key(1)) == ["ask"], "it was lost"
    keep(store, (key(1), answer(text)))
    store.clear_answers()
    assert store.sweep_files() == 2, "a generation that has lost all has ended"
    assert files() == []


def test_files_elsewhere_are_not_read(tmp_path):
    server = fake_redis()
    own = RedisStore(server, blobs=FileBlobs(str(tmp_path / "a")))
    (tmp_path / "a").mkdir()
    keep(own, (key(1), answer(os.urandom(20_000).hex())))
    assert verdicts(own, key(1)) == ["hit"]
    assert verdicts(RedisStore(server), key(1)) == ["ask"]


def test_files_take_room_too(tmp_path):
    store = fake_store(blobs=FileBlobs(str(tmp_path)))
    for number in range(60):
        keep(store, (key(number), answer(os.urandom(15_000).hex())), limit_mb=1)
        assert store.cache_stats().bytes <= 1_000_000
    assert 10 < store.cache_stats().answers < 60
    assert verdicts(store, key(59), key(1)) == ["hit", "ask"]


@pytest.mark.parametrize("at_once", [1, 200])
def test_the_files_of_a_generation_are_its_own(tmp_path, at_once):
    """So that they go with it, and the files of younger answers stay: with several processes, too."""
    server = fake_redis()
    stores = [RedisStore(server, blobs=FileBlobs(str(tmp_path))) for _ in range(2)]
    big = [(key(number), answer(os.urandom(15_000).hex())) for number in range(90)]
    for start in range(0, len(big), at_once):
        keep(stores[start % 2], *big[start : start + at_once], limit_mb=1)
    names = [server.hget(stores[0]._answers[0], f"name:{number}") for number in range(4)]
    assert len(set(names)) == 4, "each has its own name"
    markers = {f"{stores[0]._answer_files}{name.decode()}".encode() for name in names}
    assert set(server.keys(f"{stores[0]._answer_files}*")) == markers
    swept = stores[0].sweep_files()
    if at_once == 1:
        assert swept >= 3, "the folders of generations that are gone"
        assert verdicts(stores[1], *(one for one, _ in big[-20:])) == ["hit"] * 20
    left = sum(path.stat().st_size for path in tmp_path.glob("answers-*/**/*"))
    assert left < 1_200_000, "no more than the room"


def test_the_counters_of_what_has_expired_are_not_shown_and_expire(monkeypatch):
    store = fake_store()
    set_server_clock(monkeypatch, clock := Clock(1_000))
    keep(store, (key(1), answer()), ttl_s=100)
    assert store.cache_stats().answers == 1
    assert 100 < store._redis.ttl(store._answers[0]) <= 200
    store._redis.delete(store._answers[1])
    clock.now = 1_150
    stats = store.cache_stats()
    assert (stats.answers, stats.bytes, stats.since, stats.kept) == (0, 0, None, 1)
