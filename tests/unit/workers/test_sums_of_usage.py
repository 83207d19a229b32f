"""The sums of a run agree, however its calls end: outcomes, stage, models and fleet."""

from __future__ import annotations

import random

import pytest

from fanout.core.errors import LLMError
from fanout.core.ids import StageId
from fanout.core.records import QUANTITIES, ErrorKind, Usage, total_usage
from fanout.llm import FakeLLM, LLMReply
from fanout.stores import RedisStore
from tests.fakes import RUN, FakeContext, fake_redis

OTHER = "fake?seed=1"
KINDS = (
    *(ErrorKind.CONTENT_FILTER, ErrorKind.TRUNCATED, ErrorKind.BAD_REQUEST, ErrorKind.TIMEOUT),
    *(ErrorKind.SERVER_ERROR, ErrorKind.CONTEXT_LENGTH),
)
JOBS = {
    "plain": {},
    "samples": {"samples": 2, "max_reasks": 1},
    "fallback": {"fallback": (OTHER,)},
    "consensus": {"samples": 3, "certainty": 0.9, "max_reasks": 1},
    "several models": {"models": ("fake", OTHER), "samples": 2, "certainty": 0.9},
    "without cache": {"cache": False, "fallback": (OTHER,)},
}


class Bill:
    """Answers or fails at random; it knows what it has billed, as far as it says so."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.used = []

    def __call__(self, _request):
        known = self.rng.random() < 0.8
        usage = None
        if known:
            tokens = {name: self.rng.randint(0, 50) for name in ("input_tokens", "output_tokens")}
            parts = dict.fromkeys(
                ("cached_input_tokens", "cache_write_tokens", "reasoning_tokens"), 0
            )
            usage = Usage(calls=1, cost_usd=sum(tokens.values()) / 1e6, **tokens, **parts)
        fails = self.rng.random() < 0.4
        self.used.append(usage)
        if fails:
            raise LLMError(self.rng.choice(KINDS), "no", usage=usage or Usage(calls=1))
        text = self.rng.choice(["yes", "yes", "no", "perhaps"])
        return LLMReply(text=text, usage=usage or Usage(calls=1))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("job", JOBS)
def test_every_sum_has_what_the_provider_bills_for_every_call(job, seed):
    store, bill = RedisStore(fake_redis()), Bill(f"{job} {seed}")
    fields = {
        "choices": ("yes", "no"),
        "retries": {"max_attempts": 2, "base_wait_s": 0.001, "max_wait_s": 0.001},
    }
    fields["price"] = {"input_mtok": 1, "output_mtok": 1}
    context = FakeContext(store, **fields, **JOBS[job])
    spec = context.spec.model_dump_json()
    store.create_run(RUN, spec=spec, created_at=1.0)
    context.llm.identity, context.answer = "m", bill
    other = context.models.made[OTHER] = FakeLLM(script=bill)
    other.identity = "other"
    context.write(["a", "b", "a", "c", "a"])
    context.process(0)
    stage, totals = store.stage(StageId(RUN, 0)), store.totals()
    outcomes = list(store.outcomes(StageId(RUN, 0).shard(0)).values())
    sums = [total_usage([one.usage for one in outcomes]), stage.usage, totals.usage]
    if stage.usage_of:
        sums.append(total_usage(list(stage.usage_of.values())))
    billed = [usage for usage in bill.used if usage is not None]
    for found in sums:
        assert found.calls == len(bill.used) == sum(one.attempts for one in outcomes)
        for name in QUANTITIES:
            assert found.known(name) == pytest.approx(sum(getattr(one, name) for one in billed))
            # The totals of a fleet are counters of what is known.
            is_known = found is totals.usage or len(billed) == len(bill.used)
            assert (getattr(found, name) is not None) is is_known
    for one in outcomes:
        assert one.usage.calls == one.attempts
        if not one.attempts:
            assert one.usage.cost_usd == 0
        if one.usage_of:
            by_model = total_usage(list(one.usage_of.values()))
            assert by_model.known("cost_usd") == pytest.approx(one.usage.known("cost_usd"))
