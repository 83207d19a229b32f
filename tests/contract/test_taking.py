"""A channel of a worker takes several messages with one round trip, and loses none."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from functools import partial

import pytest
import redis

from fanout.broker.app import make_app, make_store
from fanout.broker.backlog import read_backlog
from fanout.broker.inspection import UNACKED, UNACKED_INDEX, MessageReader
from fanout.broker.publisher import Publisher
from fanout.client.embedded.databases import put_back
from fanout.core.errors import StoredDataError
from fanout.core.ids import ShardId
from fanout.core.permits import PermitRequest
from fanout.core.queue_names import (
    BEHIND,
    BRANCHES_QUEUE,
    CONTROL_QUEUE,
    TURNS,
    TURNS_OF_A_RUN,
    backlogs_of,
)
from fanout.core.settings import load_settings
from tests.fakes import share_one
from tests.integration.conftest import waiting


@pytest.fixture
def db(broker_url):
    with redis.Redis.from_url(broker_url) as client:
        yield client


@pytest.fixture
def app(broker_url):
    app = make_app(load_settings(broker_url=broker_url, max_message_kb=16), takes_messages=True)
    yield app
    app.close()


class Taker:
    """A consumer with room for so many messages."""

    def __init__(self, app, room):
        self.messages = []
        self._connection = app.connection_for_read()
        self.channel = self._connection.default_channel
        self._consumer = app.amqp.TaskConsumer(self.channel)
        self._consumer.on_message = self.on_message
        self._consumer.qos(prefetch_count=room)

    def on_message(self, message):
        self.messages.append(message)

    def take_once(self):
        """Take what one turn of the loop takes; return the new messages' ids."""
        had = len(self.messages)
        with self._consumer:
            self._connection.drain_events(timeout=60)
        return [message.headers["id"] for message in self.messages[had:]]

    def close(self):
        self._connection.close()


@pytest.fixture
def taker(app):
    made = []

    def make(room):
        made.append(Taker(app, room))
        return made[-1]

    yield make
    for taker in made:
        taker.close()


def publish(app, count, run_id="r1", shard=0, stage=0, **share):
    # Of a run that is not known nothing is published.
    app.backend.client.hset(f"fanout:run:{run_id}", mapping={"spec": "{}", **share})
    Publisher(app).shard_chord(ShardId(run_id, stage, shard), range(count))


def ids(*positions, run_id="r1", shard=0, stage=0):
    return [f"{run_id}/{stage}/{shard}/{position}" for position in positions]


def behind(db, run_id):
    """Return how many messages of a run wait for a turn."""
    return sum(db.llen(backlog) for backlog in backlogs_of(run_id))


def test_as_many_are_taken_at_once_as_there_is_room_in_their_order(app, taker, db):
    publish(app, 10)
    assert taker(4).take_once() == ids(0, 1, 2, 3)
    assert waiting(db) == 6
    assert db.hlen(UNACKED) == db.zcard(UNACKED_INDEX) == 4


def test_a_worker_with_much_room_leaves_a_share_to_others(app, taker):
    publish(app, 100)
    first, second = taker(100), taker(160)
    assert first.take_once() == ids(*range(32))
    assert second.take_once() == ids(*range(32, 73))


def test_messages_are_taken_ahead_only_while_there_are_plenty(app, taker, db):
    publish(app, 20)
    one = taker(6)
    one.channel.qos.ahead = 4
    assert one.take_once() == ids(0, 1), "nothing is known yet of what is left"
    assert one.take_once() == ids(2, 3, 4, 5), "plenty are left"
    for message in one.messages:
        message.ack()
    assert one.take_once() == ids(*range(6, 12))
    for message in one.messages[6:]:
        message.ack()
    assert waiting(db) == 8
    assert one.take_once() == ids(12, 13), "eight are left for others"
    assert not one.channel.qos.can_consume()


