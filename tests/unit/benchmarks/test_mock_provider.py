"""The provider that benchmarks measure against."""

import json
import statistics
from itertools import islice

import pytest
from provider import Connection, LatencyError, Plan, latencies
from provider_limits import Quota
from provider_outages import SORTS, Outage

BODY = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "hi"}]}).encode()


class Transport:
    def __init__(self):
        self.sent = b""
        self.is_closed = False

    def write(self, data):
        self.sent += data

    def close(self):
        self.is_closed = True

    abort = close


class Timer:
    def __init__(self, call, arguments):
        self._call = call
        self._arguments = arguments
        self.is_cancelled = False

    def fire(self):
        self._call(*self._arguments)

    def cancel(self):
        self.is_cancelled = True


class Caller:
    """A connection without a network, and a clock that is turned by hand."""

    def __init__(self, **plan):
        self.plan = Plan(**plan)
        self.timers = []
        self.transport = Transport()
        self.connection = Connection(self.plan, self._call_later)
        self.connection.connection_made(self.transport)

    def _call_later(self, _delay_s, call, *arguments):
        self.timers.append(Timer(call, arguments))
        return self.timers[-1]

    def send(self, data):
        self.connection.data_received(data)

    def replies(self):
        """Return status and JSON of each answer so far."""
        found, rest = [], self.transport.sent
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            length = int(head.rpartition(b"content-length: ")[2])
            found.append((int(head.split()[1]), json.loads(rest[:length])))
            rest = rest[length:]
        return found

    def statuses(self):
        return [status for status, _ in self.replies()]


def post(body=BODY, path="/v1/chat/completions", more=""):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def test_an_answer_is_a_completion_of_the_length_that_was_asked_for():
    caller = Caller(answer_bytes=300)
    caller.send(post())
    [(status, reply)] = caller.replies()
    assert status == 200
    assert len(reply["choices"][0]["message"]["content"]) == 300
    assert reply["model"] == "mock"
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_request_may_come_byte_by_byte():
    caller = Caller()
    for byte in post():
        caller.send(bytes([byte]))
    assert caller.statuses() == [200]


def test_a_packet_may_hold_several_requests_and_a_part_of_one():
    caller = Caller()
    packet = post() * 3
    caller.send(packet + packet[:40])
    assert caller.statuses() == [200] * 3
    caller.send(post()[40:])
    assert caller.statuses() == [200] * 4
    assert caller.plan.stats()["served"] == 4


def test_a_body_of_a_megabyte_comes_in_pieces():
    messages = [{"role": "user", "content": "a" * 1_000_000}]
    data = post(json.dumps({"model": "mock", "messages": messages}).encode()) + post()
    caller = Caller()
    for start in range(0, len(data), 65_536):
        caller.send(data[start : start + 65_536])
    assert caller.statuses() == [200, 200]
    assert caller.plan.bytes_in > 1_000_000


def test_answers_come_in_the_order_of_requests_at_any_latency():
    caller = Caller(latency="lognormal:1:1")
    caller.send(post() * 2)
    first, second = caller.timers
    second.fire()
    assert caller.replies() == []
    assert caller.plan.stats()["in_flight"] == 2
    first.fire()
    ids = [reply["id"] for _, reply in caller.replies()]
    assert ids == sorted(ids)
    assert caller.plan.stats()["max_in_flight"] == 2
    assert caller.plan.stats()["in_flight"] == 0


def test_a_caller_that_goes_is_not_counted_as_served():
    caller = Caller(latency="constant:1")
    caller.send(post())
    caller.connection.connection_lost(None)
    stats = caller.plan.stats()
    assert (stats["abandoned"], stats["in_flight"], stats["served"]) == (1, 0, 0)
    assert caller.timers[0].is_cancelled


def test_what_is_no_chat_completion_is_refused():
    caller = Caller()
    caller.send(post(b'{"model": "mock", "messages": []}') + post(b"{") + get("/nothing"))
    assert caller.statuses() == [400, 400, 404]
    assert caller.plan.stats()["served"] == 0


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: many\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 70_000, 431),
    ],
)
def test_what_it_cannot_read_is_refused_and_the_connection_closed(request_head, status):
    caller = Caller()
    caller.send(request_head)
    assert caller.statuses() == [status]
    assert caller.transport.is_closed


