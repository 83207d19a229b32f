from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import subprocess
import sys

import pytest

from fanout.core.answer_shape import shape_of
from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind, Usage
from fanout.core.settings import load_settings
from fanout.llm import FakeLLM, LLMRequest, context_tokens, make_llm
from fanout.llm.callables import (
    CallableLLM,
    import_path,
    register_callable,
    unregister_callable,
)
from fanout.llm.calls import _call
from fanout.llm.registry import require_model


def make(model, allowed="json,nowhere,tests"):
    return make_llm(model, settings=load_settings(allowed_callables=allowed))


def ask(llm, prompt="hello", **options):
    return asyncio.run(llm.complete(LLMRequest(prompt=prompt, **options)))


def shout(prompt):
    return prompt.upper()


async def whisper(prompt):
    return prompt.lower()


class Holder:
    model = FakeLLM(answer="held")

    @staticmethod
    def method(prompt):
        return "static"


NOT_CALLABLE = 3


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gpt-5-mini", "did you mean openai/gpt-5-mini?"),
        ("claude-x", "did you mean anthropic/claude-x?"),
        ("oepnai/gpt-5", "did you mean openai/gpt-5?"),
        ("mistral/x", "a model is one of: openai/NAME, anthropic/NAME"),
        ("openai/", "unknown model 'openai/'"),
        ("", "unknown model ''"),
        ("litellm/openai/http://127.0.0.1:9/v1", "a model's name holds no address"),
        ("nowhere:f", "importing nowhere failed with ModuleNotFoundError"),
        ("json:nope", "json has no nope"),
        ("json:decoder", "json has no decoder"),
        ("callable:999", "a function of another process"),
        ("fake?latency_s=soon", "latency_s must be a number (got 'soon')"),
        ("fake?seed=1.5", "seed must be a whole number (got '1.5')"),
        ("fake?fail_rate=2", "fail_rate must be from 0 to 1 (got 2.0)"),
        ("fake?fail_kind=bad", "fail_kind 'bad' is none of rate_limited, timeout"),
        ("fake?speed=1", "no option 'speed' (known: answer, cache, context_tokens"),
    ],
)
def test_a_model_that_there_is_not_says_what_there_is(model, words):
    with pytest.raises(ModelError) as caught:
        make(model)
    assert words in str(caught.value)
    # What a worker's process has is no part of a name.
    if ":" in model and "fake" not in model and "/" not in model:
        require_model(model)
        return
    with pytest.raises(ModelError) as caught:
        require_model(model)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "model",
    ["openai/a/b", "litellm/mistral/x", "local", "fake", "fake?seed=2", "a.b:f", "callable:f"],
)
def test_a_name_that_may_be_one_of_a_model_needs_neither_its_package_nor_its_key(model):
    assert require_model(model) is None


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("local", 2048),
        ("fake", 8192),
        ("fake?context_tokens=300", 300),
        ("openai/gpt-4o-mini", 128_000),
        ("litellm/openai/gpt-4o", 128_000),
        ("anthropic/claude-x", 200_000),
        ("openai/meta/llama", 8192),
        ("package.module:f", 8192),
    ],
)
def test_how_much_a_model_can_read(model, tokens):
    assert context_tokens(model) == tokens


def test_a_fake_is_the_same_from_its_model_string():
    fake = FakeLLM(latency_s=0.01, fail_rate=0.5, fail_kind="timeout,auth", seed=3)
    again = make(fake.to_model())
    assert (
        again.to_model()
        == fake.to_model()
        == ("fake?latency_s=0.01&fail_rate=0.5&fail_kind=timeout%2Cauth&seed=3")
    )
    assert FakeLLM().to_model() == "fake"


def test_a_fake_with_a_script_has_no_model_string():
    with pytest.raises(ModelError, match="pass it as it is"):
        FakeLLM(script=lambda request: "x").to_model()


def fates(llm, count=400):
    out = []
    for i in range(count):
        try:
            out.append(ask(llm, f"prompt {i}").text)
        except LLMError as error:
            out.append(error.kind)
    return out


def test_a_fake_fails_a_share_of_prompts_and_always_the_same():
    first = fates(FakeLLM(fail_rate=0.2, fail_kind="timeout,auth"))
    failed = [fate for fate in first if isinstance(fate, ErrorKind)]
    assert 50 < len(failed) < 110
    assert set(failed) == {ErrorKind.TIMEOUT, ErrorKind.AUTH}
    assert fates(FakeLLM(fail_rate=0.2, fail_kind="timeout,auth")) == first
    assert fates(FakeLLM(fail_rate=0.2, fail_kind="timeout,auth", seed=1)) != first


