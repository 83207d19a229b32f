"""The mock provider that bills as OpenAI and Anthropic do."""

import asyncio
import json
from fractions import Fraction

import pytest
from aiohttp import FormData
from aiohttp.test_utils import TestClient, TestServer
from billing.caches import AutomaticCache, MarkedCache
from billing.desk import Options
from billing.ledger import Ledger, Tokens, count_tokens
from billing_provider import application

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


def text(tokens, seed="a"):
    return (seed * 4 * tokens)[: 4 * tokens].encode()


@pytest.mark.parametrize(
    ("model", "tokens", "lane", "usd"),
    [
        ("gpt-5-mini", Tokens(fresh=1_000_000, output=0), "realtime", "0.25"),
        ("gpt-5-mini", Tokens(fresh=0, cached=1_000_000, output=0), "realtime", "0.025"),
        ("gpt-5-mini", Tokens(fresh=0, output=1_000_000), "flex", "1"),
        ("gpt-5-mini", Tokens(fresh=0, cached=1_000_000, output=0), "batch", "0.0125"),
        ("gpt-4o-mini", Tokens(fresh=0, cached=1_000_000, output=0), "batch", "0.075"),
        ("claude-sonnet-4-5", Tokens(fresh=0, written=1_000_000, output=0), "realtime", "3.75"),
        ("claude-sonnet-4-5", Tokens(fresh=0, written_1h=1_000_000, output=0), "realtime", "6"),
        ("claude-sonnet-4-5", Tokens(fresh=0, cached=1_000_000, output=0), "batch", "0.15"),
    ],
)
def test_a_call_is_charged_at_the_published_price(model, tokens, lane, usd):
    ledger = Ledger()
    ledger.charge(model, tokens, lane)
    assert ledger.usd == Fraction(usd)


