from __future__ import annotations

import re
from contextlib import nullcontext
from functools import partial
from itertools import product
from operator import attrgetter
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pytest
import yaml

from fanout import ParallelCalls
from fanout.cli.job_options import job_options
from fanout.cli.options import job_spec
from fanout.cli.run import run
from fanout.client.arguments import checked_count
from fanout.client.client import Client
from fanout.core.errors import InputError, RunError, SpecError
from fanout.core.field_names import ALIASES, PARTS, flat_name, inner_name
from fanout.core.job_files import load_job
from fanout.core.records import Variants
from fanout.core.settings import load_settings
from fanout.core.spec import RunSpec, make_spec, stored_spec
from fanout.core.spec_fields import BudgetSpec, RateSpec, RetrySpec
from fanout.core.usage import Usage

if TYPE_CHECKING:
    from pydantic import BaseModel


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "p"}, ["model: is required"]),
        ({"model": "fake"}, ["prompt: is required: what to ask of each chunk"]),
        ({"model": "fake", "prompt": ""}, ["prompt: is required"]),
        ({"model": "fake", "prompt": "p", "timout": 3}, ["timout:", "did you mean timeout?"]),
        (
            {"model": "fake", "prompt": {"input": None}},
            ["prompt:", "put it in quotes", "'{input}'"],
        ),
        ({"model": "fake", "aspects": {"a": {"input": None}}}, ["aspects.a:", "in quotes"]),
        ({"model": "fake", "prompt": "p", "delimiter": "ab"}, ["delimiter: must be one", "'ab'"]),
        ({"model": "fake", "prompt": "p", "encoding": "klingon"}, ["encoding: must be", "klingon"]),
        ({"model": "fake", "prompt": "p", "encoding": "rot13"}, ["encoding: must be an encoding"]),
        ({"model": "fake", "prompt": "p", "parse_timeout": 0}, ["parse_timeout_s:", "0"]),
        (
            {"model": "fake", "prompt": "p", "timeout": 1, "timeout_s": 2},
            ["timeout_s: is given twice, as timeout and as timeout_s"],
        ),
        (
            {"model": "fake", "prompt": "p", "rpm": 1, "rate": {"requests_per_minute": 2}},
            ["requests_per_minute: is given twice, as rpm and as rate.requests_per_minute"],
        ),
        ({"model": "fake", "prompt": "p", "samples": True}, ["samples: must not be true or false"]),
        ({"model": "fake", "prompt": "p", "max_workers": True}, ["max_workers: must not be true"]),
        ({"model": "fake", "prompt": "p", "max_workers": 2.5}, ["max_workers:", "(got 2.5)"]),
        (
            {"model": "fake", "prompt": "p", "retries": {"max_wait_s": True}},
            ["retries.max_wait_s: must not be true or false"],
        ),
        ({"model": "fake", "prompt": "p", "aspects": {"a": "p"}}, ["not both"]),
        ({"model": "fake", "promt": "p"}, ["promt:", "no such field", "did you mean prompt?"]),
        (
            {"model": "fake", "prompt": "p", "samples": 0},
            ["samples:", "must be 1 or more", "(got 0)"],
        ),
        (
            {"model": "fake", "prompt": "p", "reduce": "sum"},
            ["reduce:", "'concat'", "'vote'", "(got 'sum')"],
        ),
        ({"model": "fake", "prompt": "p", "reduce": "llm"}, ["aggregate_prompt:"]),
        (
            {"model": "fake", "prompt": "p", "reduce": "vote", "aggregate_prompt": "a"},
            ["reduce: 'vote' does not use an aggregate prompt"],
        ),
        ({"model": "fake", "prompt": "p", "group_by": "document"}, ["group_by: needs a reduce"]),
        (
            {"model": "fake", "prompt": "p", "chunk_tokens": 10, "chunk_overlap_tokens": 10},
            ["chunk_overlap_tokens: 10 must be smaller"],
        ),
        (
            {"model": "fake", "prompt": "p", "retries": {"max_attempt": 2}},
            ["retries.max_attempt:", "did you mean max_attempts?"],
        ),
        ({"model": "fake", "prompt": "p", "min_success": 90}, ["min_success:", "(got 90)"]),
        ({"model": "fake", "prompt": "p", "temperature": "hot"}, ["temperature:", "(got 'hot')"]),
    ],
)
def test_a_wrong_field_names_itself_its_value_and_what_is_allowed(fields, words):
    with pytest.raises(SpecError) as caught:
        make_spec(**fields)
    for word in words:
        assert word in str(caught.value)


