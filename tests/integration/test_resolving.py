"""The reduce resolve with real workers: a killed worker loses no verdict; a retry asks what is open."""

from __future__ import annotations

import json
import random
import re
from string import ascii_lowercase

import pytest

from fanout import RunStatus
from fanout.core.spec import make_spec
from tests.integration.conftest import QUICK
from tests.integration.test_frontier import IN_FLIGHT, Summing
from tests.scripted_provider import openai_reply

FIRMS = 120
FORMS = 3
LETTERS = random.Random(3)
NAMES = ["".join(LETTERS.choices(ascii_lowercase, k=9)) for _ in range(FIRMS)]
VALUES = re.compile(r"<value_A>\n(.*?)\n</value_A>.*<value_B>\n(.*?)\n</value_B>", re.DOTALL)


class Naming(Summing):
    """Answers a branch with its text, and a pair with whether both have the same number."""

    free = 40
    refuses = False

    def _answer(self, _headers, request):
        if request is None:
            return 200, {"data": []}
        prompt = request["messages"][-1]["content"]
        found = VALUES.search(prompt)
        with self.lock:
            self.calls.append(prompt)
            pairs = len(self.pairs)
        if found is None:
            return 200, openai_reply(prompt)
        if pairs > self.free:
            self.is_held.set()
            self.goes_on.wait(120)
        if self.refuses and pairs % 5 == 0:
            return 400, {"error": {"message": "no"}}
        one, other = (value.split()[0] for value in found.groups())
        return 200, openai_reply(json.dumps({"reasons": "r", "same": one == other}))

    @property
    def pairs(self):
        return [prompt for prompt in self.calls if VALUES.search(prompt)]


@pytest.fixture
def provider():
    made = Naming()
    yield made
    made.goes_on.set()
    made.close()


def submit(client, **fields):
    spec = make_spec(
        model="openai/m", prompt="{input}", reduce="resolve", by="firm", output_format="json",
        fence=False, max_pairs=600, **fields,
    )  # fmt: skip
    kinds = ("Corp", "Corporation", "Corp Ltd")
    texts = [json.dumps({"firm": f"{name} {kind}"}) for kind in kinds for name in NAMES]
    return client.submit(spec, texts)


def assert_resolved(result):
    assert len(result.aggregated) == FIRMS
    for row in result.aggregated:
        assert row["count"] == FORMS
        assert len({form.split()[0] for form in row["members"]}) == 1


def test_a_killed_worker_loses_no_verdict(client, start_worker, provider):
    environment = {**QUICK, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}
    worker = start_worker(**environment)
    run = submit(client, cache=False)
    assert provider.is_held.wait(120)
    assert run.status().status is RunStatus.REDUCING
    worker.kill()
    start_worker(**environment)
    provider.goes_on.set()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert_resolved(run.result())
    twice = len(provider.calls) - len({*provider.calls})
    assert twice <= IN_FLIGHT, "only the calls that were in flight are made again"


def test_a_retry_asks_about_those_pairs_whose_calls_failed(client, start_worker, provider):
    provider.goes_on.set()
    provider.refuses = True
    start_worker(**QUICK, OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="none")
    run = submit(client, cache=True)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().reduce_errors
    asked = len(provider.pairs)
    provider.refuses = False
    provider.calls.clear()
    run.retry_failed()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert_resolved(run.result())
    assert run.result().reduce_errors == []
    assert 0 < len(provider.pairs) < asked
    assert len(provider.calls) == len(provider.pairs), "the answers of the map are kept"
