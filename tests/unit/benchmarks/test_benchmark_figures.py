"""What benchmarks make of what they measure."""

import os
import subprocess
import sys
import time

import pytest
from layers import OTHER, Sample, layer_of, leaves, parse, shares
from measure import cpu_s, descendants, ideal_s, ratios, spread
from provider import latencies


@pytest.mark.parametrize(
    ("calls", "in_flight", "expected"),
    [(4_000, 200, 20.0), (4_001, 200, 21.0), (3, 200, 1.0), (5, 1, 5.0)],
)
def test_the_ideal_of_constant_latencies_is_whole_waves(calls, in_flight, expected):
    assert ideal_s(latencies("constant:1", 1), calls, in_flight) == pytest.approx(expected)


def test_the_ideal_of_other_latencies_has_each_call_begin_as_soon_as_one_ends():
    # 3 | 1 1 4: the second lane ends at 6.
    assert ideal_s(iter([3.0, 1.0, 1.0, 4.0]), 4, 2) == pytest.approx(6.0)


def test_a_spread_is_median_least_and_most():
    assert spread([3.0, 1.0, 2.0, 9.0]) == {"median": 2.5, "min": 1.0, "max": 9.0}


def test_ratios_are_of_the_same_round():
    assert ratios({0: 2.0, 1: 3.0, 2: 5.0}, {0: 1.0, 2: 2.0, 3: 7.0}) == [2.0, 2.5]


def test_cpu_of_a_process_is_counted_with_that_of_children_that_have_ended():
    code = "x = 0\nfor i in range(2_000_000): x += i"
    before_s = cpu_s([os.getpid()])
    subprocess.run([sys.executable, "-c", code], check=True)
    assert cpu_s([os.getpid()]) - before_s >= 0.02
    assert cpu_s([os.getpid()]) >= time.process_time() - 0.01


def test_a_process_that_is_gone_costs_nothing():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert cpu_s([gone.pid]) == 0.0
    assert descendants([gone.pid]) == []


def test_descendants_leave_out_those_that_are_named():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in descendants([os.getpid()])
        assert child.pid not in descendants([os.getpid()], but=[child.pid])
        child.communicate(b"\n")


OUTER = ("Thread.run (threading.py:1)", "_worker (concurrent/futures/thread.py:69)")


@pytest.mark.parametrize(
    ("inner", "layer"),
    [
        (["begin (x.py:1)"], "pool"),
        (["RedisBranches.begin_all (fanout/stores/redis/branches.py:9)", "f (a.py:1)"], "admit"),
        (["RedisBranches._record_some (fanout/stores/redis/branches.py:9)"], "record"),
        (
            [
                "expand (workers/reduce/stages.py:31)",
                "Publisher._send (fanout/broker/publisher.py:187)",
            ],
            "publish",
        ),
        (["collect (workers/reduce/stages.py:95)", "decode_outcome (codec.py:98)"], "collect"),
        (
            [
                "settle_branches (workers/consumer/pool.py:1)",
                "on_chord (fanout/broker/result_backend.py:2)",
            ],
            "part-return",
        ),
        (
            [
                "settle_branches (workers/consumer/pool.py:1)",
                "Pipeline.execute (redis/client.py:2)",
            ],
            "ack",
        ),
        (
            [
                "_put_all (fanout/broker/publisher.py:1)",
                "_Limited._put (fanout/broker/transport.py:73)",
            ],
            "publish",
        ),
        (
            [
                "EventSending._send (workers/telemetry/events.py:1)",
                "Producer.x (kombu/messaging.py:2)",
            ],
            "events",
        ),
        (["call_for (workers/context/inflight.py:1)", "current_task (asyncio/tasks.py:2)"], "call"),
        (
            ["_Branch._outcome (workers/branch/execution.py:1)", "post (aiohttp/client.py:2)"],
            "call",
        ),
    ],
)
def test_the_innermost_known_frame_says_which_step_it_is(inner, layer):
    assert layer_of((*OUTER, *inner)) == layer


def test_a_stack_that_no_row_knows_is_other():
    assert layer_of(("main (somewhere.py:1)",)) == OTHER


def test_stacks_of_py_spy_are_read_with_their_threads():
    lines = ["thread (0x2A): loop;a b (x/y.py:1);<lambda> (z.py:2) 12\n", "a (x.py:1) 3\n"]
    assert list(parse(lines)) == [
        Sample(42, ("a b (x/y.py:1)", "<lambda> (z.py:2)"), 12),
        Sample(None, ("a (x.py:1)",), 3),
    ]


def test_what_a_thread_used_is_dealt_out_by_its_own_samples():
    publish, call = ("send (fanout/broker/publisher.py:1)",), ("f (aiohttp/client.py:2)",)
    samples = [Sample(1, publish, 30), Sample(1, call, 10), Sample(2, call, 1)]
    found = shares(samples, {1: 4.0, 2: 2.0, 3: 0.5})
    assert (found["publish"], found["call"], found[OTHER]) == (3.0, 3.0, 0.5)
    assert leaves(samples, "call", most=1) == {call[0]: 11}
