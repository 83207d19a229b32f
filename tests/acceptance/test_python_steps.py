"""Steps as a program in Python gives them: dicts with types and functions."""

from __future__ import annotations

import signal
import textwrap
import time
from subprocess import PIPE

MINE = """
def due(branch):
    return {"on": branch["facts"]["days"] + 1, "kind": branch["kind"]}
"""
TYPES = """
    from dataclasses import dataclass
    from typing import Literal, TypedDict

    import mine
    from pydantic import BaseModel

    from fanout import FanoutError, ParallelCalls

    class Facts(TypedDict):
        days: int

    class Letter(BaseModel):
        hello: str

    @dataclass
    class Bill:
        total: int

    STEPS = [
        {"name": "kind", "prompt": "K {input}", "schema": Literal["bill", "letter"]},
        {"name": "facts", "prompt": "F {kind} {input}", "schema": Facts},
        {"name": "due", "function": mine.due},
        {"name": "up", "function": lambda branch: branch["input"].upper()},
        {"name": "bill", "prompt": "B {due.on}", "schema": Bill, "when": {"kind": "bill"}},
        {"name": "letter", "prompt": "L {up}", "schema": Letter, "when": {"kind": "letter"}},
    ]
"""
ROUTE = """
    def fails(branch):
        raise ValueError("no")

    with ParallelCalls(llm="fake") as runner:
        result = runner.run(list("abcdefgh"), steps=STEPS)
        assert result.coverage == 1.0
        assert result.usage.calls == 24
        assert {type(one).__name__ for one in result.outputs} == {"Bill", "Letter"}
        for branch, text in zip(result.branches, "ABCDEFGH"):
            kind, facts, due, up, end = branch.steps.values()
            assert list(branch.steps) == ["kind", "facts", "due", "up", kind]
            assert branch.value == end and type(branch.output).__name__.lower() == kind
            assert (due, up) == ({"on": facts["days"] + 1, "kind": kind}, text)
        columns = list(result.to_pandas())
        assert columns[:2] == ["total", "hello"], columns
        assert {"kind", "facts.days", "due.on", "due.kind", "up"} <= {*columns}, columns

        result = runner.run(["a"], steps=[{"name": "x", "function": fails}])
        assert [one.message for one in result.errors] == ["step x: ValueError: no"]
        for function in (5, "mine:none", "none:none"):
            try:
                runner.run(["a"], steps=[{"name": "x", "function": function}])
            except FanoutError as error:
                print(error)
"""
DIES = """
    import os, signal, sys, time

    def slow(branch):
        # In the middle of the second branch.
        if len(sys.argv) == 1 and branch["index"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return branch["kind"].upper()

    STEPS = [
        {"name": "kind", "prompt": "K {input}", "choices": ["bill", "letter"]},
        {"name": "slow", "function": slow},
    ]
    runner = ParallelCalls(llm="fake", max_workers=1)
    if len(sys.argv) == 1:
        runner.run(["a", "b", "c"], steps=STEPS)
    result = runner.resume(sys.argv[1], functions={"slow": slow})
    assert all(one.output == one.steps["kind"].upper() for one in result.branches), result
    print(result.status.value, len(result.branches), result.usage.calls)
"""


def test_steps_have_types_and_functions(script, here):
    (here / "mine.py").write_text(MINE)
    of_no_kind, not_there, no_module = script(TYPES + ROUTE).splitlines()
    assert of_no_kind.endswith("must be a function, or 'package.module:function' (got int)")
    assert not_there.endswith("the function mine:none cannot be used: mine has no none")
    assert no_module.startswith(
        "steps.x.function: the function none:none cannot be used: importing"
    )


def test_a_run_whose_function_has_died_goes_on_where_that_is(fanout, here, popen):
    (here / "mine.py").write_text(MINE)
    (here / "dies.py").write_text(textwrap.dedent(TYPES) + textwrap.dedent(DIES))
    assert popen("script", "dies.py").wait(100) == -signal.SIGKILL
    deadline = time.monotonic() + 90
    while not (listed := fanout("runs", "--json").stdout.strip()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert listed
    run_id = fanout("status", "latest", "--json").stdout.split('"run_id":')[1].split('"')[1]
    refused = fanout("resume", run_id)
    assert refused.status == 1
    assert f"ParallelCalls().resume('{run_id}', functions={{'slow': FUNCTION}})" in refused.stderr
    process = popen("script", "dies.py", run_id, stdout=PIPE, stderr=PIPE, text=True)
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    # No answer of the model is asked for again.
    assert stdout == "succeeded 3 3\n"
