"""How a worker's channel takes messages: several with one round trip, and none is lost."""

from __future__ import annotations

import json

import pytest
import redis

from fanout.broker import BRANCHES_QUEUE, CONTROL_QUEUE, make_app
from fanout.chords import Publisher
from fanout.messages import UNACKED, UNACKED_INDEX
from fanout.settings import load_settings


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
            self._connection.drain_events(timeout=5)
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


def publish(app, count):
    Publisher(app).shard_chord("r1", 0, 0, range(count), size=count, feed=0)


def ids(*positions):
    return [f"r1/0/0/{position}" for position in positions]


def test_as_many_are_taken_at_once_as_there_is_room_in_their_order(app, taker, db):
    publish(app, 10)
    assert taker(4).take_once() == ids(0, 1, 2, 3)
    assert db.llen(BRANCHES_QUEUE) == 6
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
    assert db.llen(BRANCHES_QUEUE) == 8
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
        publisher.collect("r1", 0, shard)
    assert taker(100).take_once() == ["r1/0/0/collect"]
    assert db.llen(CONTROL_QUEUE) == 2


def test_each_is_kept_for_whoever_restores_it_and_goes_when_it_is_acknowledged(app, taker, db):
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
    assert db.llen(BRANCHES_QUEUE) == 3
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
