"""The public face: what it exports, and that its types hold for callers."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fanout
import workers


def modules():
    for package in (fanout, workers):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name not in {"fanout.llm.local_server", "fanout.client.embedded.guard"}:
                yield module.name


def test_what_is_tested_is_what_is_installed():
    """Not the source tree by accident, unless it is installed in editable mode."""
    origin = json.loads(metadata.distribution("fanout-llm").read_text("direct_url.json"))
    if not origin.get("dir_info", {}).get("editable"):
        assert "site-packages" in fanout.__file__
        assert "site-packages" in workers.__file__


def test_the_exports_are_sorted_and_exist():
    names = fanout.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(fanout, name) for name in names)


def test_type_checkers_see_each_name_where_it_is_imported_from():
    [checked] = [
        node for node in ast.parse(Path(fanout.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]  # fmt: skip
    seen = {
        node.module: {name.name for name in node.names}
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
    }
    assert seen == {module: set(names) for module, names in fanout._NAMES.items()}
    assert {name for names in seen.values() for name in names} == set(fanout.__all__)
    assert set(fanout.__all__) <= set(dir(fanout))
    with pytest.raises(AttributeError, match="module 'fanout' has no attribute 'Cleint'"):
        fanout.Cleint  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", list(modules()))
def test_every_module_is_documented_and_exports_what_there_is(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for exported in getattr(module, "__all__", ()):
        assert hasattr(module, exported)


def test_every_error_is_a_fanout_error_and_is_drawn_in_the_tree():
    from fanout.core import errors

    for name in errors.__all__:
        assert issubclass(getattr(errors, name), fanout.FanoutError)
        assert name in errors.__doc__


def test_every_kind_of_error_is_documented_for_users():
    assert len(fanout.ErrorKind) == 18


RIGHT = """
from collections.abc import AsyncIterator

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypedDict, assert_type

import polars
from pydantic import BaseModel
from fanout import Client, Document, Output, ParallelCalls, Result, Run, RunSpec

def shout(prompt: str) -> str:
    return prompt.upper()

async def whisper(prompt: str) -> str:
    return prompt.lower()

def use() -> list[str | None]:
    ParallelCalls(llm=whisper)
    with ParallelCalls(llm=shout, max_workers=4) as runner:
        result: Result = runner.run(["a"], "{input}", reduce="vote")
    run: Run = Client().submit(RunSpec(model="fake", prompt="{input}"), ["a"])
    tokens: int | None = run.status().usage.input_tokens
    kinds: list[str] = [error.kind.value for error in result.errors]
    return result.outputs

async def texts() -> AsyncIterator[str]:
    yield "a"

async def use_a_loop() -> list[str | None]:
    async with ParallelCalls(llm=whisper) as runner:
        for chunks in ([Document(name="d", index=0)], [{"text": "a"}], {"name": "text"}):
            await runner.arun(chunks, "{input}", progress=True)
        frame = polars.DataFrame({"text": ["a"]})
        runner.run(frame, "{input}").to_parquet("out.parquet", wide=True)
        result: Result = await runner.arun(frame.lazy().collect()["text"], "{input}")
        seen: list[Output] = [one async for one in runner.astream(texts(), "{input}")]
        seen += [one async for one in runner.client.run(result.run_id).astream()]
        return [one.output for one in seen]

class Review(BaseModel):
    stars: int

@dataclass
class Point:
    x: int

class Row(TypedDict):
    x: int

class Mood(Enum):
    GOOD = "good"

def use_types(runner: ParallelCalls) -> None:
    assert_type(runner.run(["a"], "{input}"), Result[str])
    assert_type(runner.run(["a"], "{input}", choices=["a", "b"]), Result[str])
    assert_type(runner.run(["a"], "{input}", schema=Review).outputs, list[Review | None])
    assert_type(runner.run(["a"], "{input}", schema=Point).outputs, list[Point | None])
    assert_type(runner.run(["a"], "{input}", schema=Row).outputs, list[Row | None])
    assert_type(runner.run(["a"], "{input}", schema=Mood).outputs, list[Mood | None])
    assert_type(runner.run(["a"], "{input}", schema=list[int]), Result[list[int]])
    assert_type(runner.run(["a"], "{input}", schema={"type": "array"}), Result[Any])
    assert_type(runner.run(["a"], "{input}", schema="review.json"), Result[Any])
    steps = [{"name": "facts", "prompt": "{input}", "schema": Review}]
    assert_type(runner.run(["a"], steps=steps), Result[Any])
    assert_type(runner.run(["a"], "{input}", schema=Literal["a", "b"]), Result[Any])

async def use_types_in_a_loop(runner: ParallelCalls) -> None:
    assert_type(await runner.arun(["a"], "{input}", schema=Review), Result[Review])
    steps = [{"name": "code", "function": shout}]
    assert_type(await runner.arun(["a"], steps=steps), Result[Any])
    async for one in runner.astream(["a"], "{input}", schema=Review):
        assert_type(one, Output[Review])
    async for text in runner.astream(["a"], "{input}"):
        assert_type(text.output, str | None)
"""
WRONG_IMPORTS = [
    "from pydantic import BaseModel",
    "from fanout import ParallelCalls",
    "class Review(BaseModel):",
    "    stars: int",
]
WRONG = [
    "ParallelCalls(llm=3)",
    "ParallelCalls().run(3)",
    "ParallelCalls().run([], reduce='x')",
    "ParallelCalls().arun(3)",
    "ParallelCalls().astream(3)",
    "ParallelCalls().run([], progress='x')",
    "ParallelCalls().run([], '{input}', schema=Review).outputs[0].stars.upper()",
    "ParallelCalls().run([], '{input}').outputs[0].stars",
]


def checked(folder):
    """What the type checker says of each file."""
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text("\n".join(WRONG_IMPORTS + WRONG) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "right.py", "wrong.py"],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert lines, done.stdout
    return {name: [line for line in lines if line.startswith(f"{name}.py:")]
            for name in ("right", "wrong")}  # fmt: skip


def test_callers_are_type_checked_and_told_what_is_wrong(tmp_path):
    told = checked(tmp_path)
    assert told["right"] == []
    numbers = {int(line.split(":")[1]) for line in told["wrong"]}
    first = len(WRONG_IMPORTS) + 1
    assert numbers == set(range(first, first + len(WRONG))), told["wrong"]