@pytest.mark.parametrize(
    ("options", "schema"),
    [
        ({}, None),
        ({"answer": "a" * 99}, None),
        ({"malformed_rate": 1.0}, None),
        ({}, {"type": "array"}),
    ],
)
def test_a_fake_answers_within_the_length_that_budgets_reserve(options, schema):
    llm = FakeLLM(**options)
    for prompt in ("a", "a b", "word " * 12_345):
        request = LLMRequest(prompt=prompt, shape=shape_of(schema))
        usage = asyncio.run(llm.complete(request)).usage
        assert usage.output_tokens <= llm.longest_answer_tokens(request)


def test_a_flaky_prompt_fails_once():
    llm = FakeLLM(flaky_rate=1.0, fail_kind="rate_limited", retry_after_s=2)
    with pytest.raises(LLMError) as caught:
        ask(llm)
    assert caught.value.retry_after_s == 2
    assert ask(llm).text.startswith("fake answer")
    assert llm.calls == 2


def test_a_fake_can_answer_with_broken_json():
    assert "not json" in ask(FakeLLM(malformed_rate=1.0)).text


def test_a_fake_counts_tokens_and_costs_nothing():
    reply = ask(FakeLLM(answer="12345678"), "abcd", system="efgh")
    parts = {"cached_input_tokens": 0, "cache_write_tokens": 0, "reasoning_tokens": 0}
    assert reply.usage == Usage(calls=1, input_tokens=2, output_tokens=2, cost_usd=0.0, **parts)


def test_samples_differ_by_their_seed():
    assert ask(FakeLLM(), seed=1).text != ask(FakeLLM(), seed=2).text


@pytest.mark.parametrize(
    ("function", "answer"),
    [(shout, "HELLO"), (whisper, "hello"), (functools.partial(shout), "HELLO")],
)
def test_a_function_sync_or_async_is_a_model(function, answer):
    model = register_callable(function)
    llm = make(model)
    assert ask(llm).text == answer
    asyncio.run(llm.aclose())
    unregister_callable(model)
    with pytest.raises(ModelError):
        make(model)


def test_an_object_that_is_a_model_is_used_as_it_is():
    model = register_callable(Holder.model)
    assert make(model) is Holder.model
    unregister_callable(model)


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("no"),
        SystemExit(2),
        StopIteration(),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        concurrent.futures.CancelledError(),
        BaseException("no"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_async", [False, True])
def test_any_exception_of_a_function_is_one_failed_call(fault, is_async):
    def function(prompt):
        raise fault

    async def asynchronous(prompt):
        raise fault

    llm = CallableLLM(asynchronous if is_async else function)
    with pytest.raises(LLMError, match=type(fault).__name__) as caught:
        asyncio.run(_call(llm, LLMRequest(prompt="p"), 5.0))
    assert caught.value.kind is ErrorKind.INTERNAL


def test_a_call_that_is_cancelled_is_no_failed_call():
    async def cancelled(function):
        task = asyncio.ensure_future(_call(CallableLLM(function), LLMRequest(prompt="p"), 5.0))
        await asyncio.sleep(0)
        task.cancel()
        await task

    async def slow(prompt):
        await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled(slow))


def test_a_function_may_choose_its_kind_of_error():
    def function(prompt):
        raise LLMError(ErrorKind.RATE_LIMITED, "later", retry_after_s=1)

    with pytest.raises(LLMError, match="later") as caught:
        ask(CallableLLM(function))
    assert caught.value.kind is ErrorKind.RATE_LIMITED


def test_what_is_no_string_is_invalid_output():
    with pytest.raises(LLMError, match="returned int, not str") as caught:
        ask(CallableLLM(lambda prompt: 3))
    assert caught.value.kind is ErrorKind.INVALID_OUTPUT


def test_sync_functions_run_side_by_side():
    import threading

    together = threading.Barrier(4, timeout=60)

    def function(prompt):
        together.wait()
        return "met"

    async def main():
        llm = CallableLLM(function, concurrency=4)
        request = LLMRequest(prompt="p")
        return await asyncio.gather(*(llm.complete(request) for _ in range(4)))

    assert [reply.text for reply in asyncio.run(main())] == ["met"] * 4


def test_only_what_another_process_could_import_has_a_path():
    assert import_path(subprocess.run) == "subprocess:run"
    assert import_path(lambda prompt: prompt) is None
    assert import_path(functools.partial(shout)) is None

    def local(prompt):
        return prompt

    assert import_path(local) is None


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("fanout, fanout.llm, workers.app", ("aiohttp", "anthropic", "httpx2", "openai")),
        ("fanout.llm.openai", ("anthropic", "httpx2", "openai")),
        ("fanout.llm.registry", ("litellm", "xllamacpp")),
    ],
)
def test_what_calls_need_is_not_imported_before_it_is_used(modules, unwanted):
    code = f"import sys, {modules}; sys.exit(', '.join({set(unwanted)} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
