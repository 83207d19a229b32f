"""What a worker process keeps of its runs."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fanout.core.errors import SettingsError
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
