"""Answers with a shape, from a job to a table and to instances of a type."""

from __future__ import annotations

import csv
import json

from tests.scripted_provider import openai_reply

SCHEMA = {
    "type": "object",
    "properties": {
        "why": {"type": "string", "minLength": 1},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["why", "stars"],
}


def test_a_schema_makes_columns_and_values(fanout, here):
    (here / "review.json").write_text(json.dumps(SCHEMA))
    (here / "in.csv").write_text("id,text\n7,fine\n8,bad\n9,so so\n")
    job = ("in.csv", "-m", "fake", "-p", "Judge: {input}", "--schema", "review.json")
    done = fanout("run", *job, "--out", "out.csv")
    assert done.status == 0, done.stderr
    with (here / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["id", "text", "why", "stars"]
    assert all(1 <= int(row["stars"]) <= 5 and row["why"] for row in rows)
    assert fanout("results", "latest", "--out", "out", "-q").status == 0
    lines = map(json.loads, (here / "out" / "outputs.jsonl").read_text().splitlines())
    assert [set(line["output"]) for line in lines] == [{"why", "stars"}] * 3
    again = fanout("run", "run:latest", "-m", "fake", "-p", "{stars}: {input}", "--choices",
                   '"yes, it is",no', "--stream")  # fmt: skip
    streamed = [json.loads(line) for line in again.stdout.splitlines()]
    assert {row["output"] for row in streamed} <= {"yes, it is", "no"}
    assert all(row["stars"] in range(1, 6) for row in streamed)


def test_types_have_instances_here_and_json_values_in_another_process(script, here):
    out = script("""
        import asyncio, sys
        from dataclasses import dataclass
        from pydantic import BaseModel, Field
        from fanout import ParallelCalls

        class Review(BaseModel):
            why: str
            stars: int = Field(ge=1, le=5)

        @dataclass
        class Total:
            count: int

        job = {"schema": Review, "aggregate_schema": Total, "group_by": "document"}
        with ParallelCalls(llm="fake") as runner:
            result = runner.run(["a", "b"], "{input}", "{input}", **job)
            print({type(one).__name__ for one in result.outputs})
            print(list(result.aggregated), {type(one).__name__ for one in result.aggregated.values()})
            print(type(result.to_dict()["aggregated"]["item 1"]).__name__)

            async def stream():
                return [one async for one in runner.astream(["a"], "{input}", schema=list[int])]

            [one] = asyncio.run(stream())
            print(type(one.output).__name__, all(type(n) is int for n in one.output))
        print(result.run_id)
    """).splitlines()
    assert out[:-1] == [
        "{'Review'}",
        "['item 1', 'item 2'] {'Total'}",
        "dict",
        "list True",
    ]
    again = script(f"""
        from fanout import Client

        with Client() as client:
            result = client.run({out[-1]!r}).result()
        print([sorted(one) for one in result.outputs], sorted(result.aggregated["item 1"]))
    """)
    assert again.splitlines() == ["[['stars', 'why'], ['stars', 'why']] ['count']"]


def test_a_server_that_refuses_schemas_costs_one_more_call_and_says_what_is_not_enforced(
    fanout, here, provider
):
    (here / "review.json").write_text(json.dumps(SCHEMA))
    (here / "in.csv").write_text("text\n" + "".join(f"t{n}\n" for n in range(20)))

    def respond(_headers, body):
        if body is None:
            return 200, {"data": [{"id": "m"}]}
        if "response_format" in body:
            return 400, {"error": {"message": "response_format is not supported"}}
        assert "nothing else" in body["messages"][0]["content"]
        return 200, openai_reply('```json\n{"why": "it is", "stars": 4}\n```')

    provider.respond = respond
    done = fanout(
        "run", "in.csv", "-m", "openai/m", "-p", "{input}", "--schema", "review.json",
        "--max-workers", "1", "--aggregate", "{input}", "--aggregate-schema", "review.json",
        OPENAI_BASE_URL=f"{provider.url}/v1", OPENAI_API_KEY="k",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout) == {"why": "it is", "stars": 4}
    assert done.stderr.count("openai does not enforce of schema: /why: minLength; fanout") == 1
    assert "openai does not enforce of aggregate_schema: /why: minLength" in done.stderr
    asked = [body for path, _, body in provider.requests if path.endswith("/completions")]
    assert len([body for body in asked if "response_format" in body]) == 1
    assert len(asked) == 1 + 20 + 1
