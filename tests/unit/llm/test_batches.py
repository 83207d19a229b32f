"""The batch APIs of all providers: what is sent, found, read, and survived."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from fanout.core.answer_shape import AnswerShape
from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind
from fanout.core.settings import load_settings
from fanout.doctor.collect import local_model_facts
from fanout.llm import LLMRequest
from fanout.llm.batches import http_batches, result_lines
from fanout.llm.batches.base import (
    BatchClient,
    BatchIntent,
    BatchResult,
    BatchState,
    BatchUnknownError,
    batches_of,
)
from fanout.llm.batches.transfers import file_parts
from fanout.llm.http_client import HttpClient
from fanout.llm.registry import make_llm
from fanout.llm.usage import UNKNOWN_USAGE
from tests.memory import peak_bytes

APIS = ["openai", "anthropic", "gemini"]


@pytest.fixture(params=APIS)
def api(request):
    return request.param


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    """Retries follow at once, and as often as within half a minute."""
    monkeypatch.setattr(http_batches, "_FIRST_WAIT_S", 0.001)


class Lane:
    """The batch API of one provider, with the steps that the lane of a fleet makes."""

    def __init__(self, api, path):
        self.llm = make_llm(f"{api}/m", settings=load_settings())
        found = batches_of(self.llm)
        assert found is not None
        self.client: BatchClient = found
        self.path = path / "batch.jsonl"
        self.made = 0

    async def write(self, prompts, **options):
        first = self.made * 1_000
        requests = {
            f"r{n}": LLMRequest(prompt=one, **options) for n, one in enumerate(prompts, first)
        }
        lines = [await self.client.line(name, one) for name, one in requests.items()]
        self.path.write_bytes(b"".join(lines))
        self.made += 1
        return BatchIntent(
            nonce=f"nonce-{self.made}",
            created_at=time.time(),
            requests=len(requests),
            first_id=f"r{first}",
        )

    async def submit(self, prompts, **options):
        return await self.client.submit(self.path, await self.write(prompts, **options))

    async def ended(self, batch_id):
        status = await self.client.status(batch_id)
        while status.state is BatchState.RUNNING:
            status = await self.client.status(batch_id)
        return status

    async def results(self, batch_id):
        return {one.custom_id: one async for one in self.client.results(batch_id)}

    async def whole(self, prompts, **options):
        """Make a batch, wait for its end, and return its id, status and results."""
        batch_id = await self.submit(prompts, **options)
        status = await self.ended(batch_id)
        return batch_id, status, await self.results(batch_id)


def with_lane(api, path, step):
    async def all_of_it():
        lane = Lane(api, path)
        try:
            return await step(lane)
        finally:
            await lane.llm.aclose()

    return asyncio.run(all_of_it())


def test_a_batch_is_answered_as_single_calls_are(batch_provider, api, tmp_path):
    batch_provider.polls = 2
    prompts = ["one", "two\nlines", "drei ü 漢"]
    options = {"system": "be brief", "max_tokens": 9, "stop": ("END",)}

    async def both(lane):
        single = [await lane.llm.complete(LLMRequest(prompt=one, **options)) for one in prompts]
        return single, await lane.whole(prompts, **options)

    single, (batch_id, status, results) = with_lane(api, tmp_path, both)
    assert (status.state, status.requests, status.succeeded) == (BatchState.ENDED, 3, 3)
    assert batch_id == batch_provider.batches[0].id
    replies = [results[f"r{n}"].reply for n in range(3)]
    assert [one.lane for one in replies] == ["batch"] * 3
    assert [msgspec.structs.replace(one, lane=None) for one in replies] == single
    # They can be stored.
    stored = [
        msgspec.json.decode(msgspec.json.encode(one), type=BatchResult) for one in results.values()
    ]
    assert stored == list(results.values())


def test_a_batch_sends_the_bodies_of_single_calls(provider, api, tmp_path, monkeypatch):
    for name, path in {"OPENAI": "/v1", "ANTHROPIC": "", "GEMINI": "/v1beta"}.items():
        monkeypatch.setenv(f"{name}_BASE_URL", f"{provider.url}{path}")
        monkeypatch.setenv(f"{name}_API_KEY", "sk-test-0123456789abcdef")
    shape = AnswerShape({"type": "object", "properties": {"a": {"type": "string"}}})
    request = LLMRequest(prompt="x", system="s", temperature=0.5, max_tokens=9, shape=shape)

    async def both(lane):
        with pytest.raises(LLMError):
            await lane.llm.complete(request)
        return await lane.client.line("a-b_1", request)

    line = with_lane(api, tmp_path, both)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    sent = json.loads(line)
    body = {"openai": "body", "anthropic": "params", "gemini": "request"}[api]
    assert sent[body] == provider.requests[-1][2]
    assert sent["key" if api == "gemini" else "custom_id"] == "a-b_1"


@pytest.mark.parametrize("custom_id", ["", "a b", "a:b", "x" * 65, "ü", "a\n"])
def test_a_custom_id_that_a_provider_refuses_is_refused_here(
    batch_provider, api, tmp_path, custom_id
):
    async def line(lane):
        await lane.client.line(custom_id, LLMRequest(prompt="x"))

    with pytest.raises(ValueError, match="a custom id has 1 to 64"):
        with_lane(api, tmp_path, line)


def test_the_items_of_a_batch_fail_by_themselves(batch_provider, api, tmp_path):
    """Errors have the kind and the words of single calls; what was not reached may be sent again."""
    errors = {
        "openai": {"error": {"message": "prompt is too long", "code": "context_length_exceeded"}},
        "anthropic": {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens"},
        },
        "gemini": {"error": {"message": "input is too long", "status": "INVALID_ARGUMENT"}},
    }
    fates = {"bad": (400, errors[api]), "late": "expired"}
    batch_provider.item = fates.get
    batch_provider.is_shuffled = True

    async def step(lane):
        _, status, results = await lane.whole(["good", "bad", "late", "fine"])
        with pytest.raises(LLMError, match="too long") as caught:
            lane.client.taken(LLMRequest(prompt="bad"), results["r1"])
        reply = lane.client.taken(LLMRequest(prompt="good"), results["r0"])
        return status, results, caught.value, reply

    status, results, error, reply = with_lane(api, tmp_path, step)
    assert status.succeeded == 2
    assert sorted(results) == ["r0", "r1", "r2", "r3"]
    assert (reply.text, results["r3"].reply.text) == ("re: good", "re: fine")
    assert (error.kind, error.status, error.is_own) == (ErrorKind.CONTEXT_LENGTH, 400, True)
    late = results["r2"].error
    if api != "gemini":
        assert late.kind is ErrorKind.EXPIRED
        assert late.usage.calls == late.usage.input_tokens == 0
    assert late.is_own


@pytest.mark.parametrize(
    ("fault", "state"), [("batch_expired", BatchState.EXPIRED), ("batch_failed", BatchState.FAILED),
                         ("batch_full", BatchState.FAILED)],
)  # fmt: skip
def test_a_batch_that_does_not_end_well_says_how(batch_provider, api, tmp_path, fault, state):
    if api == "anthropic" and state is BatchState.FAILED:
        pytest.skip("Anthropic checks the requests of a batch one by one")
    batch_provider.faults[fault] = 1
    _, status, results = with_lane(api, tmp_path, lambda lane: lane.whole(["a", "b", "c"]))
    assert status.state is state
    answered = [one for one, result in results.items() if result.reply]
    assert answered == (["r0", "r2"] if state is BatchState.EXPIRED else [])
    if state is BatchState.FAILED:
        is_full = fault == "batch_full"
        kind = ErrorKind.RATE_LIMITED if is_full else ErrorKind.BAD_REQUEST
        assert status.error.kind is kind
        assert ("Enqueued" if is_full else "invalid") in status.error.message


def test_a_batch_is_cancelled_once(batch_provider, api, tmp_path):
    batch_provider.is_held = True

    async def step(lane):
        batch_id = await lane.submit(["a", "b"])
        batch_provider.faults["cancel_failed"] = 1
        await lane.client.cancel(batch_id)
        status = await lane.ended(batch_id)
        # It has ended: nothing to do, and nothing to complain about.
        await lane.client.cancel(batch_id)
        results = await lane.results(batch_id)
        await lane.client.discard(batch_id)
        return status, results

    status, results = with_lane(api, tmp_path, step)
    assert status.state is BatchState.CANCELLED
    assert all(one.error is not None for one in results.values())
    if api != "gemini":
        assert {one.error.kind for one in results.values()} == {ErrorKind.CANCELLED}
    if api == "openai":
        # With the prompts.
        assert not batch_provider.files


def test_a_batch_that_nobody_knows_is_gone(batch_provider, api, tmp_path):
    name = "batches/x" if api == "gemini" else "x"
    status = with_lane(api, tmp_path, lambda lane: lane.client.status(name))
    assert status.state is BatchState.GONE


@pytest.mark.parametrize("fault", ["upload_cut", "create_refused", "poll_failed", "results_failed",
                                   "results_cut"])  # fmt: skip
def test_faults_that_pass_are_outlived(batch_provider, api, tmp_path, fault):
    batch_provider.faults[fault] = 2
    prompts = [f"{n} {'x' * 2_000}" for n in range(200)]

    async def step(lane):
        if fault == "upload_cut" and api == "anthropic":
            # The upload makes the batch: only a look at the list can tell that it was not made.
            intent = await lane.write(prompts)
            for _ in range(2):
                with pytest.raises(BatchUnknownError):
                    await lane.client.submit(lane.path, intent)
                assert await lane.client.find(intent, ()) is None
        return await lane.whole(prompts)

    _, status, results = with_lane(api, tmp_path, step)
    assert batch_provider.faults[fault] == 0
    assert status.state is BatchState.ENDED
    assert [one.reply.text for one in results.values()] == [f"re: {one}" for one in prompts]
    assert len(batch_provider.batches) == 1


def test_a_batch_whose_reply_was_lost_is_found_and_not_made_again(batch_provider, api, tmp_path):
    batch_provider.faults.update(create_lost=1, list_failed=1)
    batch_id, _, results = with_lane(api, tmp_path, lambda lane: lane.whole(["a", "b"]))
    assert [one.id for one in batch_provider.batches] == [batch_id]
    assert len(results) == 2


def test_a_reply_that_names_no_batch_is_told_from_one_that_is_lost(batch_provider, api, tmp_path):
    async def step(lane):
        errors = []
        for fault in ("create_nameless", "create_lost"):
            batch_provider.faults[fault] = 1
            with pytest.raises(BatchUnknownError) as caught:
                await lane.client._create(lane.path, await lane.write(["a"]), None)
            errors.append(caught.value)
        return errors

    assert [error.is_own for error in with_lane(api, tmp_path, step)] == [True, False]
    assert len(batch_provider.batches) == 2


def test_a_batch_that_is_made_late_is_found_by_a_later_look(batch_provider, api, tmp_path):
    batch_provider.faults["create_late"] = 1
    batch_provider.late_s = 0.3

    async def step(lane):
        others = [await lane.submit(["a", "b"]) for _ in range(3)]
        for one in others:
            await lane.ended(one)
        batch_provider.faults["create_late"] = 1
        intent = await lane.write(["c", "d"])
        with pytest.raises(BatchUnknownError) as caught:
            await lane.client.submit(lane.path, intent)
        found = None
        while found is None:
            try:
                found = await lane.client.find(intent, others)
            except BatchUnknownError:
                await lane.client.status(batch_provider.batches[-1].id)
        return others, found, caught.value

    batch_provider.faults["create_late"] = 0
    others, found, error = with_lane(api, tmp_path, step)
    assert found == batch_provider.batches[-1].id
    assert found not in others
    assert error.kind is ErrorKind.SERVER_ERROR
    assert len(batch_provider.batches) == 4


def test_a_batch_is_not_made_once_the_right_to_it_is_lost(batch_provider, api, tmp_path):
    asked = []

    async def before():
        asked.append(1)
        raise LookupError

    async def step(lane):
        intent = msgspec.structs.replace(await lane.write(["a"]), bytes=5_000_000)
        with pytest.raises(LookupError):
            await lane.client.submit(lane.path, intent, before=before)
        return lane.client.settle_s(intent)

    # The upload that makes a batch may take long.
    assert with_lane(api, tmp_path, step) == (160 if api == "anthropic" else 60)
    assert (batch_provider.batches, asked) == ([], [1])


def test_a_batch_is_not_taken_for_another_one(batch_provider, api, tmp_path):
    """Not for one of the same size that another program has made, and not for one of ours."""
    batch_provider.is_held = True

    async def step(lane):
        foreign = await lane.submit(["a", "b"])
        intent = await lane.write(["a", "b"])
        if api == "anthropic":
            # Nothing tells them apart yet.
            with pytest.raises(BatchUnknownError, match="whose it is"):
                await lane.client.find(intent, ())
        batch_provider.is_held = False
        await lane.ended(foreign)
        assert await lane.client.find(intent, ()) is None
        own = await lane.client.submit(lane.path, intent)
        await lane.ended(own)
        assert await lane.client.find(intent, ()) == own
        # Of one more page of the list.
        for number in range(120):
            batch_provider.make(another(batch_provider.batches[0], number))
        assert await lane.client.find(intent, ()) == own
        return await lane.client.find(intent, {own})

    assert with_lane(api, tmp_path, step) is None


def another(batch, number):
    """A batch of another program, made by hand: of no other size than ours, each tenth."""
    items = batch.items if number % 10 == 0 else batch.items[:1]
    name = "batches/z" if batch.api == "gemini" else "z"
    return replace(batch, id=name, items=items, name="", metadata={}, counts=batch.counts.copy())


LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("custom_id", {"response": {"status_code": 200, "body": {"choices": 7}}}),
    "anthropic": ("custom_id", {"result": {"type": "succeeded", "message": {"content": 7}}}),
    "gemini": ("key", {"response": {"candidates": 7}}),
}
BROKEN: list[dict[str, Any]] = [
    {}, {"response": None}, {"response": 7}, {"response": {}}, {"response": {"status_code": "x"}},
    {"response": {"status_code": 200, "body": None}}, {"response": {"status_code": 10**30}},
    {"result": None}, {"result": 7}, {"result": {}}, {"result": {"type": 7}}, {"result": {"type": "x"}},
    {"result": {"type": "succeeded"}}, {"result": {"type": "errored", "error": 7}},
    {"error": 7}, {"error": []}, {"error": {"code": [], "message": {}}}, {"error": {"code": 10**30}},
]  # fmt: skip


def test_broken_results_are_errors_of_their_items(batch_provider, api, tmp_path):
    """No line ends the others: nonsense, doubled, unknown, nested, not JSON, without an end."""
    name, fields = LINES[api]
    broken = {
        f"x{n}": json.dumps({name: f"x{n}", **one}) for n, one in enumerate([fields, *BROKEN])
    }
    broken["cut"] = f'{{"{name}": "cut", "response": {{"body": "and then'
    broken["deep"] = f'{{"{name}": "deep", "response": {"[" * 100_000}'
    nobody = ["", " ", "null", "[]", "7", '"r0"', "{}", f'{{"{name}": 7}}', f'{{"{name}": "a b"}}',
              f'{{"{name}": null}}', "\x00\xff", "{" * 1_000]  # fmt: skip
    batch_provider.extra_lines = [one.encode("latin-1") for one in [*nobody, *broken.values()]]
    batch_provider.has_doubled = True

    async def step(lane):
        batch_id = await lane.submit(["a", "b"])
        await lane.ended(batch_id)
        return [one async for one in lane.client.results(batch_id)]

    results = with_lane(api, tmp_path, step)
    found = {one.custom_id: one for one in results}
    assert len(found) == len(results)
    assert sorted(found) == sorted([*broken, "r0", "r1"])
    assert [found[one].reply.text for one in ("r0", "r1")] == ["re: a", "re: b"]
    for one, line in broken.items():
        assert found[one].reply is None
        problem = found[one].error
        assert problem.is_own
        msgspec.json.encode(found[one])
        # Only what the provider says to have failed may cost nothing.
        assert '"error' in line or problem.usage == UNKNOWN_USAGE, line


def test_a_line_without_end_is_not_kept(batch_provider, tmp_path, monkeypatch):
    monkeypatch.setattr(result_lines, "MOST_LINE_BYTES", 50_000)
    giant = b'{"custom_id": "giant", "response": {"body": "' + b"x" * 3_000_000 + b'"}}'
    batch_provider.extra_lines = [giant, giant.replace(b"giant", b"other")]
    _, _, results = with_lane("openai", tmp_path, lambda lane: lane.whole(["a"]))
    assert sorted(results) == ["giant", "other", "r0"]
    assert "longer than" in results["giant"].error.message


@pytest.mark.parametrize("joint", [b"\n", b","])
def test_large_files_pass_in_flat_memory(tmp_path, joint):
    """An upload and results of 48 MB, at a server that sends back what it gets."""
    path, block = tmp_path / "batch.jsonl", b"x" * 99_999 + b"\n"
    with path.open("wb") as file:
        for _ in range(480):
            file.write(block)
    size = path.stat().st_size - (joint == b",")

    async def serve(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        if request.startswith(b"POST"):
            left = size
            while left:
                left -= len(await reader.read(min(left, 65_536)))
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (480 * len(block)))
            for _ in range(480):
                writer.write(block)
                await writer.drain()
        await writer.drain()
        writer.close()

    async def both():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = HttpClient(
            f"http://127.0.0.1:{port}", variable="X", headers={}, concurrency=2,
            max_reply_bytes=1_000,
        )  # fmt: skip
        url = client.url("files")
        reply = await client.upload(
            url, lambda: file_parts(path, joint=joint), size=size, headers={}
        )
        lines = [len(line.data) async for line in client.lines(url, stall_s=30, most_bytes=200_000)]
        await client.aclose()
        server.close()
        assert reply.is_success
        assert lines == [99_999] * 480

    assert peak_bytes(lambda: asyncio.run(both())) < 6_000_000


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "has no batch API"), (501, "has no batch API"), (403, "may not use the batch API"),
     (401, "may not use|refuses the key"), (200, None)],
)  # fmt: skip
def test_the_check_says_whether_batches_can_be_made(
    provider, monkeypatch, api, tmp_path, status, words
):
    for name in ("OPENAI", "ANTHROPIC", "GEMINI"):
        monkeypatch.setenv(f"{name}_BASE_URL", provider.url)
        monkeypatch.setenv(f"{name}_API_KEY", "sk-test-0123456789abcdef")
    provider.status = status
    provider.body = (
        {"error": {"message": "no: sk-test-0123456789abcdef"}} if words else {"data": []}
    )

    def check(lane):
        return lane.client.check()

    if words is None:
        with_lane(api, tmp_path, check)
        return
    with pytest.raises(ModelError, match=words) as caught:
        with_lane(api, tmp_path, check)
    assert "sk-test" not in str(caught.value)


SHAPE = {"type": "object", "properties": {"a": {"type": "string"}}}
# What refuses a part of a request, and whether the line that is made anew has it.
REFUSED: dict[str, dict[str, Any]] = {
    "openai": {
        "message": "response_format is not supported by this model",
        "param": "response_format",
    },
    "anthropic": {"type": "invalid_request_error", "message": "output_config: not supported"},
    "gemini": {"message": "response_schema is not supported by this model"},
}


def test_what_a_provider_refuses_of_an_item_is_left_out_of_the_next_line(
    batch_provider, api, tmp_path
):
    batch_provider.item = lambda _prompt: (400, {"error": REFUSED[api]})

    async def step(lane):
        shape = AnswerShape(SHAPE)
        request = LLMRequest(prompt="x", shape=shape)
        before = await lane.client.line("r0", request)
        _, _, results = await lane.whole(["x"], shape=shape)
        stored = msgspec.json.decode(msgspec.json.encode(results["r0"]), type=BatchResult)
        # The lane of a fleet lands each of many such items.
        for _ in range(3):
            with pytest.raises(LLMError, match="it is sent again without that") as caught:
                lane.client.taken(request, stored)
            assert caught.value.kind is ErrorKind.SERVER_ERROR
            assert caught.value.is_own
        return before, await lane.client.line("r0", request)

    before, after = with_lane(api, tmp_path, step)
    word = {
        "openai": b"response_format",
        "anthropic": b"output_config",
        "gemini": b"responseSchema",
    }
    assert word[api] in before
    assert word[api] not in after


@pytest.mark.parametrize("times", [1, 50])
def test_a_limit_that_anthropic_tells_is_kept_to(batch_provider, tmp_path, times):
    """Also if many items of a batch are refused with it."""
    refused = {
        "type": "invalid_request_error",
        "message": "max_tokens: 128000 > 4096, which is the most",
    }
    batch_provider.item = lambda _prompt: (400, {"error": refused})

    async def step(lane):
        _, _, results = await lane.whole(["x"])
        for _ in range(times):
            with pytest.raises(LLMError, match="sent again"):
                lane.client.taken(LLMRequest(prompt="x"), results["r0"])
        return json.loads(await lane.client.line("r0", LLMRequest(prompt="x")))

    assert with_lane("anthropic", tmp_path, step)["params"]["max_tokens"] == 4_096


def test_an_old_name_of_the_token_limit_is_left_for_the_new_one(batch_provider, tmp_path):
    refused = {"message": "Unsupported parameter: 'max_tokens'", "param": "max_tokens",
               "code": "unsupported_parameter"}  # fmt: skip
    batch_provider.item = lambda _prompt: (400, {"error": refused})

    async def step(lane):
        _, _, results = await lane.whole(["x"], max_tokens=9)
        request = LLMRequest(prompt="x", max_tokens=9)
        for _ in range(2):
            with pytest.raises(LLMError, match="sent again"):
                lane.client.taken(request, results["r0"])
        return json.loads(await lane.client.line("r0", request))

    body = with_lane("openai", tmp_path, step)["body"]
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_a_list_has_no_batch_of_a_lost_reply(
    provider, monkeypatch, api, tmp_path, status
):
    monkeypatch.setenv(f"{api.upper()}_BASE_URL", provider.url)
    monkeypatch.setenv(f"{api.upper()}_API_KEY", "sk-test-0123456789abcdef")
    provider.status = status
    intent = BatchIntent(nonce="n", created_at=time.time(), requests=1, first_id="r0")
    assert with_lane(api, tmp_path, lambda lane: lane.client.find(intent, ())) is None


def test_a_model_without_batches_has_no_client(batch_provider):
    assert batches_of(make_llm("fake", settings=load_settings())) is None


@pytest.mark.parametrize("model", ["openai/m", "anthropic/m", "gemini/m"])
def test_the_doctor_says_whether_batches_can_be_made(batch_provider, monkeypatch, provider, model):
    # The mock has no list of models, which servers need not have.
    assert local_model_facts(load_settings(), model).batches == ""
    name = model.partition("/")[0].upper()
    monkeypatch.setenv(f"{name}_BASE_URL", provider.url)
    provider.status, provider.body = 403, {"error": {"message": "missing scope: batches"}}
    facts = local_model_facts(load_settings(), model)
    assert facts.problem is None
    assert "may not use the batch API" in facts.batches