def number_fields() -> dict[str, tuple[type, str]]:
    """Return the type of each numeric field, and a valid value of it as text."""
    fields = {}
    parts: dict[str, type[BaseModel]] = {
        "": RunSpec, "retries.": RetrySpec, "rate.": RateSpec, "budget.": BudgetSpec,
    }  # fmt: skip
    for part, model in parts.items():
        for name, schema in model.model_json_schema(by_alias=False)["properties"].items():
            kinds = {one.get("type") for one in [schema, *schema.get("anyOf", [])]}
            if kinds & {"number", "integer"}:
                fields[part + name] = (float if "number" in kinds else int, "1")
    # 1 is too large for it: see below.
    del fields["certainty"]
    return {**fields, "context_tokens": (int, "256")}


NUMBERS = number_fields()


def with_field(name: str, value: object) -> dict[str, Any]:
    part, _, inner = name.rpartition(".")
    fields = {part: {inner: value}} if part else {name: value}
    return {"model": "fake", "prompt": "{input}", "chunk_tokens": 9, **fields}


def test_the_numeric_fields_are_known():
    assert {"priority", "max_workers", "samples", "seed", "rate.tokens_per_minute"} <= set(NUMBERS)
    assert {kind for kind, _ in NUMBERS.values()} == {int, float}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_given_as_a_number(name, tmp_path):
    """In Python, in YAML and in JSON, which is YAML: text is refused, whole numbers are enough."""
    kind, text = NUMBERS[name]
    path = tmp_path / "job.yaml"
    for written in (f'"{text}"', f"'{text}'", "four", '"1e3"', '" 1"', '""'):
        path.write_text(f"value: {written}")
        value = load_job(path)["value"]
        with pytest.raises(SpecError) as caught:
            make_spec(**with_field(name, value))
        assert str(caught.value) == f"{name}: must be a number, not text (got {value!r})"
    for value in (text.encode(), True, False, float("inf"), float("nan"), [1], {"a": 1}):
        with pytest.raises(SpecError, match=f"^{name}: "):
            make_spec(**with_field(name, value))
    number = int(text)
    for value in (number, float(number), np.int64(number), np.float64(number)):
        found = attrgetter(name)(make_spec(**with_field(name, value)))
        assert (type(found), found) == (kind, number)
    with pytest.raises(SpecError, match=f"^{name}: ") if kind is int else nullcontext():
        make_spec(**with_field(name, 256.5 if name == "context_tokens" else 0.5))


@pytest.mark.parametrize("value", [0.5, 1, 0, 1.2, -1, "0.9", True, float("nan")])
def test_a_certainty_is_more_than_one_half_and_less_than_one(value):
    with pytest.raises(SpecError, match=r"^certainty: (must|is) "):
        make_spec(model="fake", prompt="{input}", samples=9, certainty=value)


def test_all_answers_of_a_consensus_are_one_branch():
    fields = {"prompt": None, "aspects": {"a": "{input}", "b": "{input}"}, "certainty": 0.95}
    one = make_spec(model="fake", samples=9, **fields).variants
    assert (one.aspects, one.models, one.samples, one.count) == (("a", "b"), ("fake",), 1, 2)
    several = make_spec(model=["fake", "local"], **fields).variants
    assert (several.models, several.count) == ((None,), 2)
    with pytest.raises(SpecError, match=r"^group_by: 'model' makes no groups with certainty"):
        make_spec(model=["fake", "local"], reduce="vote", group_by="model", **fields)


@pytest.mark.parametrize("model", [RetrySpec, RateSpec, BudgetSpec])
def test_a_part_by_itself_refuses_text_too(model):
    for name in model.model_fields:
        with pytest.raises(ValueError, match="must be a number, not text"):
            model(**{name: "1"})


@pytest.mark.parametrize("value", ["yes", "true", "0", 1, 0, 1.0])
def test_a_boolean_is_given_as_one(value):
    with pytest.raises(SpecError, match=r"^strict: "):
        make_spec(**with_field("strict", value))
    assert make_spec(**with_field("strict", True)).strict


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e6", 1e6), ("1E6", 1e6), ("2.5e3", 2500.0), ("5e-1", 0.5), ("1_000", 1e3)],
)
def test_a_job_file_has_numbers_with_exponents(tmp_path, text, number):
    path = tmp_path / "job.yaml"
    path.write_text(f"tpm: {text}\nmodel: fake\nprompt: 1e6 of\nsystem: e6\n")
    spec = make_spec(**load_job(path))
    assert (spec.rate.tokens_per_minute, spec.prompt) == (number, "1e6 of")


def test_the_names_of_the_library_and_of_the_job_file_are_the_same_fields():
    spec = make_spec(llm="fake", branch_prompt="{input}", aggregate="all: {input}")
    assert (spec.model, spec.prompt, spec.aggregate_prompt) == ("fake", "{input}", "all: {input}")


