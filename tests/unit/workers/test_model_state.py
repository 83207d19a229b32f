"""What a worker process remembers of the failures of a model."""

from __future__ import annotations

import pytest

from fanout.core.errors import LLMError
from fanout.core.rate_limits import Rates
from fanout.core.records import ErrorKind
from workers.context.limiter import Limiter


@pytest.mark.parametrize(
    ("began", "is_down", "is_forgotten"),
    [
        (11.0, False, True),
        # It was in flight when the other call failed.
        (9.0, False, False),
        # Whether an outage is over is decided elsewhere.
        (11.0, True, False),
    ],
)
def test_an_answer_to_a_later_call_makes_a_failure_forgotten(store, began, is_down, is_forgotten):
    model = Limiter(store).gate("m", Rates())._model
    model.failed(ErrorKind.SERVER_ERROR, 10.0)
    if is_down:
        model.fell(10.0, 10.0)
    model.answered(began)
    if is_forgotten:
        model.require_unfailed()
    else:
        with pytest.raises(LLMError, match="fails for every branch"):
            model.require_unfailed()
    model.rose(12.0)
    model.require_unfailed()