def test_a_few_that_are_missing_of_those_taken_ahead_are_not_asked_for(app, taker):
    publish(app, 100)
    one = taker(20)
    one.channel.qos.ahead = 8
    one.take_once()
    one.take_once()
    assert not one.channel.qos.can_consume(), "all twenty are taken"
    for message in one.messages[:2]:
        message.ack()
    assert not one.channel.qos.can_consume()
    one.messages[2].ack()
    assert one.channel.qos.can_consume()


def test_control_tasks_are_taken_one_by_one(app, taker, db):
    publisher = Publisher(app)
    for shard in range(3):
        publisher.collect(ShardId("r1", 0, shard))
    assert taker(100).take_once() == ["r1/0/0/collect"]
    assert db.llen(CONTROL_QUEUE) == 2


def test_each_message_is_kept_for_its_restoration_until_it_is_acknowledged(app, taker, db):
    publish(app, 3)
    one = taker(3)
    one.take_once()
    for message in one.messages:
        kept = json.loads(db.hget(UNACKED, message.delivery_tag))
        assert kept[0]["headers"]["id"] == message.headers["id"]
        assert kept[1:] == ["", BRANCHES_QUEUE]
    one.messages[1].ack()
    assert db.hlen(UNACKED) == db.zcard(UNACKED_INDEX) == 2
    one.close()
    assert db.hlen(UNACKED) == db.zcard(UNACKED_INDEX) == 0
    assert sorted(taker(3).take_once()) == ids(0, 2), "what was not acknowledged came back"


def test_two_copies_of_a_message_are_two(app, taker, db):
    publish(app, 1)
    publish(app, 1)
    [copy, *_] = db.lrange(BRANCHES_QUEUE, 0, 0)
    db.lpush(BRANCHES_QUEUE, copy)
    one = taker(10)
    assert one.take_once() == ids(0, 0, 0)
    one.messages[0].ack()
    assert db.hlen(UNACKED) == 2


def test_what_is_no_message_is_dropped_from_among_those_that_are(app, taker, db):
    publish(app, 4)
    for junk in ("junk", "[]", json.dumps({"body": "x"}), "x" * 20_000, "{", b"\xff"):
        db.linsert(BRANCHES_QUEUE, "AFTER", db.lindex(BRANCHES_QUEUE, 2), junk)
    assert taker(20).take_once() == ids(0, 1, 2, 3)
    assert db.hlen(UNACKED) == db.zcard(UNACKED_INDEX) == 4


def test_a_worker_that_stops_in_the_middle_of_what_it_took_leaves_the_rest(app, taker, db):
    publish(app, 5)
    one = taker(5)

    def stop(message):
        one.messages.append(message)
        if len(one.messages) == 2:
            raise SystemExit

    one._consumer.on_message = stop
    with pytest.raises(SystemExit):
        one.take_once()
    assert waiting(db) == 3
    one.close()
    assert sorted(taker(5).take_once()) == ids(*range(5))


def test_what_was_taken_and_is_no_message_keeps_no_other_from_coming_back(app, taker, db):
    publish(app, 2)
    one = taker(5)
    one.take_once()
    db.hset(UNACKED, "broken", "[junk")
    db.zadd(UNACKED_INDEX, {"broken": 1})
    for tag in db.hkeys(UNACKED):
        db.zadd(UNACKED_INDEX, {tag: 1})
    two = taker(5)
    two.channel.qos.restore_visible(num=10, interval=1)
    assert db.hlen(UNACKED) == db.zcard(UNACKED_INDEX) == 0
    assert sorted(two.take_once()) == ids(0, 1)


def test_a_round_trip_makes_no_new_client(app, taker, monkeypatch):
    publish(app, 40)
    one = taker(40)
    one.take_once()
    made = []
    with monkeypatch.context() as patched:
        patched.setattr(redis.Redis, "__init__", lambda *_, **__: made.append(1))
        one.take_once()
        for message in one.messages:
            message.ack()
    assert made == []