@pytest.mark.parametrize(
    ("fields", "reduction"),
    [({}, "none"), ({"aggregate_prompt": "{input}"}, "llm"), ({"reduce": "vote"}, "vote")],
)
def test_the_reduce_follows_from_the_prompts(fields, reduction):
    assert make_spec(model="fake", prompt="{input}", **fields).reduction == reduction


def test_a_spec_survives_its_json():
    spec = make_spec(
        model="fake", aspects={"b": "{input}", "a": "x {input}"}, samples=2, stop=["."]
    )
    again = type(spec).model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.aspect_names == ("b", "a"), "aspects keep their order"
    assert again.branches_per_chunk == 4


def test_branches_are_chunks_by_aspects_by_models_by_samples():
    variants = Variants(aspects=("a", "b"), models=("m", "n"), samples=2)
    refs = [variants.ref(index) for index in range(2 * variants.count)]
    order = [(ref.chunk, ref.aspect, ref.model, ref.sample) for ref in refs]
    assert order == list(product((0, 1), ("a", "b"), ("m", "n"), (0, 1)))


@pytest.mark.parametrize("name", ["model", "models", "llm"])
def test_several_models_are_a_dimension_and_one_is_none(name):
    several = make_spec(**{name: ["a", "b"]}, prompt="{input}", samples=3)
    assert (several.model, several.models, several.branches_per_chunk) == ("a", ("a", "b"), 6)
    assert stored_spec(several.model_dump_json()) == several
    one = make_spec(**{name: ["a"]}, prompt="{input}")
    assert (one.model, one.models, one.branches_per_chunk) == ("a", (), 1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"models": ["a", "a"]}, "models: has 'a' twice: samples asks one model several times"),
        ({"model": "c", "models": ["a", "b"]}, "models: give either model or models"),
        ({"models": ["a", ""]}, "models.1: "),
        ({"models": []}, "model: is required"),
    ],
)
def test_wrong_models_are_refused(fields, words):
    with pytest.raises(SpecError, match=re.escape(words)):
        make_spec(**fields, prompt="{input}")


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ("a,b", ("a", "b")),
        (" a , b c ", ("a", "b c")),
        ('"a, b",c', ("a, b", "c")),
        ("5\" disk,it's", ('5" disk', "it's")),
        ("a\nb, c\n\nd", ("a", "b", "c", "d")),
        ("\u00fcber,\u5c71", ("\u00fcber", "\u5c71")),
        ("good,good enough,Good", ("good", "good enough", "Good")),
        ([1, 2, 3], ("1", "2", "3")),
        (("a", "b"), ("a", "b")),
    ],
)
def test_choices_are_labels_as_written(given, labels):
    spec = make_spec(model="fake", prompt="{input}", choices=given)
    assert spec.choices == labels
    assert stored_spec(spec.model_dump_json()).choices == labels


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("[yes, no]", "choices: must be texts, and True is none: put each label in quotes"),
        ("[a, null]", "must be texts, and None is none"),
        ("[1.50, 2.00]", "must be texts, and 1.5 is none"),
        ("[2026-01-31, 2026-02-01]", "is none: put each label in quotes"),
        ("[a, [b]]", "choices.1: must be text"),
        ("{a: b}", "choices: must be"),
        ('["a\\nb", c]', "must be one line each"),
        ("[a]", "must be two labels or more"),
        ("'a,,b'", "none of them empty"),
        ("[a, b, a]", "has 'a' twice"),
        ("[a, ' a ']", "has 'a' twice"),
    ],
)
def test_choices_that_are_no_labels_are_refused(tmp_path, yaml, words):
    path = tmp_path / "job.yaml"
    path.write_text(f"model: fake\nprompt: '{{input}}'\nchoices: {yaml}\n")
    with pytest.raises(SpecError, match=re.escape(words)):
        make_spec(**load_job(path))
    path.write_text("model: fake\nprompt: '{input}'\nchoices: ['yes', 'no']\n")
    assert make_spec(**load_job(path)).choices == ("yes", "no")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", ["not valid YAML", "line"]),
        (f"a: {{{'x' * 100_000}: 1, b", ["not valid YAML", "line"]),
        ("prompt: {input} now", ["line 1", "text that begins with { must be in quotes"]),
        ("a: 1\na: 2", ["line 2", "the field 'a' is given twice"]),
        ("- a\n- b", ["a mapping of fields, not list"]),
        ("", ["not NoneType"]),
        ("labels: " + "[" * 1_000 + "]" * 1_000, ["nested too deep"]),
    ],
)
def test_a_job_file_that_is_not_one_says_so(tmp_path, text, words):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_job(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_missing_job_file_says_so(tmp_path):
    with pytest.raises(SpecError, match=r"cannot read the job file .*nope\.yaml"):
        load_job(tmp_path / "nope.yaml")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("prompt", {"prompt": "\udcff {input}"}),
        ("aspects", {"prompt": None, "aspects": {"a": "\udcff {input}"}}),
        ("inputs", {"inputs": ["\udcff.txt"]}),
        ("stop", {"stop": ["\ud800"]}),
        ("schema", {"schema": {"type": "string", "enum": ["a", "\ud800"]}}),
        ("steps.a.prompt", {"prompt": None, "steps": [{"name": "a", "prompt": "\ud800 {input}"}]}),
        ("reduce.a.aggregate_prompt", {"reduce": [{"name": "a", "llm": "S {input} \ud800"}]}),
        ("reduce.a.criteria", {"reduce": [{"name": "a", "pairwise": ["\ud800"]}]}),
        ("reduce.a.by", {"reduce": [{"name": "a", "vote": "\ud800"}]}),
        (
            "reduce.b.group_by",
            {
                "reduce": [
                    {"name": "a", "vote": None},
                    {"name": "b", "vote": None, "group_by": "\ud800"},
                ]
            },
        ),
        (
            "reduce.a.aggregate_schema",
            {
                "reduce": [
                    {
                        "name": "a",
                        "llm": {
                            "aggregate_prompt": "{input}",
                            "aggregate_schema": {"type": "string", "enum": ["\ud800"]},
                        },
                    }
                ]
            },
        ),
    ],
)
def test_a_text_of_any_field_that_is_not_utf8_is_refused(field, fields):
    with pytest.raises(
        SpecError, match=f"^{field}: (holds bytes that are not UTF-8|is not a JSON)"
    ):
        make_spec(**{"model": "fake", "prompt": "{input}", **fields})


