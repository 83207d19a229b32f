"""What may be imported, and how large things may become."""

from __future__ import annotations

import asyncio
import sys
import zlib

import msgspec
import pytest
import redis

from fanout.broker.result_backend import TaskFault
from fanout.core.errors import (
    BrokerError,
    LLMError,
    ModelError,
    SettingsError,
    SpecError,
    StoredDataError,
)
from fanout.core.records import Chunk, ErrorKind, Outcome, Shard
from fanout.core.settings import load_settings
from fanout.core.spec import RunSpec, make_spec
from fanout.core.spec_fields import RetrySpec
from fanout.llm import FakeLLM, LLMRequest, make_llm
from fanout.llm.allowlist import is_allowed
from fanout.llm.calls import complete_with_retries
from fanout.stores import codec
from fanout.stores.redis.base import RedisBase, translated
from fanout.system.resources import memory_limit_bytes
from workers.tasks import _not_done

CANARY = "CANARY-VALUE"


@pytest.mark.parametrize(
    ("allowed", "path", "is_so"),
    [
        ("", "acme.tools:model", False),
        ("*", "acme.tools:model", True),
        ("acme", "acme.tools:model", True),
        ("acme", "acme:model", True),
        ("acme", "acme_evil:model", False),
        ("acme", "acmeevil.tools:model", False),
        ("acme.tools", "acme.tools:model", True),
        ("acme.tools", "acme.tools.deep:model", True),
        ("acme.tools", "acme.tools:getoutput.__call__", False),
        ("acme.tools", "acme.tools:Class.method", False),
        ("acme.tools", "acme.tools:_private", False),
        ("acme.tools", "acme.tools:__dict__", False),
        ("acme.tools", "acme.tools:", False),
        ("acme.tools", "acme.tools", False),
        ("acme.tools", "acme.tools:a:b", False),
        ("acme.tools", "acme.tools:model\n", False),
        ("acme.tools", "acme.tools.:model", False),
        ("acme.tools", "acme.tools..deep:model", False),
        ("acme", ".acme:model", False),
        ("acme", "acme.__main__:model", False),
        ("acme", "acme._inner.deep:model", False),
        ("acme._inner", "acme._inner:model", True),
        ("acme._inner", "acme._inner.deep:model", True),
        ("acme:model", "acme.model:model", False),
        ("*", "acme.tools:getoutput.__call__", False),
        ("*", "acme.tools:_private", False),
        ("*", "acme._inner:model", True),
        ("acme.tools", "acme.toolsmith:model", False),
        ("acme.tools", "acme:tools", False),
        ("acme.tools:model", "acme.tools:model", True),
        ("acme.tools:model", "acme.tools:model2", False),
        ("acme.tools:model", "acme.tools:model.sub", False),
        ("other, acme.tools ,", "acme.tools:model", True),
    ],
)
def test_a_list_allows_what_is_below_its_entries(allowed, path, is_so):
    assert is_allowed(path, load_settings(allowed_callables=allowed).allowed_callables) is is_so


def test_the_list_comes_from_the_environment(monkeypatch):
    assert load_settings().allowed_callables == ()
    monkeypatch.setenv("FANOUT_ALLOWED_CALLABLES", "acme, acme.tools:model")
    assert load_settings().allowed_callables == ("acme", "acme.tools:model")


@pytest.mark.parametrize(
    "entry",
    ["acme.", ".acme", "acme:", "a b", "acme.*", "**", "acme/x", "a:b.c", "a:_b", "a:b:c", "a:*"],
)
def test_an_entry_that_would_allow_nothing_is_reported(entry):
    with pytest.raises(SettingsError, match=r"(?i)\ballowed_callables: ") as caught:
        load_settings(allowed_callables=f"fine,{entry}")
    assert repr(entry) in str(caught.value)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that is noticed when it is imported."""
    (tmp_path / "module_of_test.py").write_text(
        """