def runs_of(taken):
    return [task_id.partition("/")[0] for task_id in taken]


def test_the_branches_of_runs_are_taken_in_turn_however_many_each_has(app, taker):
    publish(app, 200, "large")
    publish(app, 100, "second")
    publish(app, 5, "small")
    one = taker(1)
    order = []
    for _ in range(40):
        order += one.take_once()
        one.messages[-1].ack()
    runs = runs_of(order)
    last = max(at for at, run in enumerate(runs) if run == "small")
    assert last < 2 * 3 * TURNS_OF_A_RUN, "its branches wait for a few of the others"
    both = runs[last + 1 :]
    assert abs(both.count("large") - both.count("second")) <= TURNS_OF_A_RUN
    for run in ("large", "second", "small"):
        own = [task_id for task_id in order if task_id.startswith(f"{run}/")]
        assert own == ids(*range(len(own)), run_id=run), "of each run in its order"


def test_a_worker_that_takes_many_at_once_takes_as_many_of_each_run(app, taker):
    for run_id in ("a", "b", "c"):
        publish(app, 100, run_id)
    one = taker(60)
    taken = [one.take_once(), one.take_once()]
    assert [len(each) for each in taken] == [32, 28]
    for each in taken:
        counts = [runs_of(each).count(run_id) for run_id in ("a", "b", "c")]
        assert max(counts) - min(counts) <= TURNS_OF_A_RUN


@pytest.mark.parametrize("seed", range(3))
def test_each_message_comes_once_in_any_order_of_publishing_and_taking(app, taker, db, seed):
    """And the counters say what there is, at each step."""
    dice = random.Random(seed)
    takers = [taker(room) for room in (1, 7, 60)]
    published, taken, shards = [], [], itertools.count()
    while len(published) < 400 or waiting(db):
        one = dice.choice(takers)
        if waiting(db) and (dice.random() < 0.6 or len(published) >= 400):
            had = len(one.messages)
            taken += one.take_once()
            for message in one.messages[had:]:
                message.ack()
        else:
            run_id, shard, count = dice.choice("abcdefg"), next(shards), dice.randint(1, 30)
            stage = dice.choice((0, 0, 1, 2))
            publish(app, count, run_id, shard, stage)
            published += ids(*range(count), run_id=run_id, shard=shard, stage=stage)
        waits = {run: behind(db, run) for run in "abcdefg"}
        held = [json.loads(each)["headers"]["root_id"] for each in db.lrange(BRANCHES_QUEUE, 0, -1)]
        assert db.llen(BEHIND) == sum(waits.values()) == len(published) - len(taken) - len(held)
        turns = {run.decode(): int(count) for run, count in db.hgetall(TURNS).items()}
        assert turns == Counter(held)
        for run, count in waits.items():
            assert not count or turns[run] == TURNS_OF_A_RUN
    assert sorted(taken) == sorted(published)


