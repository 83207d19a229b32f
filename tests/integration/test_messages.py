"""What the reaper sees in a real broker."""

from __future__ import annotations

import json

import redis

from fanout.broker.app import BRANCHES_QUEUE, CONTROL_QUEUE
from fanout.broker.inspection import UNACKED, MessageReader


def test_messages_in_queues_and_those_taken_are_seen(broker_url):
    """Three were taken: one that is not seen would be published again, and called twice.

    What is no message of ours is passed over, or nothing would be healed while it is there.
    """
    with redis.Redis.from_url(broker_url) as client:
        for nonsense in (b"\xff", "[]", "{}", '{"headers": {"id": 3}}', "[" * 5000):
            client.lpush(CONTROL_QUEUE, nonsense)
            client.hset(UNACKED, f"nonsense{len(nonsense)}", nonsense)
        client.lpush(CONTROL_QUEUE, json.dumps({"headers": {"id": "r1/0/0/collect"}}))
        client.lpush(BRANCHES_QUEUE, json.dumps({"headers": {"id": "r1/0/1/0"}}))
        for position in range(3):
            message = {"headers": {"id": f"r2/0/0/{position}"}}
            taken = json.dumps([message, "", BRANCHES_QUEUE])
            client.hset(UNACKED, f"tag{position}", taken)
        assert MessageReader(client).task_ids() == {
            "r1": {"r1/0/0/collect", "r1/0/1/0"},
            "r2": {"r2/0/0/0", "r2/0/0/1", "r2/0/0/2"},
        }