@pytest.mark.parametrize("reduce", [[], ()])
def test_an_empty_list_of_reduces_is_refused(reduce):
    with pytest.raises(SpecError, match=r"^reduce: the list is empty; .*, vote: output}"):
        make_spec(model="fake", prompt="{input}", reduce=reduce)
    spec = make_spec(model="fake", prompt="p")
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec


# One name for each field: as an option, in YAML, and in Python.

VALUES = {
    "read_on": "workers", "id_column": "id", "where": "stars <= 2", "sample": 5, "limit": 4,
    "inputs": "a.txt", "base_dir": "/x", "text_column": "t", "delimiter": ";", "sheet": "s",
    "encoding": "utf-16", "parse_timeout_s": 9, "max_document_mb": 2,
    "model": "fake", "prompt": "{input}", "samples": 2, "certainty": 0.9, "system": "s",
    "temperature": 0.5, "max_tokens": 9, "on_truncated": "keep", "seed": 3, "stop": ["."],
    "output_format": "json", "schema": '{"type": "string"}',
    "choices": "a,b", "aggregate_schema": '{"type": "string"}', "max_reasks": 1, "split": "lines",
    "neighbours": 1, "split_prompt": "A part is a law.", "split_model": "fake?seed=4",
    "split_gaps": "leave_out", "split_max_tokens": 9, "tokenizer": "bytes/3",
    "chunk_tokens": 50, "chunk_overlap_tokens": 0,
    "reduce": "vote", "aggregate_prompt": "{input}", "fold": "refine",
    "embed": "functions.own:vectors",
    "aggregate_max_tokens": 9, "group_by": "document", "context_tokens": 999, "min_success": 0.5,
    "min_group_success": 0.5, "sources": True,
    "max_workers": 3, "priority": 2, "timeout_s": 7, "deadline_s": 9, "strict": True, "cache": False,
    "max_attempts": 2,
    "max_elapsed_s": 8, "base_wait_s": 1, "max_wait_s": 5, "requests_per_minute": 6,
    "by": "sentiment", "measures": "count,mean:stars", "k": 3,
    "tokens_per_minute": 7, "aspects": {"a": "{input}"}, "models": ["fake", "fake?seed=2"],
    "labels": "gold", "lane": "auto", "prompt_order": "as_written",
    "budget_usd": 2.5, "budget_calls": 30, "budget_tokens": 4000,
    "reduces": [{"name": "counts", "reduce": "table", "by": ["x"]}],
    "steps": [
        {"name": "a", "prompt": "{input}"}, {"name": "check", "judge": "a", "criteria": ["clear"]},
    ],
    "output": "a", "on_rejected": "fail", "fence": True,
    "criteria": ["clear"], "judge_model": "fake?seed=4", "max_pairs": 9,
    "retrieve": "functions.own:find", "top_k": 3, "query": "{input}?", "passage_tokens": 50,
    "passage_column": "body",
    "fallback": ["fake?seed=3"], "price": {"input_mtok": 0.25, "output_mtok": 2},
}  # fmt: skip
# What a field needs beside it to have an effect.
NEEDS: dict[str, dict[str, Any]] = {
    "output": {"steps": VALUES["steps"]},
    "on_rejected": {"steps": VALUES["steps"]},
    "top_k": {"retrieve": "functions.own:find"},
    "query": {"retrieve": "functions.own:find"},
    "passage_tokens": {"retrieve": "handbook"},
    "passage_column": {"retrieve": "handbook"},
    "group_by": {"reduce": "vote"},
    "min_group_success": {"reduce": "vote"},
    "sources": {"aggregate_prompt": "{input}"},
    "by": {"reduce": "vote"},
    "measures": {"reduce": "table"},
    "k": {"reduce": "top"},
    "neighbours": {"split": "lines"},
    "criteria": {"reduce": "pairwise"},
    "max_pairs": {"reduce": "resolve", "by": "x"},
    "judge_model": {"reduce": "pairwise", "criteria": ["clear"]},
    "split_prompt": {"split": "model"},
    "split_model": {"split": "model"},
    "split_gaps": {"split": "model"},
    "split_max_tokens": {"split": "model"},
    "chunk_tokens": {"split": "tokens"},
    "chunk_overlap_tokens": {"split": "tokens"},
    "aggregate_max_tokens": {"aggregate_prompt": "{input}"},
    "context_tokens": {"aggregate_prompt": "{input}"},
    "fold": {"aggregate_prompt": "{input}"},
    "embed": {"aggregate_prompt": "{input}", "fold": "cluster"},
    "aggregate_schema": {"aggregate_prompt": "{input}"},
    "max_reasks": {"choices": "a,b"},
    "certainty": {"samples": 2},
    "lane": {"model": "openai/m", "deadline_s": 9},
}
FLAT = [name for name in RunSpec.model_fields if name not in {*PARTS.values()}] + list(PARTS)
NAMES = [*FLAT, *ALIASES]


