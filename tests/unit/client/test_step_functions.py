"""Functions of steps, as a worker finds them."""

from __future__ import annotations

import json

import pytest

from fanout.client.step_functions import named_steps
from fanout.core.errors import SpecError
from fanout.core.spec import make_spec
from fanout.llm.callables import is_registered, unregister_callable


def named(function, *, is_embedded=True):
    known: list[str] = []
    step = {"name": "code", "function": function}
    [found] = named_steps([step], known, is_embedded=is_embedded)
    assert step["function"] is function, "the caller's own steps stay as they are"
    return found["function"], known


@pytest.mark.parametrize("is_embedded", [True, False])
def test_a_function_that_others_can_import_goes_by_its_path(is_embedded):
    assert named(json.dumps, is_embedded=is_embedded) == ("json:dumps", [])
    assert named("a.b:c", is_embedded=is_embedded) == ("a.b:c", [])


def test_another_one_is_registered_for_the_worker_in_this_process_and_nowhere_else():
    def own(branch):
        return branch

    for function in (own, lambda branch: branch):
        name, known = named(function)
        assert known == [name]
        assert is_registered(name)
        spec = make_spec(model="fake", steps=[{"name": "code", "function": name}])
        assert spec.all_called == ("fake", name)
        unregister_callable(name)
        with pytest.raises(
            SpecError, match=r"steps\.code\.function: .* cannot be imported by workers"
        ):
            named(function, is_embedded=False)


@pytest.mark.parametrize("wrong", [5, json, ["a"]])
def test_what_is_no_function_is_refused(wrong):
    with pytest.raises(SpecError, match=r"steps\.code\.function: must be a function, or 'package"):
        named(wrong)


def test_only_a_runner_takes_a_function_itself():
    with pytest.raises(
        SpecError, match=r"steps\.code\.function: .* only ParallelCalls takes a function"
    ):
        make_spec(model="fake", steps=[{"name": "code", "function": json.dumps}])
