"""What calls cost, failed ones included: the same everywhere, to the cent, as the provider bills it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from fractions import Fraction

import pytest

from fanout.cli.progress import summary
from fanout.core.records import ErrorKind, RunStatus, total_usage
from fanout.core.spec import make_spec
from fanout.core.units import dollars
from fanout.observe.metrics import families
from tests.fences import bare
from tests.scripted_provider import openai_reply

# By model: dollars of a million tokens of the prompt, from the cache, and of the answer.
FIRST, SECOND = "gpt-5-mini", "gpt-4.1-mini"
PRICES = {FIRST: ("0.25", "0.025", "2"), SECOND: ("0.40", "0.10", "1.60")}
# What becomes of the calls for a document, and how many there are.
CALLS = {"plain": 1, "down": 2, "broken": 2, "cut": 2, "wrong": 2, "refused": 2, "hopeless": 2}
TIMES = 4


class Biller:
    """A provider that fails in several ways, and bills what it says that it bills."""

    def __init__(self):
        self.usd = {"branches": Fraction(0), "aggregate": Fraction(0)}
        self.calls = Counter()
        self._rng = random.Random(7)
        self._lock = threading.Lock()

    def respond(self, _headers, body):
        if body is None:
            return 404, {"detail": "Not Found"}
        model = body["model"]
        text = next(bare(one["content"]) for one in body["messages"] if one["role"] == "user")
        with self._lock:
            self.calls[model, text] += 1
            status, reply = self._answer(text.split()[0], model, self.calls[model, text])
            if "usage" in reply:
                reply["usage"] = self._charged(model, text)
        if text.startswith("late") and self.calls[model, text] == 1:
            time.sleep(3)
        return status, reply

    def _answer(self, kind, model, number):
        if kind == "hopeless" or (kind == "refused" and model == FIRST):
            return 200, openai_reply(None, "content_filter", refusal="no")
        if number == 1 and kind == "down":
            return 503, {"error": {"message": "overloaded"}}
        if number == 1 and kind == "broken":
            return 500, {"error": {"message": "broken"}, "usage": {}}
        if number == 1 and kind == "cut":
            return 200, openai_reply("ye", "length")
        return 200, openai_reply("maybe" if number == 1 and kind == "wrong" else "yes")

    def _charged(self, model, text):
        prompt, answer = self._rng.randint(1_000, 90_000), self._rng.randint(1, 5_000)
        cached = self._rng.choice([0, prompt // 2])
        fresh, served, out = map(Fraction, PRICES[model])
        usd = ((prompt - cached) * fresh + cached * served + answer * out) / 1_000_000
        self.usd["aggregate" if text.startswith("Sum") else "branches"] += usd
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


@pytest.fixture
def ask(client, provider, start_worker):
    """Run a job on a provider that bills; the worker is one for all of a test."""
    base = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": "k"}
    start_worker("--concurrency", "8", **base)

    def run(kinds, **fields):
        biller = Biller()
        provider.respond = biller.respond
        spec = make_spec(
            model=f"openai/{FIRST}", fallback=[f"openai/{SECOND}"], choices="yes,no", prompt="{input}",
            aggregate_prompt="Sum {input}", labels="gold", max_tokens=50,
            retries={"base_wait_s": 0.01}, cache=False, **fields,
        )  # fmt: skip
        rows = [
            {"text": f"{kind} {number}", "gold": "yes"} for kind in kinds for number in range(TIMES)
        ]
        before = client.fleet().totals.usage.known("cost_usd")
        run = client.submit(spec, rows)
        status = run.wait(120)
        assert status.status is RunStatus.SUCCEEDED
        return biller, run, status, before

    return run


def counter(fleet, name):
    (found,) = (sample for family in families(fleet) for sample in family.samples
                if sample.name == f"{name}_total")  # fmt: skip
    return found.value


def require_sums(client, biller, run, status, before):
    """Check that each sum of a run is what the provider bills."""
    result = run.result()
    branches, billed = float(biller.usd["branches"]), float(sum(biller.usd.values()))
    # Outcomes, the run, its models, its table, its evaluation.
    of_outcomes = total_usage([one.usage for one in result.branches])
    assert of_outcomes.cost_usd == pytest.approx(branches, abs=1e-9)
    assert result.usage.cost_usd == status.usage.cost_usd == pytest.approx(billed, abs=1e-9)
    assert result.usage.at_least == status.usage.at_least == {}
    by_model = total_usage(list(status.usage_by_model.values()))
    assert by_model.cost_usd == pytest.approx(billed, abs=1e-9)
    assert sum(result.to_arrow()["cost_usd"].to_pylist()) == pytest.approx(branches, abs=1e-9)
    (evaluated,) = result.evaluation.variants
    assert evaluated.cost_usd == pytest.approx(branches, abs=1e-9)
    # The fleet, its metrics, the page, and the line on the terminal.
    fleet = client.fleet()
    assert fleet.totals.usage.cost_usd - before == pytest.approx(billed, abs=1e-9)
    assert counter(fleet, "fanout_cost_usd") - before == pytest.approx(billed, abs=1e-9)
    assert dollars(billed) in run.report()
    assert dollars(billed) in summary(status)


def test_every_sum_of_a_run_is_what_the_provider_bills(ask, client):
    biller, run, status, before = ask(CALLS)
    result = run.result()
    assert [one.kind for one in result.errors] == [ErrorKind.CONTENT_FILTER] * TIMES
    # A pause of the provider may bring some branches to the other model.
    assert biller.calls.total() == status.usage.calls >= TIMES * sum(CALLS.values()) + 1
    require_sums(client, biller, run, status, before)

    # Of a call that timed out nothing is known: the sum is unknown, and the rest is its least.
    biller, run, status, before = ask(["plain", "late"], timeout_s=2)
    result = run.result()
    # The provider goes on, and bills what nobody reads.
    assert status.usage.calls >= 3 * TIMES + 1
    read = [one.usage for one in result.branches]
    known = sum(usage.known("cost_usd") for usage in read)
    assert 0 < known < float(biller.usd["branches"])
    total = known + float(biller.usd["aggregate"])
    for usage in (result.usage, status.usage, total_usage(list(status.usage_by_model.values()))):
        assert usage.cost_usd is None
        least = usage.at_least["cost_usd"]
        assert least == pytest.approx(total, abs=1e-9)
    (evaluated,) = result.evaluation.variants
    assert evaluated.cost_usd is None
    assert evaluated.cost_at_least_usd == pytest.approx(known, abs=1e-9)
    shown = f"at least {dollars(least)}"
    assert shown in run.report()
    assert summary(status).endswith(shown)
    fleet = client.fleet()
    assert counter(fleet, "fanout_cost_usd") - before == pytest.approx(least, abs=1e-9)


FACTS = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
STEPS = [
    {"name": "facts", "prompt": "FACTS {input}", "schema": FACTS, "model": f"openai/{SECOND}"},
    {"name": "due", "function": "functions_under_test:due"},
    {"name": "note", "prompt": "NOTE {input} {due}"},
    {"name": "check", "judge": "note", "criteria": "It is kind."},
    {"name": "label", "prompt": "LABEL {input} {note}", "choices": "yes,no"},
]
DUE = """
def due(branch):
    return branch["facts"]["days"] + 1
