"""Each fold comes to its end, and accounts for all branches: failed ones, and answers of any length."""

from __future__ import annotations

from itertools import product

import pytest

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind, RunStatus
from tests.fakes import RUN, FakeContext
from tests.unit.workers.test_comparisons import through

JOB = {
    "aggregate_prompt": "SUM {input}", "context_tokens": 1_500, "aggregate_max_tokens": 40,
    "tokenizer": "bytes/4", "cache": False, "fence": False, "retries": {"max_attempts": 1},
}  # fmt: skip
LONG, SHORT, BAD = "long " + "x" * 9_000, "short", "bad"
FOLDS = {
    "tree": {},
    "tree of groups": {"group_by": "document", "min_group_success": 0.1},
    "tree of one group": {"group_by": "column.none", "min_group_success": 0.1},
    "refine": {"fold": "refine"},
    "cluster": {"fold": "cluster"},
}
INPUTS = [
    texts for texts in product((LONG, SHORT, BAD), repeat=3) if any(text != BAD for text in texts)
]


def answer(request):
    if request.prompt.startswith("SUM"):
        return "sum"
    if request.prompt == BAD:
        raise LLMError(ErrorKind.INVALID_OUTPUT, "no")
    return request.prompt


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("max_branches", [1, 500])
def test_each_fold_ends_with_all_branches_counted(fold, max_branches):
    for texts in INPUTS:
        context = FakeContext(**JOB, **FOLDS[fold])
        context.answer = answer
        through(context, texts, max_branches=max_branches)
        run = context.store.run(RUN)
        assert run.status is RunStatus.SUCCEEDED, (texts, run.error)
        made = context.result.aggregates.values()
        bad = texts.count(BAD)
        assert sum(one.succeeded for one in made) == len(texts) - bad, texts
        assert sum(one.failed for one in made) == bad, texts
        counted: list[int] = [one.coverage.branches for one in made if one.coverage is not None]
        assert sum(counted) == len(texts)