def value_of(spec, name):
    field = ALIASES.get(name, name)
    return getattr(getattr(spec, PARTS[field]) if field in PARTS else spec, inner_name(field))


def job_with(name):
    """The fields of a job that has one under that name, and what it needs beside."""
    field = ALIASES.get(name, name)
    assert field in VALUES, f"give the test a value of the new field {field!r}"
    needed = {"model": "fake", "prompt": "{input}", "aspects": VALUES["aspects"]}
    del needed["prompt" if field == "aspects" else "aspects"]
    if field in ("steps", "output", "on_rejected"):
        del needed["prompt"]
    needed.update(NEEDS.get(field, {}))
    needed.pop("model" if field == "models" else field, None)
    return {**needed, name: VALUES[field]}


def from_command_line(monkeypatch, arguments):
    taken = []

    def command(inputs, **options):
        taken.append(job_spec(inputs, options, load_settings()))

    click.command("run")(job_options(command)).main(arguments, standalone_mode=False)
    return taken[0]


def option_words(name, value):
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else f"--no-{name.replace('_', '-')}"]
    if isinstance(value, dict):
        return [word for key, one in value.items() for word in (option, f"{key}={one}")]
    values = value if isinstance(value, list) else [value]
    return [word for one in values for word in (option, str(one))]


def test_every_field_has_a_part_where_it_may_stand_by_itself():
    parts: dict[str, Any] = {"retries": RetrySpec, "rate": RateSpec, "budget": BudgetSpec}
    names = [
        (flat_name(part, n), part) for part, model in parts.items() for n in model.model_fields
    ]
    assert dict(names) == PARTS


@pytest.mark.parametrize("name", NAMES)
def test_a_field_has_the_same_names_everywhere(monkeypatch, tmp_path, name):
    job = job_with(name)
    expected = value_of(make_spec(**job), name)
    assert expected not in (None, [], {})
    # YAML.
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"inputs": "a.txt", **job}))
    read = from_command_line(monkeypatch, [str(path)])
    field = ALIASES.get(name, name)
    if field != "inputs":
        assert value_of(read, name) == expected
    # Options: those of fields all of them, and of other names those that there are.
    options = {
        spelling
        for option in click.command("x")(job_options(lambda: None)).params
        for spelling in option.opts
    }
    if {"steps", "reduces"} & job.keys():
        # They have no option.
        job = {key: value for key, value in job.items() if key not in ("steps", "reduces")}
        words = [
            str(path),
            *(word for one, value in job.items() for word in option_words(one, value)),
        ]
        assert value_of(from_command_line(monkeypatch, words), name) == expected
    elif f"--{name.replace('_', '-')}" in options or (name in FLAT and name != "inputs"):
        words = [word for one, value in job.items() for word in option_words(one, value)]
        assert value_of(from_command_line(monkeypatch, ["a.txt", *words]), name) == expected
    # Python.
    assert value_of(python_spec(monkeypatch, job_with(name)), name) == expected