def test_a_connection_is_closed_behind_its_answer_where_the_caller_says_so():
    caller = Caller(latency="constant:1")
    caller.send(post(more="Connection: close\r\n"))
    assert not caller.transport.is_closed
    caller.timers[0].fire()
    assert caller.transport.is_closed


def test_it_fails_and_refuses_as_often_as_it_is_told_and_in_the_same_order():
    def fates():
        caller = Caller(error_rate=0.2, refuse_rate=0.3, retry_after_s=7)
        caller.send(post() * 1_000)
        assert b"retry-after: 7\r\n" in caller.transport.sent
        return caller.statuses()

    statuses = fates()
    assert statuses == fates()
    assert 150 < statuses.count(500) < 250
    assert 250 < statuses.count(429) < 350


def test_a_reset_begins_anew():
    caller = Caller(latency="0", error_rate=0.5)
    caller.send(post() * 50)
    before = caller.statuses()
    caller.send(post(b"", "/reset"))
    caller.send(post() * 50)
    caller.send(get("/stats"))
    *_, (_, stats) = caller.replies()
    assert caller.statuses()[51:-1] == before
    assert stats["served"] == 50
    assert stats["connections"] == 1


@pytest.mark.parametrize(
    ("form", "median"), [("constant:1.5", 1.5), ("lognormal:0.5:1", 0.5), ("pareto:0.1:2", 0.1414)]
)
def test_latencies_are_those_of_their_form_and_seed(form, median):
    found = list(islice(latencies(form, 3), 20_000))
    assert statistics.median(found) == pytest.approx(median, rel=0.03)
    assert found == list(islice(latencies(form, 3), 20_000))


def test_another_seed_gives_other_latencies():
    one, other = (next(latencies("lognormal:0.5:1", seed)) for seed in (1, 2))
    assert one != other


@pytest.mark.parametrize(
    "form",
    [
        "",
        "1",
        "constant",
        "constant:x",
        "constant:-1",
        "lognormal:1",
        "lognormal:0:1",
        "pareto:1:0",
    ],
)
def test_other_forms_of_latency_are_refused(form):
    with pytest.raises(LatencyError, match="is none of"):
        latencies(form, 1)


@pytest.mark.parametrize("sort", SORTS)
def test_an_outage_strikes_each_request_and_ends(sort):
    now = [0.0]
    caller = Caller()
    caller.plan.outage = Outage(sort, 5.0, clock=lambda: now[0])
    for _ in range(20):
        caller.send(post())
        if caller.transport.is_closed:
            break
    struck = caller.plan.outage.struck
    is_partial = sort.endswith("-some")
    assert struck == 20 or (sort in {"reset", "refused"} and struck == 1) or is_partial
    assert not is_partial or 5 < struck < 18
    told = caller.transport.sent
    expected = {"500": b" 500 ", "500-some": b" 500 ", "500-flapping": b" 500 ",
                "503": b" 503 ", "529": b" 529 ", "429": b" 429 ",
                "429-some": b"retry-after: 1\r\n", "429-long": b"retry-after: 600\r\n",
                "html": b"text/html"}  # fmt: skip
    assert expected.get(sort, b"") in told
    assert sort in expected or told == b""
    for at in [4.0, 6.0] if sort == "500-flapping" else [6.0]:
        now[0] = at
        after = Caller()
        after.plan.outage = caller.plan.outage
        after.send(post())
        assert after.replies()[0][0] == 200


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        # At the beginning, after half a minute, and after a minute.
        ("bucket", [60, 30, 30]),
        ("second", [1, 1, 1]),
        ("window", [60, 0, 60]),
    ],
)
def test_a_quota_refills_as_its_kind_says(kind, accepted):
    now = 0.0
    quota = Quota(rpm=60, tpm=0, kind=kind, tells="headers", clock=lambda: now)
    found = []
    for moment in (0.0, 30.0, 60.0):
        now = moment
        found.append(sum(quota.take(10)[0] for _ in range(100)))
    assert found == accepted
    is_accepted, headers = quota.take(10)
    assert not is_accepted
    assert "x-ratelimit-limit-requests: 60\r\n" in headers
    assert "retry-after-ms: " in headers
    assert sum(second[1] for second in quota.by_second) == 301 - sum(accepted)


def test_a_quota_of_tokens_counts_those():
    quota = Quota(rpm=0, tpm=100, kind="window", tells="nothing", clock=lambda: 0.0)
    assert [quota.take(40) for _ in range(3)] == [(True, ""), (True, ""), (False, "")]
    assert quota.by_second == [[2, 1, 80]]