import os, functools, subprocess
from os import system
from subprocess import getoutput, Popen
from functools import partial
def model(prompt): return prompt
async def slow(prompt): return prompt
class Model:
    def __new__(cls, prompt): return prompt
    def run(self, prompt): return prompt
    def __call__(self, prompt): return prompt
def kept(function):
    @functools.wraps(function)
    def call(prompt): return function(prompt)
    return call
decorated = kept(model)
short = lambda prompt: prompt
bound = partial(model)
foreign = partial(getoutput)
wrapped = kept(getoutput)
method = object.__new__(Model).run
instance = object.__new__(Model)
bytes_of = bytes
number = 3
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "module_of_test"
    sys.modules.pop("module_of_test", None)


def use(path, allowed):
    return make_llm(path, settings=load_settings(allowed_callables=allowed))


@pytest.mark.parametrize("name", ["model", "slow", "Model", "decorated", "short"])
def test_a_function_is_used_where_it_is_allowed(module, name):
    for allowed in (module, f"{module}:{name}", "*"):
        assert use(f"{module}:{name}", allowed)


def test_what_is_not_allowed_is_not_even_imported(module):
    with pytest.raises(
        ModelError, match=r"may not be used on the workers: it allows acme;"
    ) as fault:
        use(f"{module}:model", "acme")
    assert fault.value.kind is None
    assert module not in sys.modules


@pytest.mark.parametrize(
    "name",
    ["system", "getoutput", "Popen", "partial", "bound", "foreign", "wrapped", "method", "instance",
     "bytes_of"],
)  # fmt: skip
def test_what_is_not_a_modules_own_must_be_listed_itself(module, name):
    with pytest.raises(ModelError, match=r"list the function itself"):
        use(f"{module}:{name}", module)
    assert use(f"{module}:{name}", f"{module}:{name}")


@pytest.mark.parametrize(
    "name",
    ["os.system", "os.path.os.system", "getoutput.__call__", "model.__globals__", "Model.run",
     "Model.__init__", "instance.run", "_hidden", "__builtins__", "__loader__.load_module",
     "model.", "", "model:x", "model x", "model()"],
)  # fmt: skip
@pytest.mark.parametrize("allowed", ["module_of_test", "module_of_test:model", "*"])
def test_a_path_holds_one_public_name_or_nothing_is_imported(module, name, allowed):
    with pytest.raises(ModelError, match="one public name"):
        use(f"{module}:{name}", allowed)
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("name", "words"),
    [("os", "has no os"), ("absent", "has no absent"), ("number", "of type int")],
)
def test_what_cannot_be_called_is_reported(module, name, words):
    with pytest.raises(ModelError, match=words):
        use(f"{module}:{name}", "*")


def test_a_model_does_not_say_where_its_key_is_sent():
    with pytest.raises(ModelError, match="holds no address"):
        use("litellm/huggingface/https://example.org", "")
    with pytest.raises(SpecError, match="at most 512 characters"):
        make_spec(model="m" * 513, prompt="{input}")


@pytest.mark.parametrize(("length", "kind"), [(1_000, None), (1_001, "invalid_output")])
def test_an_answer_that_is_too_large_is_an_invalid_output(length, kind):
    result = asyncio.run(
        complete_with_retries(
            FakeLLM(script=lambda _request: "é" * (length // 2) + "x" * (length % 2)),
            LLMRequest(prompt="p"),
            policy=RetrySpec(max_attempts=1),
            timeout_s=5,
            max_output_kb=1,
        )
    )
    assert result.kind == kind
    assert kind is None or "FANOUT_MAX_OUTPUT_KB allows (1)" in result.message


def test_a_message_is_redacted_before_it_is_cut():
    """Half of a key would not be recognised."""

    def fail(_request):
        raise ValueError("x" * 268 + " sk-0123456789-0123456789")

    result = asyncio.run(
        complete_with_retries(
            FakeLLM(script=fail), LLMRequest(prompt="p"), policy=RetrySpec(), timeout_s=5
        )
    )
    assert result.kind is ErrorKind.INTERNAL
    assert "sk-" not in result.message


def shard(text="text"):
    chunk = Chunk(text=text, document="a.txt", document_index=0, position=0)
    return Shard(first=0, count=1, first_chunk=0, chunks=[chunk])


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"nonsense", "damaged"),
        (zlib.compress(b"[]"), "damaged"),
        (zlib.compress(b"[" * 10_000), "damaged"),
        (codec.encode_shard(shard())[:-5], "cut off"),
    ],
)
def test_a_blob_that_is_not_ours_is_reported(blob, words):
    with pytest.raises(StoredDataError, match=words):
        codec.decode_shard(blob)