@pytest.mark.parametrize("seed", range(4))
def test_runs_with_limits_and_priorities_have_no_more_outside_their_backlogs(app, taker, db, seed):
    """Taken, settled and put back in a random order, each message comes once, and none is stuck."""
    dice = random.Random(seed)
    limits = {"a": 1, "b": 5, "c": 40, "d": 0, "e": 9}
    turns_of = {"a": 4, "b": 16, "c": 1, "d": 4, "e": 4}
    takers = [taker(room) for room in (1, 7, 60)]
    published, taken, shards = [], [], itertools.count()
    waiting_for = []
    while len(published) < 300 or len(taken) < len(published):
        one = dice.choice(takers)
        if dice.random() < 0.5 and db.llen(BRANCHES_QUEUE) and one.channel.qos.can_consume():
            had = len(one.messages)
            taken += one.take_once()
            waiting_for += one.messages[had:]
        elif waiting_for and dice.random() < 0.7:
            message = waiting_for.pop(dice.randrange(len(waiting_for)))
            if dice.random() < 0.1:
                taken.remove(message.headers["id"])
                message.requeue()
            else:
                message.ack()
        elif len(published) < 300:
            run_id, shard, count = dice.choice("abcde"), next(shards), dice.randint(1, 30)
            stage = dice.choice((0, 0, 1))
            share = {"turns": turns_of[run_id], "in_play": limits[run_id]}
            publish(app, count, run_id, shard, stage, **share)
            published += ids(*range(count), run_id=run_id, shard=shard, stage=stage)
        in_play = Counter(runs_of([message.headers["id"] for message in waiting_for]))
        queued = [json.loads(each) for each in db.lrange(BRANCHES_QUEUE, 0, -1)]
        in_play.update(each["headers"]["root_id"] for each in queued)
        for run_id, limit in limits.items():
            assert not limit or in_play[run_id] <= limit
            assert not behind(db, run_id) or in_play[run_id], "something brings the rest"
        could_be_taken = [
            min(behind(db, run), max(0, limit - in_play[run]) if limit else 1_000)
            for run, limit in limits.items()
        ]
        assert db.llen(BEHIND) == sum(could_be_taken), "a scaler sees what workers could take"
        counted = {run.decode(): int(n) for run, n in db.hgetall(f"{BRANCHES_QUEUE}.taken").items()}
        held = Counter(runs_of([m.headers["id"] for m in waiting_for]))
        assert {run: n for run, n in counted.items() if n} == {
            run: n for run, n in held.items() if limits[run]
        }
    for message in waiting_for:
        message.ack()
    assert sorted(taken) == sorted(published)
    MessageReader(db).give_turns()
    assert db.keys("fanout.branches*") == [], "nothing is left of them"


def test_a_scaler_and_a_worker_that_takes_ahead_see_a_run_whose_limit_has_room(app, taker, db):
    publish(app, 400, in_play=1_000_000_064)
    assert waiting(db) == 400
    one = taker(60)
    one.channel.qos.ahead = 20
    while len(one.messages) < 60:
        # It takes ahead, as of a run without a limit.
        one.take_once()
    assert waiting(db) == 340


def test_what_is_taken_of_a_run_with_a_limit_is_counted_again(app, taker, db):
    publish(app, 50, in_play=8)
    one = taker(60)
    while len(one.messages) < 8:
        one.take_once()
    db.hset(f"{BRANCHES_QUEUE}.taken", "r1", 1_000)
    for message in one.messages:
        message.ack()
    assert db.llen(BRANCHES_QUEUE) == 0
    assert MessageReader(db).give_turns() == TURNS_OF_A_RUN
    while len(one.messages) < 50:
        one.take_once()
        for message in one.messages:
            message.acknowledged or message.ack()


def test_a_client_that_resumes_an_embedded_run_finds_its_permits_free(app, taker, db, broker_url):
    publish(app, 50, in_play=8)
    dead = taker(60)
    while len(dead.messages) < 8:
        dead.take_once()
    store = make_store(load_settings(broker_url=broker_url))
    ask = partial(share_one, store, "r1", max_workers=4)
    assert ask(process="dead", has=0, wanted=60).granted == 4
    put_back(db, "fanout")
    assert ask(process="next", has=0, wanted=60).granted == 4
    one = taker(60)
    while len(one.messages) < 50:
        one.take_once()
        for message in one.messages:
            message.acknowledged or message.ack()
        assert db.llen(BRANCHES_QUEUE) <= 8
    store.close()


def test_the_permits_of_many_runs_are_one_request(db, broker_url):
    store = make_store(load_settings(broker_url=broker_url))
    for number in range(150):
        store.create_run(f"r{number}", spec="{}", created_at=0.0, max_workers=4)
    db.delete("fanout:run:r7")
    db.delete("fanout:run:r8")
    db.set("fanout:run:r8", "x")
    requests = [
        PermitRequest(run_id=f"r{number}", max_workers=4, has=0, wanted=9) for number in range(150)
    ]
    share = partial(store.share_permits, requests, process="a", dies_after_s=15)
    share()
    before = db.info("commandstats")["cmdstat_fcall"]["calls"]
    found = share()
    assert db.info("commandstats")["cmdstat_fcall"]["calls"] == before + 1
    assert found[7] is None
    assert isinstance(found[8], StoredDataError)
    assert {reply.granted for reply in found[:7] + found[9:]} == {4}
    store.close()