"""
# The calls of a document: its facts, two notes with their judge, a label.
OF_STEPS = ["facts", "note", "check", "note", "check", "label"]


class StepBiller(Biller):
    """Bills steps; what becomes of a note goes by the document."""

    def __init__(self):
        super().__init__()
        self.steps = Counter()

    def _answer(self, _head, model, number):
        raise NotImplementedError

    def respond(self, _headers, body):
        if body is None:
            return 404, {"detail": "Not Found"}
        model, messages = body["model"], body["messages"]
        said = [one["content"] for one in messages if one["role"] != "system"]
        step = {"You": "check", "Sum": "sum"}.get(said[0].split()[0], said[0].split()[0].lower())
        with self._lock:
            self.steps[step] += 1
            self.calls[model, str(said)] += 1
            number = self.calls[model, str(said)]
            status, reply = self._of_step(step, model, said, number)
            if "usage" in reply:
                reply["usage"] = self._charged(model, said[0])
        return status, reply

    def _of_step(self, step, model, said, number):
        if step == "facts":
            return 200, openai_reply('{"days": 3}')
        if step == "check":
            verdict = (
                f'"pass": {str("kindly" in said[0]).lower()}, "score": 5, "feedback": "be kind"'
            )
            return 200, openai_reply(f'{{"reasons": "r", {verdict}}}')
        if step in ("label", "sum"):
            return 200, openai_reply("maybe" if len(said) == 1 and "wrong" in said[0] else "yes")
        word = next((one for one in CALLS if one in said[0]), "plain")
        if word == "wrong":
            word = "plain"
        status, reply = super()._answer(word, model, number)
        if status == 200 and reply["choices"][0]["finish_reason"] == "stop":
            reply = openai_reply("kindly" if len(said) > 1 else "rude")
        return status, reply


def test_every_sum_of_a_run_with_steps_is_what_the_provider_bills(
    client, provider, start_worker, functions
):
    base = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": "k"}
    start_worker("--concurrency", "8", **base, PYTHONPATH=functions(DUE))
    job = {
        "model": f"openai/{FIRST}", "fallback": [f"openai/{SECOND}"], "steps": STEPS,
        "max_tokens": 50, "labels": "gold", "retries": {"base_wait_s": 0.01}, "cache": False,
    }  # fmt: skip

    def submitted(kinds, **fields):
        biller = StepBiller()
        provider.respond = biller.respond
        rows = [
            {"text": f"{kind} {number}", "gold": "yes"} for kind in kinds for number in range(TIMES)
        ]
        before = client.fleet().totals.usage.known("cost_usd")
        return biller, client.submit(make_spec(**{**job, **fields}), rows), before

    biller, run, before = submitted(CALLS, aggregate_prompt="Sum {input}")
    status = run.wait(120)
    assert status.status is RunStatus.SUCCEEDED
    errors = [one for one in run.result().branches if one.kind is not None]
    assert [one.kind for one in errors] == [ErrorKind.CONTENT_FILTER] * TIMES
    # What they have paid for is in their outcomes.
    assert all(one.steps == {"facts": {"days": 3}, "due": 4} for one in errors)
    assert all(set(one.usage_of) == {f"openai/{FIRST}", f"openai/{SECOND}"} for one in errors)
    assert biller.steps.total() == status.usage.calls
    require_sums(client, biller, run, status, before)
    for branch in run.result().branches:
        of_steps = total_usage([one.usage for one in branch.step_records])
        assert of_steps.cost_usd == pytest.approx(branch.usage.cost_usd, abs=1e-9)

    # Branches that ended between steps for want of money go on there.
    biller, run, before = submitted(["plain"], budget={"calls": 13}, max_workers=3)
    status = run.wait(120)
    assert set(status.errors) == {ErrorKind.BUDGET}
    assert biller.steps.total() == status.usage.calls == 13
    ended = [one for one in run.result().branches if one.kind is not None]
    assert any(one.steps for one in ended)
    assert {one.message.partition(":")[0] for one in ended if one.steps} <= {
        f"step {name}" for name in OF_STEPS
    }
    assert run.retry_failed(budget={"calls": 60}) == len(ended)
    status = run.wait(120)
    assert (status.status, status.succeeded) == (RunStatus.SUCCEEDED, TIMES)
    assert biller.steps == Counter(OF_STEPS * TIMES)
    assert status.usage.calls == status.budget.spent.calls == len(OF_STEPS) * TIMES
    billed = float(sum(biller.usd.values()))
    assert status.usage.cost_usd == pytest.approx(billed, abs=1e-9)
    assert client.fleet().totals.usage.cost_usd - before == pytest.approx(billed, abs=1e-9)