def python_spec(monkeypatch, job):
    """The spec that ``ParallelCalls.run`` submits."""
    seen = []

    def submit(_self, spec, *_arguments, **_options):
        seen.append(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "submit", submit)
    with ParallelCalls(llm="fake") as runner, pytest.raises(KeyboardInterrupt):
        runner.run(**job)
    return seen[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["a.txt", "--samples", "0", "-p", "x", "-m", "fake"],
            "--samples: must be 1 or more (got 0)",
        ),
        (["job.yaml"], "job.yaml: samples: must be 1 or more (got 0)"),
        (
            ["job.yaml", "--max-attempts", "0", "--samples", "1"],
            "--max-attempts: must be 1 or more",
        ),
        (["a.txt", "-m", "fake"], "--prompt: is required: what to ask of each chunk"),
        (["a.txt", "-p", "x"], "--model: is required"),
        (["-p", "x", "-m", "fake"], "inputs: is required: give files"),
    ],
)
def test_a_wrong_field_is_named_as_it_was_given(monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text("{inputs: a.txt, model: fake, prompt: x, samples: 0}")
    with pytest.raises(SpecError) as caught:
        from_command_line(monkeypatch, arguments)
    assert words in str(caught.value)


def test_an_option_leaves_the_other_fields_of_its_part(monkeypatch, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "{inputs: a, model: fake, prompt: x, max_wait_s: 3, retries: {max_elapsed_s: 9}}"
    )
    spec = from_command_line(monkeypatch, [str(path), "--max-attempts", "7"])
    retries = spec.retries
    assert (retries.max_attempts, retries.max_elapsed_s, retries.max_wait_s) == (7, 9, 3)


# What a caller of the library gives.

DEEP_DICT: dict[str, object] = {}
DEEP_LIST: list[object] = []
for _ in range(50_000):
    DEEP_DICT, DEEP_LIST = {"items": DEEP_DICT}, [DEEP_LIST]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_workers": 0}, "max_workers: must be a whole number from 1 on (got 0)"),
        ({"max_workers": 2.5}, "max_workers: must be a whole number from 1 on (got 2.5)"),
        ({"max_workers": True}, "max_workers: must be a whole number from 1 on (got True)"),
        ({"max_workers": "4"}, "max_workers: must be a whole number from 1 on (got '4')"),
        ({"llm": object()}, "llm: must be a model string such as"),
        ({"llm": 7}, "(got int)"),
        ({"llm": ""}, "llm: must not be empty"),
        ({"llm": None}, "llm: is required: give llm=..., or set FANOUT_MODEL"),
    ],
)
def test_a_runner_checks_what_it_is_given(arguments, words):
    with pytest.raises(SpecError) as caught:
        ParallelCalls(**{"llm": "fake", **arguments})
    assert words in str(caught.value)


@pytest.mark.parametrize("count", [4, 4.0, np.int64(4)])
def test_a_runner_takes_a_whole_number(count):
    assert (
        checked_count("max_workers", count)
        == make_spec(**with_field("max_workers", count)).max_workers
    )


@pytest.mark.parametrize("spec", ["fake", None, [], 5])
def test_a_client_says_what_a_spec_is(spec):
    with Client() as client, pytest.raises(SpecError, match="spec: must be a RunSpec, or a dict"):
        client.submit(spec, ["a"])


def test_a_runner_that_is_closed_has_forgotten_its_function():
    runner = ParallelCalls(llm=str.upper)
    runner.close()
    with pytest.raises(RunError, match="this runner is closed"):
        runner.run(["a"], "{input}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"inputs": [3]}, "inputs: must be paths (got 3, a int)"),
        ({"chunks": ["x"], "inputs": "a.txt"}, "inputs: give either chunks or inputs"),
        ({"chunks": ["x"], "prompt": "{input}"}, "prompt: is given twice, as branch_prompt and"),
        ({"chunks": ["x"], "samples": True}, "samples: must not be true or false"),
        ({"chunks": ["x"], "schema": DEEP_DICT}, "schema: is not a JSON Schema: nested more than"),
    ],
)
def test_a_run_checks_what_it_is_given(arguments, words):
    with ParallelCalls(llm="fake") as runner, pytest.raises(SpecError) as caught:
        runner.run(branch_prompt="{input}", **arguments)
    assert words in str(caught.value)


