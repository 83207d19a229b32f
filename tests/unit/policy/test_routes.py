"""The ways through steps: which run, and how often."""

import pytest

from fanout.core.spec import make_spec
from fanout.policy.routes import routes_of

KIND = {"name": "kind", "prompt": "{input}", "choices": ["a", "b", "c"]}
FACTS = {"name": "facts", "prompt": "{input}", "when": {"kind": "a"}}
MORE = {"name": "more", "prompt": "{facts}", "when": {"facts": "yes"}}
OTHER = {"name": "other", "prompt": "{input}", "when": {"kind": ["b"]}}
LAST = {"name": "last", "prompt": "{input}"}
CHECK = {"name": "check", "judge": "last", "criteria": "c", "max_rounds": 3}
AGAIN = {"name": "again", "judge": "last", "criteria": "d", "max_rounds": 2}
OF_FACTS = {"name": "check", "judge": "facts", "criteria": "c"}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([LAST], {("last",): 1}),
        ([KIND, FACTS, OTHER], {("kind", "facts"): 1 / 3, ("kind", "other"): 1 / 3, ("kind",): 1 / 3}),
        ([KIND, FACTS, MORE, LAST],
         {("kind", "facts", "more", "last"): 1 / 6, ("kind", "facts", "last"): 1 / 6,
          ("kind", "last"): 2 / 3}),
        # A judge of a step that does not run does not, either.
        ([KIND, FACTS, OF_FACTS], {("kind", "facts", "check"): 1 / 3, ("kind",): 2 / 3}),
    ],
)  # fmt: skip
def test_each_way_is_found_once_with_its_share(steps, expected):
    found = routes_of(make_spec(model="fake", steps=steps).steps)
    assert {tuple(route.runs): route.share for route in found} == pytest.approx(expected)


def test_judges_send_back_what_stands_between_them_and_their_step():
    between = {"name": "between", "prompt": "{last}"}
    (route,) = routes_of(make_spec(model="fake", steps=[LAST, between, CHECK, AGAIN]).steps)
    most = {name: (runs.low, runs.likely, runs.high) for name, runs in route.runs.items()}
    assert most == {
        "last": (1, 2.5, 4),
        "between": (1, 2.5, 4),
        "check": (1, 2.5, 4),
        "again": (1, 1.5, 2),
    }


def test_very_many_ways_are_two():
    labels = [f"l{n}" for n in range(40)]
    heads = [{"name": f"k{n}", "prompt": "{input}", "choices": labels} for n in range(3)]
    ends = [{"name": f"e{n}", "prompt": "{input}", "when": {f"k{n}": "l1"}} for n in range(3)]
    found = routes_of(make_spec(model="fake", steps=[*heads, *ends]).steps)
    assert [len(route.runs) for route in found] == [3, 6]
