"""Two real workers and a provider that bills prompt caches: what several prompts share is paid once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from billing_provider import BillingProvider
from cost import ASPECTS, MODELS, texts

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

DOCUMENTS = 12
CALLS = DOCUMENTS * len(ASPECTS)


@pytest.fixture(scope="module")
def billing() -> Iterator[BillingProvider]:
    with BillingProvider(latency="lognormal:0.05:0.5") as provider:
        yield provider


def charged(client, billing, **fields):
    """Run a job; return the dollars that the provider charges, and what fanout counts."""
    billing.reset()
    job = {"aspects": ASPECTS, **fields}
    status = client.submit(job, texts(DOCUMENTS, 4_000)).wait(120)
    assert status.succeeded == CALLS * fields.get("samples", 1)
    return billing.ledger()["usd"], status.usage


def test_three_aspects_over_long_documents_cost_about_half(client, start_worker, billing):
    for _ in range(2):
        start_worker("--concurrency", "16", **billing.environment)
    for provider, model in MODELS.items():
        name = f"{provider}/{model}"
        plain_usd, plain = charged(client, billing, model=name, prompt_order="as_written")
        usd, usage = charged(client, billing, model=name)
        assert usd <= 0.55 * plain_usd
        # One call of each document pays in full, on whichever worker.
        sent = billing.sent()
        assert sum(call["cached"] == 0 for call in sent) == DOCUMENTS
        assert usage.cached_input_tokens == sum(call["cached"] for call in sent)
        # What fanout counts is what is charged.
        assert plain.cost_usd == pytest.approx(plain_usd, abs=1e-9)
        assert usage.cost_usd == pytest.approx(usd, abs=1e-9)


def test_samples_and_instructions_are_paid_once_as_well(client, start_worker, billing):
    start_worker("--concurrency", "16", **billing.environment)
    model = f"anthropic/{MODELS['anthropic']}"
    billing.reset()
    system = "You weigh each word. " * 300
    job = {"model": model, "prompt": "Rate: {input}", "system": system, "samples": 2}
    status = client.submit(job, texts(4, 2_000)).wait(120)
    assert status.succeeded == 8
    sent = sorted(call["cached"] for call in billing.sent())
    # The first call writes all, other documents read the system prompt, second samples read both.
    assert sent[0] == 0
    assert 1_500 < sent[1] == sent[3] < 1_700
    assert 3_500 < sent[4] == sent[7]


STEPS = [
    {"name": "facts", "prompt": "List what is said of water in:\n\n{input}"},
    {"name": "mood", "prompt": "You know this: {facts}. Say in what mood this is:\n\n{input}"},
    {"name": "title", "prompt": "Given {mood}, find a title for:\n\n{input}"},
]


def test_a_chain_over_a_long_document_pays_for_it_once(client, start_worker, billing):
    start_worker("--concurrency", "16", **billing.environment)
    for provider, model in MODELS.items():
        billing.reset()
        job = {"model": f"{provider}/{model}", "steps": STEPS}
        status = client.submit(job, texts(4, 4_000)).wait(120)
        assert status.succeeded == 4
        sent = billing.sent()
        assert len(sent) == status.usage.calls == 12
        # The first step of each document writes it, the others read it.
        assert sum(call["cached"] == 0 for call in sent) == 4
        assert sum(call["cached"] > 3_500 for call in sent) == 8
        assert status.usage.cached_input_tokens == sum(call["cached"] for call in sent)
        assert status.usage.cost_usd == pytest.approx(billing.ledger()["usd"], abs=1e-9)