def test_a_blob_does_not_fill_the_memory(monkeypatch):
    """A thousand times its size is what a blob can become."""
    monkeypatch.setattr(codec, "MAX_SHARD_BYTES", 100_000)
    bomb = zlib.compress(b'"' + b"x" * 10_000_000)
    assert len(bomb) < 100_000
    with pytest.raises(StoredDataError, match="larger than 0 MB"):
        codec.decode_shard(bomb)
    with pytest.raises(StoredDataError, match=r"a chunk of a\.txt makes a shard of 0 MB"):
        codec.encode_shard(shard("x" * 100_000))
    assert codec.decode_shard(codec.encode_shard(shard("x" * 99_000))) == shard("x" * 99_000)


def test_a_blob_does_not_become_more_than_its_process_may_hold(monkeypatch):
    monkeypatch.setattr(codec, "memory_limit_bytes", lambda: 3_000_000)
    large = {0: Outcome(index=0, output="x" * 999_000)}
    assert codec.decode_outcomes(codec.encode_outcomes(large)) == large
    for decode in (codec.decode_outcomes, codec.decode_shard):
        with pytest.raises(StoredDataError, match="larger than 1 MB"):
            decode(zlib.compress(b'"' + b"x" * 10_000_000))


def test_what_a_process_may_hold_is_known():
    assert 2**24 < memory_limit_bytes() < 2**50


def test_the_largest_answers_fit_the_outcomes_of_a_shard():
    most = load_settings(max_output_kb=4_096).max_output_kb
    assert 500 * (1_000 * most - 120_000) < codec._MAX_OUTCOMES_BYTES
    outcomes = {0: Outcome(index=0, output="x")}
    assert codec.decode_outcomes(codec.encode_outcomes(outcomes)) == outcomes


def test_an_error_of_a_pipeline_does_not_quote_its_command():
    """It would go into logs, and onto monitoring pages, with the beginning of a prompt."""

    class Store(RedisBase):
        @translated
        def fail(self):
            message = "Command # 1 (HSET run spec {CANARY) of pipeline caused error: OOM no room"
            raise redis.ResponseError(message)

    with pytest.raises(BrokerError) as caught:
        Store(redis.Redis()).fail()
    assert "CANARY" not in str(caught.value) + str(caught.value.__cause__)


def test_what_a_spec_says_is_not_in_the_error_that_it_is_wrong():
    with pytest.raises(ValueError, match="extra") as caught:
        RunSpec.model_validate_json('{"model": "fake", "prompt": "{input}", "new": "CANARY"}')
    assert "CANARY" not in str(caught.value)


def test_an_unexpected_error_of_a_task_is_known_by_its_type_and_place_only(caplog):
    with pytest.raises(TaskFault) as caught, _not_done():
        msgspec.convert({CANARY: 1}, int)
    with pytest.raises(TaskFault), _not_done():
        # Providers quote prompts.
        raise LLMError(ErrorKind.BAD_REQUEST, CANARY)
    with pytest.raises(TaskFault, match=r"KeyError at test_bounds\.py:") as caught, _not_done():
        dict[str, str]()[CANARY]
    assert "CANARY-VALUE" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "CANARY-VALUE" not in caplog.text
    assert "test_bounds.py" in caplog.text