def test_one_path_may_stand_for_a_list_of_one(monkeypatch, tmp_path):
    for inputs in ("a.txt", Path("a.txt"), ["a.txt"], [Path("a.txt")]):
        spec = python_spec(monkeypatch, {"inputs": inputs, "prompt": "{input}"})
        assert spec.inputs == ("a.txt",)


def test_an_empty_list_is_said_to_be_one():
    with ParallelCalls(llm="fake") as runner, pytest.raises(InputError) as caught:
        runner.run(chunks=[], branch_prompt="{input}")
    assert str(caught.value) == "chunks is empty: there is nothing to do"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sample": 0}, "sample: must be 1 or more (got 0)"),
        ({"samples": 10_001}, "samples: must be 10000 or less (got 10001)"),
        ({"timeout_s": 0}, "timeout_s: must be more than 0 (got 0)"),
        ({"temperature": 3}, "temperature: must be 2 or less (got 3)"),
        ({"temperature": float("nan")}, "temperature: must be a finite number (got nan)"),
        ({"deadline_s": float("inf")}, "deadline_s: must be a finite number (got inf)"),
        ({"limit": 1.5}, "limit: must be a whole number (got 1.5)"),
        ({"limit": [1]}, "limit: must be a whole number (got [1])"),
        ({"priority": [1]}, "priority: must be a number (got [1])"),
        ({"strict": "yes"}, "strict: must be true or false (got 'yes')"),
        ({"prompt": 5}, "prompt: must be text (got 5)"),
        ({"output_format": "xml"}, "output_format: must be 'text' or 'json' (got 'xml')"),
        ({"inputs": 5}, "inputs: must be a list (got 5)"),
        ({"inputs": [1]}, "inputs.0: must be text (got 1)"),
        ({"retries": 5}, "retries: must be a mapping (got 5)"),
        ({"retries": {"max_attempts": 0}}, "retries.max_attempts: must be 1 or more (got 0)"),
        ({"model": ""}, "model: must not be empty (got '')"),
        (
            {"reduce": "pairwise", "criteria": ""},
            "criteria: must not be empty: say what makes an answer",
        ),
        (
            {"reduce": "pairwise", "criteria": ["c", " "]},
            "criteria: must not be empty: say what makes",
        ),
        ({"model": "x" * 513}, "model: must have at most 512 characters (got 'x"),
    ],
)
def test_what_a_value_must_be_is_said_in_plain_words(fields, words):
    with pytest.raises(SpecError) as caught:
        make_spec(**{"model": "fake", "prompt": "x", "inputs": ["a"], **fields})
    assert str(caught.value).startswith(words)


BAD_VALUES = (
    -1, 0, 1.5, 1e9, float("nan"), "", "x", "x" * 999, [1], {"a": 1}, {}, (), object(),
    DEEP_DICT, {"a": DEEP_DICT}, DEEP_LIST, [DEEP_LIST], "x" * 99_999,
)  # fmt: skip


def test_no_field_has_other_words_for_what_it_must_be():
    found = []
    for name in RunSpec.model_fields:
        for value in BAD_VALUES:
            try:
                make_spec(**{"model": "fake", "prompt": "x", "inputs": ["a"], name: value})
            except SpecError as error:
                found.append(str(error))
    assert len(found) > 100
    assert [one for one in found if re.search(r"[Ii]nput should|[Vv]alid |should ", one)] == []
    assert [one for one in found if "\n" in one or len(one) > 2_500] == [], "short, in one line"


@pytest.mark.parametrize(
    ("given", "name"), [(len, "the function len"), (RunSpec, "the class RunSpec"), (3.5, "3.5")]
)
def test_a_function_or_a_class_is_named_as_it_is_written(given, name):
    with pytest.raises(SpecError, match=rf"^choices: must be a list \(got {name}\)$"):
        make_spec(model="fake", prompt="{input}", choices=given)


@pytest.mark.parametrize("name", ["schema", "aggregate_schema"])
def test_a_schema_that_is_nested_too_deep_is_refused_however_it_is_given(tmp_path, name):
    path, kind = tmp_path / "schema.json", GenericAlias(list, int)
    text = '{"items":' * 100_000 + "{}" + "}" * 100_000
    path.write_text(text)
    for _ in range(3_000):
        kind = GenericAlias(list, kind)
    for given in (text, str(path), path, DEEP_DICT, {"enum": DEEP_LIST}, kind):
        with pytest.raises(SpecError, match=rf"^{name}: .*(deep|recursion)") as caught:
            make_spec(model="fake", prompt="{input}", **{name: given})
        assert len(str(caught.value)) < 2_000


def checks(answer):
    return answer


