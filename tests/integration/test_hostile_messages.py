"""Any client of the broker can put anything into its queues: a worker drops it and goes on."""

from __future__ import annotations

import base64
import json
import pickle
import re
import zlib
from random import Random

import pytest
import redis

from fanout.broker.app import BRANCH, BRANCHES_QUEUE, COLLECT, CONTROL_QUEUE, PREFLIGHT, make_app
from fanout.broker.publisher import Publisher
from fanout.core.ids import ShardId, StageId
from fanout.core.settings import load_settings
from fanout.core.spec import make_spec
from fanout.stores import RedisStore
from tests.hostile import changed, closed, opened

from .conftest import wait_for, waiting

CANARY = "CANARY-BODY"


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def envelope(body, *, task=BRANCH, content_type="application/json", **headers):
    """A message as Celery and kombu put it onto a queue."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    message = {
        "body": base64.b64encode(raw).decode(),
        "content-type": content_type,
        "content-encoding": "binary" if isinstance(body, bytes) else "utf-8",
        "headers": {"task": task, "id": "evil/0/0/0", **headers},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": "t",
            "delivery_info": {"exchange": "", "routing_key": BRANCHES_QUEUE},
        },
    }
    return json.dumps(message)


def call(*args, embedded=None, **kwargs):
    return [list(args), kwargs, embedded or {"callbacks": None, "errbacks": None, "chain": None}]


SOUND = {"run_id": "evil", "stage": 0, "shard": 0, "position": 0}
BOMB = zlib.compress(json.dumps(call(CANARY * 100)).encode() * 1000)


def hostile(path):
    """All that a worker must bear, by name."""
    no_task = json.loads(envelope(call(CANARY)))
    no_task["headers"] = {}
    not_base64 = json.loads(envelope(call(CANARY)))
    not_base64["body"] = "%%%"
    yaml = b"!!python/object/apply:os.mkdir ['" + str(path).encode() + b"']"
    follow_up = {"callbacks": [{"task": BRANCH, "args": [CANARY], "kwargs": {}, "options": {}}]}
    return {
        "pickle": envelope(
            pickle.dumps(call(Bomb(path))), content_type="application/x-python-serialize"
        ),
        "pickle without a task": json.dumps(no_task).replace(
            "application/json", "application/x-python-serialize"
        ),
        "yaml": envelope(yaml, content_type="application/x-yaml"),
        "plain": envelope(CANARY.encode(), content_type="application/data"),
        "not JSON inside": envelope(CANARY.encode()),
        "an unsupported type": envelope(call({"__type__": "x", "__value__": CANARY})),
        "no task": json.dumps(no_task),
        "unknown task": envelope(call(CANARY), task="os.system"),
        "task of Celery": envelope(call(CANARY), task="celery.chain"),
        "task that is no name": envelope(call(CANARY), task=[CANARY]),
        "too few arguments": envelope(call(run_id="evil")),
        "wrong arguments": envelope(call(**{**SOUND, "stage": CANARY, "position": -1})),
        "a key in place of a run": envelope(call(**{**SOUND, "run_id": f"x:{CANARY}"})),
        "more arguments": envelope(call(**SOUND, text=CANARY)),
        "arguments by place": envelope(call(*SOUND.values())),
        "wrong results": envelope(call(CANARY, run_id="evil", stage=0, shard=0), task=COLLECT),
        "a model without an end": envelope(call(model=CANARY * 1000, note="evil"), task=PREFLIGHT),
        "more to do": envelope(call(**SOUND, embedded=follow_up)),
        "not a call": envelope({CANARY: 1}),
        "a call of one": envelope([[]]),
        "a limit that is none": envelope(call(**SOUND), timelimit=CANARY),
        "a time that is none": envelope(call(**SOUND), eta=[CANARY]),
        "a date that is none": envelope(call(**SOUND), eta=CANARY),
        "id that is none": envelope(call(**SOUND), id={CANARY: 1}),
        "compressed": envelope(BOMB, compression="application/x-gzip"),
        "wrong base64": json.dumps(not_base64),
        "no message": CANARY,
        "a list": json.dumps([CANARY]),
        "empty": "{}",
        "no properties": json.dumps({"body": CANARY, "headers": {}}),
        "not UTF-8": b"\xff\xfe" + CANARY.encode(),
        "deep": "[" * 100_000,
        "too large": envelope(call(CANARY * 30_000)),
    }


def sound_messages(broker_url):
    """One of each sort, of a run that there is not."""
    with make_app(load_settings(broker_url=broker_url)) as app:
        publisher = Publisher(app)
        publisher.expand(StageId("evil", 0), [1])
        publisher.branches(ShardId("evil", 0, 3), range(40))
        publisher.collect(ShardId("evil", 0, 3))
        publisher.aggregate(StageId("evil", 0))
        publisher.close()
    with redis.Redis.from_url(broker_url) as server:
        found = [server.lrange(queue, 0, -1) for queue in (CONTROL_QUEUE, BRANCHES_QUEUE)]
        server.delete(CONTROL_QUEUE, BRANCHES_QUEUE)
    return [message for messages in found for message in messages]


def broadcasts(random):
    """What Flower might ask, changed at random, as kombu publishes it."""
    asked = {
        "method": "revoke", "arguments": {"task_id": "evil", "terminate": True},
        "destination": None, "pattern": None, "matcher": None, "ticket": CANARY,
        "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "evil"},
    }  # fmt: skip
    for _ in range(200):
        yield closed(
            {
                "body": changed(asked, random),
                "content-type": "application/json",
                "content-encoding": "utf-8",
                "headers": changed({"clock": 1, "expires": 0}, random),
                "properties": {"body_encoding": "base64", "delivery_tag": "t", "delivery_info": {}},
            }
        )


def dropped_so_far(server, worker):
    """How many a worker says that it has dropped; it says so when there is one more."""
    server.lpush(CONTROL_QUEUE, "{")
    return int(re.findall(r"(\d+) dropped so far", worker.log.read_text())[-1])


def test_what_is_no_message_of_ours_is_dropped_and_nothing_of_it_is_run_or_logged(
    client, broker_url, start_worker, tmp_path
):
    random = Random(7)
    sound = sound_messages(broker_url)
    messages = [*hostile(tmp_path / "executed").values(), *sound]
    messages += [closed(changed(opened(random.choice(sound)), random)) for _ in range(2_000)]
    worker = start_worker("--concurrency", "8", "--loglevel", "DEBUG", "-E")
    with redis.Redis.from_url(broker_url) as server:
        for number, message in enumerate(messages):
            server.lpush((CONTROL_QUEUE, BRANCHES_QUEUE)[number % 2], message)
        for nonsense in ("{", CANARY, "[]", json.dumps({"body": CANARY}), "x" * 300_000):
            server.publish("/0.celery.pidbox", nonsense)
        for broadcast in broadcasts(random):
            server.publish("/0.celery.pidbox", broadcast)
        wait_for(
            lambda: not server.llen(CONTROL_QUEUE) + waiting(server),
            "all messages are taken",
        )
        run = client.submit(make_spec(model="fake", prompt="{input}"), ["a", "b"])
        assert run.wait(120).succeeded == 2
        wait_for(lambda: not server.hlen("unacked"), "nothing is held back")
        assert server.keys("celery-task-meta-*") == []
        # Of a chord that nobody waits for, what a seal or a callback of a retry left.
        assert [key for key in server.keys("*evil*") if b"/evil" not in key] == []
    assert worker.process.poll() is None
    assert not (tmp_path / "executed").exists()
    log = worker.log.read_text()
    assert "dropped a message that" in log
    assert CANARY not in log
    assert "Traceback" not in log
    # The line is said once a second, however long they take.
    assert log.count("dropped a message that") < len(messages) / 4
    with redis.Redis.from_url(broker_url) as server:
        wait_for(lambda: dropped_so_far(server, worker) > len(messages) / 2, "all are counted")
        wait_for(
            lambda: RedisStore(server).totals().dropped > len(messages) / 2,
            "metrics have them",
        )
        # Once each; few of those that were changed are sound still.
        assert dropped_so_far(server, worker) < len(messages) + 205 + 2_000


@pytest.mark.parametrize("name", sorted(hostile("/nowhere")))
def test_each_is_dropped_by_itself(name, tmp_path):
    """The test of all messages together does not show which check drops one: this test does."""
    from kombu.transport.redis import Channel

    from fanout.broker.transport import _LimitedMessage
    from workers.consumer.envelope import find_fault

    raw = hostile(tmp_path / "executed")[name]
    channel = type("Channel", (), {"decode_body": Channel.decode_body, "codecs": Channel.codecs})()
    if len(raw) > 1_000 * load_settings().max_message_kb:
        return
    try:
        message = _LimitedMessage(json.loads(raw), channel=channel)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    message.accept = {"application/json"}
    assert find_fault(message) is not None
    assert not (tmp_path / "executed").exists()


def test_a_function_that_is_not_allowed_is_refused_before_it_is_imported(
    client, functions, start_worker, tmp_path
):
    from fanout.core.errors import ModelError

    path = functions(
        f"import pathlib\npathlib.Path({str(tmp_path / 'imported')!r}).touch()\n"
        "def model(prompt):\n    return prompt\n"
    )
    start_worker(PYTHONPATH=path, FANOUT_ALLOWED_CALLABLES="functions_under")
    spec = make_spec(model="functions_under_test:model", prompt="{input}")
    with pytest.raises(ModelError) as caught:
        client.submit(spec, ["a"])
    assert str(caught.value) == (
        "the function functions_under_test:model may not be used on the workers: it allows "
        "functions_under; list it, its module or its package in FANOUT_ALLOWED_CALLABLES where "
        "the workers run"
    )
    assert list(client.runs()) == []
    assert not (tmp_path / "imported").exists()


def test_a_branch_whose_function_is_not_allowed_is_a_bad_request(
    client, functions, start_worker, tmp_path
):
    """Without a worker nobody was asked before the run was made."""
    path = functions(
        f"import pathlib\npathlib.Path({str(tmp_path / 'imported')!r}).touch()\n"
        "def model(prompt):\n    return prompt\n"
    )
    spec = make_spec(model="functions_under_test:model", prompt="{input}")
    run = client.submit(spec, ["a", "b"])
    start_worker(PYTHONPATH=path, FANOUT_ALLOWED_CALLABLES="")
    assert run.wait(120).errors == {"bad_request": 2}
    assert "it allows none" in run.result().errors[0].message
    assert not (tmp_path / "imported").exists()