def test_a_token_is_four_bytes():
    assert [count_tokens(b"x" * size) for size in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_the_automatic_cache_reads_prefixes_in_steps_once_they_were_processed():
    clock = Clock()
    cache = AutomaticCache(clock, lasts_s=300)
    shared = text(1_500)
    assert cache.read(text(1_000), "", 1.0) == 0
    assert cache.read(shared + text(50, "b"), "", 1.0) == 0
    # At the same time: not processed yet.
    assert cache.read(shared + text(50, "c"), "", 1.0) == 0
    clock.now += 2
    assert cache.read(shared + text(50, "d"), "", 1.0) == 1_024 + 3 * 128
    clock.now += 299
    assert cache.read(shared + text(50, "e"), "", 1.0) == 1_024 + 3 * 128
    clock.now += 302
    assert cache.read(shared + text(50, "f"), "", 1.0) == 0


def test_requests_with_another_cache_key_and_many_a_minute_go_to_other_machines():
    clock = Clock()
    cache = AutomaticCache(clock, lasts_s=300)
    shared = text(2_000)
    cache.read(shared, "one", 1.0)
    clock.now += 2
    hits = [bool(cache.read(shared, "one", 1.0)) for _ in range(20)]
    assert hits.count(False) >= 1
    assert all(hits[:14])


def test_the_marked_cache_reads_what_was_marked_before():
    clock = Clock()
    cache = MarkedCache(clock)
    blocks = [text(500), text(1_000, "b"), text(30, "c")]

    def use(blocks, *marks):
        return cache.use(blocks, dict.fromkeys(marks, 300.0), shortest=1_024, after_s=1.0)

    assert use(blocks) == (0, {})
    # Shorter than what is cached.
    assert use(blocks, 0) == (0, {})
    assert use(blocks, 1) == (0, {300.0: 1_500})
    assert use(blocks, 1) == (0, {300.0: 1_500})
    clock.now += 2
    assert use([*blocks[:2], text(40, "d")], 1) == (1_500, {})
    assert use([*blocks[:2], text(40, "e")], 1, 2) == (1_500, {300.0: 40})
    # The same text in other blocks is another prefix.
    assert use([text(500) + text(1_000, "b")], 0) == (0, {300.0: 1_500})
    clock.now += 302
    assert use(blocks, 1) == (0, {300.0: 1_500})


def chat(content, **fields):
    return {
        "model": "gpt-5-mini",
        "messages": [{"role": "user", "content": content}],
        **fields,
    }


def message(content, **fields):
    return {"model": "claude-sonnet-4-5", "max_tokens": 10, **chat(content), **fields} | {
        "model": "claude-sonnet-4-5"
    }


def run(scenario, **options):
    async def whole():
        async with TestClient(TestServer(application(Options(**options)))) as client:
            return await scenario(client)

    return asyncio.run(whole())


async def sent(client, path, body):
    async with client.post(path, json=body) as reply:
        return reply.status, await reply.json()


async def read(client, path):
    async with client.get(path) as reply:
        return await reply.read()


def test_openai_says_what_it_charges_and_flex_costs_half():
    async def scenario(client):
        document = "word " * 2_000
        _, first = await sent(client, CHAT, chat(document))
        _, second = await sent(client, CHAT, chat(document, service_tier="flex"))
        _, wrong = await sent(client, CHAT, chat(document, model="gpt-99"))
        return first, second, wrong, json.loads(await read(client, "/ledger"))

    first, second, wrong, ledger = run(scenario, prefill_s=0.0)
    total, output = first["usage"]["prompt_tokens"], first["usage"]["completion_tokens"]
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert 2_400 < cached <= total
    assert (first["service_tier"], second["service_tier"]) == ("default", "flex")
    assert wrong["error"]["code"] == "model_not_found"
    whole = total * 0.25 + output * 2
    flex = ((total - cached) * 0.25 + cached * 0.025 + output * 2) / 2
    assert ledger["usd"] == pytest.approx((whole + flex) / 1e6)
    assert ledger["calls"] == {"realtime": 1, "flex": 1}


def test_flex_is_refused_where_there_is_no_capacity():
    async def scenario(client):
        return await sent(client, CHAT, chat("hi", service_tier="flex"))

    status, body = run(scenario, busy_rate=1.0)
    assert (status, body["error"]["code"]) == (429, "resource_unavailable")


def test_anthropic_charges_writes_and_reads_of_marked_blocks():
    document = {"type": "text", "text": "word " * 2_000, "cache_control": {"type": "ephemeral"}}

    async def scenario(client):
        replies = []
        for word in ("one", "two"):
            body = message([document, {"type": "text", "text": word}])
            replies.append((await sent(client, MESSAGES, body))[1]["usage"])
        five = await sent(client, MESSAGES, message([document] * 5))
        return replies, five, json.loads(await read(client, "/ledger"))

    (first, second), five, ledger = run(scenario, prefill_s=0.0)
    size = first["cache_creation_input_tokens"]
    assert size > 2_400
    assert (first["cache_read_input_tokens"], second["cache_read_input_tokens"]) == (0, size)
    assert (second["cache_creation_input_tokens"], five[0]) == (0, 400)
    fresh = first["input_tokens"] + second["input_tokens"]
    output = first["output_tokens"] + second["output_tokens"]
    assert ledger["usd"] == pytest.approx(
        (size * 3.75 + size * 0.3 + fresh * 3 + output * 15) / 1e6
    )


async def ended(client, path, is_ended):
    while True:
        batch = json.loads(await read(client, path))
        if is_ended(batch):
            return batch
        await asyncio.sleep(0.01)


def test_batches_of_openai_cost_half():
    lines = [
        {"custom_id": str(n), "method": "POST", "url": CHAT, "body": chat(f"document {n}")}
        for n in range(3)
    ]
    lines.append({**lines[0], "custom_id": "x", "body": chat("y", model="none")})

    async def scenario(client):
        form = FormData({"purpose": "batch"})
        form.add_field("file", "\n".join(map(json.dumps, lines)).encode(), filename="in.jsonl")
        async with client.post("/v1/files", data=form) as reply:
            file = await reply.json()
        window = {"endpoint": CHAT, "completion_window": "24h"}
        _, batch = await sent(client, "/v1/batches", {"input_file_id": file["id"], **window})
        path = f"/v1/batches/{batch['id']}"
        batch = await ended(client, path, lambda batch: batch["status"] == "completed")
        files = [batch["output_file_id"], batch["error_file_id"]]
        texts = [await read(client, f"/v1/files/{one}/content") for one in files]
        listed = json.loads(await read(client, "/v1/batches"))
        return batch, texts, listed, json.loads(await read(client, "/ledger"))

    batch, (good, bad), listed, ledger = run(scenario, batch_s=0.0, prefill_s=0.0)
    assert batch["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    assert [json.loads(line)["custom_id"] for line in good.splitlines()] == ["0", "1", "2"]
    assert [json.loads(line)["custom_id"] for line in bad.splitlines()] == ["x"]
    assert [one["id"] for one in listed["data"]] == [batch["id"]]
    tokens = ledger["tokens"]
    assert ledger["usd"] == pytest.approx((tokens["fresh"] * 0.25 + tokens["output"] * 2) / 2e6)


def test_batches_of_anthropic_cost_half():
    requests = [{"custom_id": str(n), "params": message(f"document {n}")} for n in range(3)]

    async def scenario(client):
        _, batch = await sent(client, f"{MESSAGES}/batches", {"requests": requests})
        path = f"{MESSAGES}/batches/{batch['id']}"
        batch = await ended(client, path, lambda batch: batch["processing_status"] == "ended")
        lines = (await read(client, f"{path}/results")).splitlines()
        return batch, lines, json.loads(await read(client, "/ledger"))

    batch, lines, ledger = run(scenario, batch_s=0.0, prefill_s=0.0)
    assert batch["request_counts"]["succeeded"] == 3
    assert batch["results_url"].endswith("/results")
    assert [json.loads(line)["result"]["type"] for line in lines] == ["succeeded"] * 3
    tokens = ledger["tokens"]
    assert ledger["usd"] == pytest.approx((tokens["fresh"] * 3 + tokens["output"] * 15) / 2e6)


def test_a_reset_empties_the_ledger_and_if_asked_the_caches():
    async def scenario(client):
        cached = []
        for path in ("/reset", "/reset", "/reset?caches=1"):
            _, reply = await sent(client, CHAT, chat("word " * 2_000))
            cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
            await sent(client, path, None)
        _, reply = await sent(client, CHAT, chat("word " * 2_000))
        cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
        return cached, json.loads(await read(client, "/ledger"))

    cached, ledger = run(scenario, prefill_s=0.0)
    assert [count > 0 for count in cached] == [False, True, True, False]
    assert ledger["calls"] == {"realtime": 1}