def test_a_run_alone_has_all_and_few_of_it_are_in_the_queue(app, taker, db):
    publish(app, 100)
    assert db.llen(BRANCHES_QUEUE) == TURNS_OF_A_RUN
    assert db.llen(BEHIND) == 100 - TURNS_OF_A_RUN
    one = taker(200)
    taken = []
    while len(taken) < 100:
        taken += one.take_once()
    assert taken == ids(*range(100))
    assert db.keys("fanout.branches*") == [], "nothing is left of it"


@pytest.mark.parametrize("room", [1, 7, 200])
def test_the_nodes_of_a_reduce_are_taken_before_the_branches_that_wait(app, taker, db, room):
    """Else the first node would begin after all branches that were published before it."""
    publish(app, 600)
    publish(app, 3, stage=1)
    publish(app, 600, shard=1)
    publish(app, 2, shard=1, stage=1)
    publish(app, 1, stage=2)
    one, taken = taker(room), []
    while len(taken) < 1206:
        one.channel.qos.ahead = 0
        taken += one.take_once()
        for message in one.messages:
            message.acknowledged or message.ack()
    nodes = [*ids(0, 1, 2, stage=1), *ids(0, 1, shard=1, stage=1), *ids(0, stage=2)]
    turns = ids(*range(TURNS_OF_A_RUN))
    assert taken[: len(turns) + len(nodes)] == [*turns, *nodes]
    assert sorted(taken[len(turns) + len(nodes) :]) == sorted(
        [*ids(*range(TURNS_OF_A_RUN, 600)), *ids(*range(600), shard=1)]
    )
    assert db.keys("fanout.branches*") == [], "nothing is left of them"


def test_many_nodes_that_are_put_at_once_keep_their_turns_and_their_order(app, taker, db):
    publish(app, 5, stage=1, shard=7)
    publish(app, 20)
    publish(app, 40, stage=1)
    assert (db.llen(BRANCHES_QUEUE), waiting(db)) == (TURNS_OF_A_RUN, 65)
    one, taken = taker(100), []
    while len(taken) < 65:
        taken += one.take_once()
    assert taken[:45] == [*ids(*range(5), stage=1, shard=7), *ids(*range(40), stage=1)]
    assert sorted(taken[45:]) == sorted(ids(*range(20)))


def test_lost_turns_are_given_to_nodes_first(app, taker, db):
    publish(app, 20)
    publish(app, 2, stage=1)
    db.delete(BRANCHES_QUEUE)
    assert MessageReader(db).give_turns() == TURNS_OF_A_RUN
    assert taker(50).take_once()[:2] == ids(0, 1, stage=1)


def test_a_small_run_waits_no_longer_for_the_nodes_of_another(app, taker):
    publish(app, 100, "large")
    publish(app, 100, "large", stage=1)
    publish(app, 2, "small")
    one, order = taker(1), []
    while len(order) < 20:
        order += one.take_once()
        one.messages[-1].ack()
    assert runs_of(order[: TURNS_OF_A_RUN + 2]).count("small") == 2


def test_the_turns_of_a_run_do_not_add_up(app, taker, db):
    for shard in range(5):
        publish(app, 3, shard=shard)
    assert db.llen(BRANCHES_QUEUE) == TURNS_OF_A_RUN
    assert [taker(50).take_once()] == [[each for n in range(5) for each in ids(0, 1, 2, shard=n)]]


