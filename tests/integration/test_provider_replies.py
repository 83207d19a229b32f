"""What one reply of a provider does to a run, and what it does not: by way of a real worker."""

from __future__ import annotations

import threading

import pytest

from fanout.core.records import ErrorKind, RunStatus
from fanout.core.spec import make_spec
from tests.fences import bare
from tests.scripted_provider import openai_reply

PAGE = b"<!DOCTYPE html><html><head><title>Attention Required!</title></head></html>"
MANY = 300


@pytest.fixture
def ask(client, provider, start_worker):
    """Run a job on a provider that answers as it is told; the worker is one for all of a test."""
    base = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": "k"}
    start_worker("--concurrency", "8", **base)
    lock = threading.Lock()

    def run(answer, *, model, count=MANY, **fields):
        calls = []

        def respond(_headers, body):
            if body is None:
                return 404, {"detail": "Not Found"}
            with lock:
                calls.append(body)
                number = len(calls)
            return answer(bare(body["messages"][-1]["content"]), number)

        provider.respond = respond
        spec = make_spec(model=f"openai/{model}", prompt="{input}", **fields)
        result_of = client.submit(spec, [f"text {number};" for number in range(count)])
        result_of.wait(120)
        return result_of.result(), calls

    return run


def good(_prompt, _number):
    return 200, openai_reply("yes")


def error(message, **fields):
    return {"error": {"message": message, **fields}}


def test_one_reply_stops_nobody(ask, provider):
    def limited(prompt, number):
        if number == 1:
            return 429, error(
                "Slow down; add credits at /settings/billing", code="rate_limit_exceeded"
            )
        return good(prompt, number)

    provider.headers = {"retry-after": "0.1"}
    result, calls = ask(limited, model="limited", count=20)
    assert (result.status, result.errors, len(calls)) == (RunStatus.SUCCEEDED, [], 21)
    provider.headers = {}

    def walled(prompt, number):
        return (403, PAGE) if "text 7;" in prompt else good(prompt, number)

    result, _ = ask(walled, model="walled", count=20)
    assert result.status is RunStatus.SUCCEEDED
    assert [(each.index, each.kind) for each in result.errors] == [(7, ErrorKind.BAD_REQUEST)]
    assert "a web page, 'Attention Required!'" in result.errors[0].message

    def walled_first(prompt, number):
        return (403, PAGE) if number <= 5 else good(prompt, number)

    result, _ = ask(walled_first, model="walled-first", count=30)
    assert (result.status, len(result.errors)) == (RunStatus.SUCCEEDED, 5)

    def denied(prompt, number):
        return (401, error("no")) if "text 19;" in prompt else good(prompt, number)

    result, _ = ask(denied, model="denied", count=20, max_workers=1)
    assert (result.status, len(result.errors)) == (RunStatus.SUCCEEDED, 1)


NO_MODEL = error("The model `m` does not exist", code="model_not_found")
# What every branch is answered; what is then said of the run.
COMMON = {
    "quota": ((429, error("No quota.", code="insufficient_quota")), "budget: HTTP 429: No quota."),
    "model": ((404, NO_MODEL), "does not exist; check the model's name"),
    "path": ((404, b"404 page not found"), "404 page not found; check the base URL"),
    "key": ((401, error("Unauthorized")), "auth: HTTP 401: Unauthorized"),
    "field": ((400, error("no", code="unsupported_value", param="seed")), "leave out seed"),
    "wall": ((403, PAGE), "it may be from a firewall or a proxy"),
}


def test_what_fails_every_branch_alike_stops_the_run_with_the_provider_s_sentence(ask):
    for name, (reply, words) in COMMON.items():
        result, calls = ask(lambda _prompt, _number, reply=reply: reply, model=name)
        assert result.status is RunStatus.FAILED
        assert words in result.error
        # Those in flight come on top, and those that the worker has begun meanwhile.
        assert len(calls) <= (20 if name == "wall" else 3) + 24
        kinds = {each.kind for each in result.errors}
        assert kinds <= {ErrorKind(result.error.partition(":")[0]), ErrorKind.CANCELLED}


def test_good_answers_in_any_wrapping_are_paid_once(ask):
    wrapped = [
        '{"a": 1}', '<think>{"a": 2}</think>{"a": 1}', 'Sure:\n```json\n{"a": 1}\n```\nDone.',
        'It is {"a": 1}.', [{"type": "text", "text": '{"a": '}, {"type": "text", "text": "1}"}],
    ]  # fmt: skip
    result, calls = ask(
        lambda _prompt, number: (200, openai_reply(wrapped[(number - 1) % len(wrapped)])),
        model="wrapped", count=10, output_format="json",
    )  # fmt: skip
    assert result.outputs == ['{"a": 1}'] * 10
    assert len(calls) == 10


def test_a_server_that_starts_is_waited_for(ask):
    starting = [(200, b"<html>starting</html>"), (200, b'{"id": "1", "cho'), (200, b""),
                (200, error("Loading model")), (200, [error("busy", code=503)])]  # fmt: skip

    def answer(prompt, number):
        return starting[number - 1] if number <= len(starting) else good(prompt, number)

    retries = {"max_attempts": 9, "base_wait_s": 0.05}
    result, calls = ask(answer, model="starting", count=3, retries=retries)
    assert (result.outputs, len(calls)) == (["yes"] * 3, 8)


def test_the_name_of_a_limit_is_learned(ask):
    result, calls = ask(
        lambda prompt, number: (
            (400, error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'",
                        code="unsupported_parameter", param="max_tokens"))
            if number == 1
            else good(prompt, number)
        ),
        model="picky", count=20, max_tokens=9, max_workers=1,
    )  # fmt: skip
    assert (result.status, result.errors) == (RunStatus.SUCCEEDED, [])
    assert ["max_completion_tokens" in body for body in calls] == [False] + [True] * 20


def test_too_long_in_any_words_is_context_length(ask):
    words = [
        "`inputs` must have less than 2048 tokens. Given: 2222",
        "prompt is too long: 208310 tokens > 200000 maximum",
        "The input token count (12) exceeds the maximum number of tokens allowed (10).",
    ]
    result, _ = ask(lambda _prompt, number: (400, error(words[number % 3])), model="short", count=9)
    assert {each.kind for each in result.errors} == {ErrorKind.CONTEXT_LENGTH}
    assert len(result.errors) == 9
