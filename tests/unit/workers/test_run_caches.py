"""What a worker process keeps of its runs."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from fanout.core.errors import SettingsError
from fanout.core.records import Chunk, Shard
from fanout.core.spec import make_spec
from tests.fakes import RUN
from workers.context import run_caches
from workers.context.run_caches import RunCaches


@pytest.mark.parametrize("problem", [None, SettingsError("no such file")])
def test_prices_are_loaded_in_a_thread_with_the_job(store, monkeypatch, problem):
    models = ("openai/gpt-5-mini", "gemini/gemini-2.5-pro")
    spec = make_spec(models=models, prompt="{input}")
    store.create_run(RUN, spec=spec.model_dump_json(), created_at=1.0)
    loaded = []

    def price_of(model, _given):
        loaded.append((model, threading.current_thread() is threading.main_thread()))
        if problem is not None:
            raise problem

    monkeypatch.setattr(run_caches, "price_of", price_of)
    caches = RunCaches(store, ThreadPoolExecutor(1))

    async def get():
        return await caches.specs(RUN)

    assert asyncio.run(get()) == spec
    caches.close()
    expected = [(model, False) for model in models]
    assert loaded == (expected if problem is None else expected[:1])


def test_fewer_shards_are_kept_if_their_inputs_are_long():
    inputs = {"short": "text", "long": "text " * 200_000}

    def shard(key):
        chunk = Chunk(text=inputs[key[0]] + str(key), document="d", document_index=0)
        return Shard(first=key[1], count=1, first_chunk=key[1], chunks=[chunk])

    caches = RunCaches(SimpleNamespace(indices=None, shard=shard), ThreadPoolExecutor(1))
    kept = []
    for name in inputs:
        keys = [(name, number) for number in range(40)]
        for key in keys:
            caches.shards.get(key)
        kept.append(sum(caches.shards.known(key) is not None for key in keys))
    caches.close()
    assert kept == [32, 15], "the inputs take 16 MB at most"