@pytest.mark.parametrize("lost", [1, TURNS_OF_A_RUN])
def test_turns_that_were_lost_are_given_again(app, taker, db, lost):
    """A worker that dies between taking a message and saying so takes it, and its turn, along."""
    publish(app, 20)
    for _ in range(lost):
        db.rpop(BRANCHES_QUEUE)
    with redis.Redis(connection_pool=db.connection_pool) as client:
        assert MessageReader(client).give_turns() == lost
        assert MessageReader(client).give_turns() == 0
    assert db.llen(BRANCHES_QUEUE) == TURNS_OF_A_RUN
    one = taker(50)
    assert one.take_once() == ids(*range(lost, 20))


def test_lost_turns_of_one_run_are_given_again_while_others_have_theirs(app, db):
    publish(app, 20, "a")
    db.delete(BRANCHES_QUEUE)
    publish(app, 20, "b")
    db.hset(TURNS, "gone", 3)
    db.lpush(BEHIND, "", "")
    assert MessageReader(db).give_turns() == TURNS_OF_A_RUN
    own = [json.loads(raw)["headers"]["root_id"] for raw in db.lrange(BRANCHES_QUEUE, 0, -1)]
    assert sorted(own) == ["a"] * TURNS_OF_A_RUN + ["b"] * TURNS_OF_A_RUN
    assert db.llen(BEHIND) == 40 - TURNS_OF_A_RUN - 2 * TURNS_OF_A_RUN
    assert set(db.hkeys(TURNS)) == {b"a", b"b"}


def test_a_loss_that_another_error_hides_is_found_a_little_later(app, db):
    publish(app, 20, "a")
    publish(app, 20, "b")
    messages = MessageReader(db)
    assert messages.give_turns() == 0
    [of_b, *_] = db.lrange(BRANCHES_QUEUE, 0, 0)
    db.rpop(BRANCHES_QUEUE)
    db.lpush(BRANCHES_QUEUE, of_b)
    given = [messages.give_turns() for _ in range(12)]
    assert given == [0] * 11 + [1]


def test_counters_that_are_wrong_keep_nobody_waiting(app, taker, db):
    publish(app, 20, "a")
    db.hset(TURNS, mapping={"a": 4, "b": 400, "c": -7})
    publish(app, 20, "b")
    publish(app, 20, "c")
    one = taker(100)
    taken = []
    while len(taken) < 60:
        taken += one.take_once()
    assert sorted(taken) == sorted(
        each for run_id in ("a", "b", "c") for each in ids(*range(20), run_id=run_id)
    )
    assert db.keys("fanout.branches*") == []


def test_what_is_put_straight_into_the_queue_is_taken_as_well(app, taker, db):
    """As Celery does with what is tried again, and kombu with what a dead worker had taken."""
    publish(app, 10)
    one = taker(5)
    one.take_once()
    one.close()
    assert waiting(db) == 10
    publish(app, 3, "r2")
    two = taker(20)
    taken = []
    while len(taken) < 13:
        taken += two.take_once()
    assert sorted(taken) == sorted([*ids(*range(10)), *ids(0, 1, 2, run_id="r2")])
    assert db.keys("fanout.branches*") == []


def test_what_waits_behind_the_queue_is_seen_and_goes_with_its_run(app, db, broker_url):
    publish(app, 50)
    publish(app, 50, "r2")
    publish(app, 10, "r2", stage=1)
    seen = MessageReader(db).task_ids()
    of_second = {*ids(*range(50), run_id="r2"), *ids(*range(10), run_id="r2", stage=1)}
    assert seen == {"r1": set(ids(*range(50))), "r2": of_second}
    (_, branches), _ = read_backlog(db)
    assert branches.waiting == 110
    store = make_store(load_settings(broker_url=broker_url))
    store.create_run("r2", spec="{}", created_at=1.0)
    store.delete_run("r2")
    assert waiting(db) == 50 + TURNS_OF_A_RUN
    assert not db.exists(*backlogs_of("r2"))
