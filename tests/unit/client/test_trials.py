"""The job of a trial."""

from __future__ import annotations

import pytest

from fanout.client.trials import spec_of_trial
from fanout.core.spec import make_spec, stored_spec
from tests.unit.core.test_spec import VALUES, job_with


@pytest.mark.parametrize("field", VALUES)
def test_the_job_of_a_trial_can_be_stored_with_any_field_of_the_job(field):
    own = spec_of_trial(make_spec(**job_with(field)))
    assert stored_spec(own.model_dump_json()) == own


def test_a_trial_has_the_lane_of_its_job_and_the_deadline_that_the_lane_goes_by():
    fields = {"model": "openai/m", "prompt": "{input}", "deadline_s": 9}
    late = spec_of_trial(make_spec(**fields, lane="auto"))
    assert (late.lane, late.deadline_s) == ("auto", 9)
    assert spec_of_trial(make_spec(**fields, lane="batch")).deadline_s is None