def inner():
    def checks_inside(answer):
        return answer

    return checks_inside


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (checks, "the function checks"),
        (inner(), "the function checks_inside"),
        (lambda answer: answer, "a lambda"),
        (len, "the function len"),
        (str.upper, "the function str.upper"),
        (partial(checks, 1), "a partial of the function checks"),
    ],
)
def test_a_function_is_no_schema(given, name):
    words = rf"must be a JSON Schema, .* in Python a type \(got {name}\)$"
    with pytest.raises(SpecError, match=f"^schema: {words}"):
        make_spec(model="fake", prompt="{input}", schema=given)
    with pytest.raises(SpecError, match=f"^aggregate_schema: {words}"):
        make_spec(model="fake", prompt="p", aggregate_prompt="{input}", aggregate_schema=given)
    llm = {"aggregate_prompt": "{input}", "aggregate_schema": given}
    with pytest.raises(SpecError, match=rf"^reduce\.a\.aggregate_schema: {words}"):
        make_spec(model="fake", prompt="{input}", reduce=[{"name": "a", "llm": llm}])


def test_an_option_of_the_command_is_no_field_of_a_job():
    command = click.Command("run")
    job_options(command)
    of_jobs = {one.name for one in command.params}
    options = [one for one in run.params if one.name not in of_jobs]
    assert len(options) > 5
    for flag in (one.opts[0] for one in options):
        for name in {flag[2:], flag[2:].replace("-", "_")}:
            with pytest.raises(SpecError) as caught:
                make_spec(model="fake", prompt="x", **{name: "x"})
            assert f"there is no such field: {flag} is an option of the command" in str(
                caught.value
            )


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("price", "must have input_mtok and output_mtok"),
        ("budget", "must have usd, calls or tokens"),
    ],
)
def test_a_price_or_budget_that_says_nothing_is_refused(field, words):
    with pytest.raises(SpecError, match=f"{field}: {words}"):
        make_spec(model="fake", prompt="{input}", **{field: {}})
    spec = make_spec(model="fake", prompt="{input}")
    assert stored_spec(spec.model_dump_json()) == spec


def test_dollars_are_shown_without_the_noise_of_sums():
    noisy = 0.1 + 0.2
    usage = Usage(calls=1, at_least={"cost_usd": noisy})
    assert usage.to_dict()["at_least"] == {"cost_usd": 0.3}
    assert Usage(calls=1, cost_usd=noisy).to_dict()["cost_usd"] == 0.3


NAME = "x" * 200_000


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": [{"name": NAME, "prompt": "{input}"}]},
        {"steps": [{"name": NAME, "prompt": "{input}"}] * 2},
        {"steps": [{"name": "a", "prompt": "{input}", NAME: 1}]},
        {"steps": [{"name": "a", "prompt": "{input}", "when": {NAME: "1"}}]},
        {"steps": [{"name": "a", "prompt": "{input}", "judge": NAME}]},
        {"prompt": "{input}", NAME: 1},
        {"prompt": "{input}", "budget": {NAME: 1}},
        {"prompt": "{input}", "reduce": NAME},
        {"prompt": "{input}", "group_by": NAME, "reduce": NAME},
        {"prompt": "{input}", "choices": [NAME, NAME]},
    ],
    ids=["step", "twice", "field", "when", "judge", "job", "part", "reduce", "column", "choices"],
)  # fmt: skip
def test_an_error_has_the_beginning_of_a_name_as_of_a_value(fields):
    with pytest.raises(SpecError, match=r"xxx\.\.\.") as caught:
        make_spec(**{"model": "fake", **fields})
    assert len(str(caught.value)) < 5_000
    assert len(caught.value.reason) < 5_000


def test_an_error_of_an_input_has_the_beginning_of_a_long_path():
    assert len(str(InputError("there is no such file", source=NAME))) < 2_000


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("prompt: !!binary aGVsbG8=", "prompt"),
        ("inputs: [a, !!binary aGVsbG8=]", "inputs"),
        ("steps: [{name: a, prompt: !!binary aGVsbG8=}]", "steps.prompt"),
        ("schema: {properties: {a: {enum: [!!binary aGVsbG8=]}}}", "schema.properties.a.enum"),
        ("choices: !!set {!!binary aGVsbG8=}", "choices"),
        ("price: {!!binary aGVsbG8=: 1}", "price"),
        ("retries: &again {again: *again, x: !!binary aGVsbG8=}", "retries.x"),
    ],
)
def test_bytes_are_no_text(tmp_path, text, field):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=f"{field}: must be text, not !!binary \\(got b'hello'\\)$"):
        load_job(path)
    given = yaml.safe_load(text)
    with pytest.raises(SpecError, match=f"^{field}: must be text, not bytes \\(got b'hello'\\)$"):
        make_spec(**given)
