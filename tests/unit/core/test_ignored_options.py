"""What is given has an effect, or is refused with the reason: every field, variable and option.

A new one needs an entry in one of the tables here.
"""

from __future__ import annotations

import asyncio
import copy
import io
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import openpyxl
import pytest
import yaml
from click.testing import CliRunner

import fanout
import workers
from fanout import Client, ParallelCalls
from fanout.cli.job_options import job_options
from fanout.cli.main import _COMMANDS
from fanout.cli.options import _OPTION_OF, job_spec
from fanout.core.errors import BrokerError, LLMError, ModelError, SettingsError, SpecError
from fanout.core.field_effects import CONFLICTS, FUNCTION_RULES, RULES, require_used
from fanout.core.field_names import ALIASES, PARTS, inner_name
from fanout.core.records import Document
from fanout.core.settings import Settings, load_settings
from fanout.core.spec import RunSpec, make_spec, stored_spec
from fanout.inputs.fences import RULE, SUBTASK_RULE
from fanout.inputs.intake import checked_documents
from fanout.llm import FakeLLM, LLMRequest, context_tokens
from fanout.llm.callables import CallableLLM, register_callable, unregister_callable

NOBODY = "redis://127.0.0.1:9/0"
JOB = {"model": "fake", "prompt": "{input}"}
SUMMED = {"aggregate_prompt": "{input}"}
STEP = {"name": "a", "prompt": "{input}"}
STEPS = {"prompt": None, "steps": [STEP]}
JUDGED = {"prompt": None, "steps": [STEP, {"name": "b", "judge": "a", "criteria": ["c"]}]}
COMPARED = {"reduce": "pairwise", "criteria": ["c"]}
RESOLVED = {"reduce": "resolve", "by": "x"}
BEST = {"reduce": "best", "criteria": ["c"], "samples": 2}
STRING = '{"type": "string"}'

# The fields of a job that have an effect in any job: some code reads them.
ALWAYS = {
    "inputs", "max_document_mb", "read_on", "strict", "model", "models", "fallback", "prompt", "aspects",
    "samples", "system", "temperature", "max_tokens", "on_truncated", "stop", "schema", "choices",
    "split", "tokenizer", "reduce", "aggregate_prompt",
    "group_by", "min_success", "max_workers", "priority", "cache", "timeout_s", "deadline_s", "max_attempts",
    "max_elapsed_s", "requests_per_minute", "tokens_per_minute", "sample", "limit", "labels",
    "lane", "prompt_order", "steps", "fence", "retrieve", "reduces",
    "price", "budget_usd", "budget_calls", "budget_tokens",
}  # fmt: skip
# These have one beside some others only: a value, and with which others it has one and has none.
SOMETIMES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "chunk_tokens": (50, [{"split": s} for s in ("tokens", "markdown", "sentences", "model")],
                     [{}, {"split": "none"}, {"split": "lines"}]),
    "split_prompt": ("x", [{"split": "model"}], [{}, {"split": "tokens"}]),
    "split_model": ("fake?seed=4", [{"split": "model"}], [{}, {"split": "tokens"}]),
    "split_max_tokens": (9, [{"split": "model"}], [{}, {"split": "tokens"}]),
    "split_gaps": ("leave_out", [{"split": "model"}], [{}, {"split": "tokens"}]),
    "neighbours": (1, [{"split": s} for s in ("lines", "tokens")], [{}, {"split": "none"}]),
    "chunk_overlap_tokens": (5, [{"split": "tokens"}], [{}, {"split": "lines"}]),
    "aggregate_max_tokens": (9, [SUMMED, {**SUMMED, "reduce": "llm"}, COMPARED, BEST],
                             [{}, {"reduce": "none"}, {"reduce": "vote"}]),
    "context_tokens": (999, [SUMMED, COMPARED, {"split": "model"}, {"retrieve": "a"}],
                       [{}, {"reduce": "concat"}]),
    "top_k": (3, [{"retrieve": "a"}, {"retrieve": "a.b:c"}], [{}]),
    "query": ("{input}?", [{"retrieve": "a"}, {"retrieve": "a.b:c"}], [{}]),
    "passage_tokens": (50, [{"retrieve": "a"}], [{}, {"retrieve": "a.b:c"}]),
    "passage_column": ("x", [{"retrieve": "a"}], [{}, {"retrieve": "a.b:c"}]),
    "aggregate_schema": (STRING, [SUMMED], [{}, {"reduce": "vote"}]),
    "fold": ("refine", [SUMMED, {**SUMMED, "reduce": "llm"}], [{}, {"reduce": "vote"}, COMPARED]),
    "embed": ("a.b:c", [{**SUMMED, "fold": "cluster"}], [{}, SUMMED, {**SUMMED, "fold": "refine"}]),
    "by": ("x", [*({"reduce": name} for name in ("vote", "rank", "top", "merge", "table")),
                 {"fold": "map_rerank", "output_format": "json"}],
           [{}, {"reduce": "none"}, {"reduce": "concat"}, SUMMED]),
    "measures": ("count", [{"reduce": "table"}], [{}, {"reduce": "vote"}, SUMMED]),
    "k": (3, [{"reduce": "top"}, {"reduce": "rank"}, COMPARED],
          [{}, BEST, {"reduce": "vote"}, {"reduce": "table", "measures": "count"}, SUMMED]),
    "sources": (True, [SUMMED], [{}, {"reduce": "vote"}, {"reduce": "none"}, BEST, COMPARED]),
    "min_group_success": (0.5, [SUMMED, {"reduce": "vote"}, {"reduce": "concat"}, BEST, COMPARED],
                          [{}, {"reduce": "none"}]),
    "output_format": ("json", [{}, {"fold": "map_rerank"}], [{"choices": "a,b"}, {"schema": STRING}]),
    "max_reasks": (1, [{"choices": "a,b"}, {"schema": STRING}, COMPARED, {**SUMMED, "sources": True}],
                   [{}, SUMMED]),
    "max_pairs": (9, [RESOLVED], [{}, COMPARED, {"reduce": "vote"}]),
    "criteria": (["d"], [COMPARED, BEST, RESOLVED], [{}, {"reduce": "vote"}, SUMMED]),
    "judge_model": ("fake?seed=9", [COMPARED, BEST, RESOLVED], [{}, {"reduce": "rank"}, SUMMED]),
    "output": ("a", [STEPS], [{}]),
    "on_rejected": ("fail", [JUDGED], [{}, STEPS]),
    "certainty": (0.9, [{"samples": 2}], [{}, {"samples": 1}]),
    "base_wait_s": (1.0, [{}, {"max_attempts": 2}], [{"max_attempts": 1}]),
    "max_wait_s": (1.0, [{}, {"max_attempts": 2}], [{"max_attempts": 1}]),
    "seed": (3, [{}, {"model": "openai/m"}], [{"model": "anthropic/m"}]),
}  # fmt: skip
# These with some inputs only.
READING = {
    "base_dir", "text_column", "delimiter", "sheet", "encoding", "parse_timeout_s", "id_column", "where",
}  # fmt: skip
FIELDS = [name for name in RunSpec.model_fields if name not in {*PARTS.values()}] + list(PARTS)


def default_of(name):
    return getattr(getattr(make_spec(**JOB), PARTS[name]) if name in PARTS else make_spec(**JOB),
                   name)  # fmt: skip


USED = [(name, beside) for name, (_, used, _) in SOMETIMES.items() for beside in used]
UNUSED = [(name, beside) for name, (_, _, unused) in SOMETIMES.items() for beside in unused]


def test_every_field_of_a_job_has_an_entry():
    assert sorted([*ALWAYS, *SOMETIMES, *READING]) == sorted(FIELDS)
    ruled = {field.rpartition(".")[2] for rule in RULES for field in rule.fields}
    assert ruled == SOMETIMES.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_a_job_is_read_by_what_does_the_job(name):
    # Neither what checks it nor what shows it counts.
    sources = [
        path.read_text()
        for folder in (Path(fanout.__path__[0]), Path(workers.__path__[0]))
        for path in folder.rglob("*.py")
        if not {"report", "cli"} & set(path.relative_to(folder).parts)
        and not path.name.startswith("spec")
    ]
    own = {
        "prompt": "prompts", "aspects": "prompts", "reduce": "reduction", "models": "variants",
        "fold": "refines", "fence": "is_fenced",
        "retrieve": "retrieval", "top_k": "retrieval", "query": "retrieval",
        **dict.fromkeys(("requests_per_minute", "tokens_per_minute"), "rates"),
    }.get(name, inner_name(name))  # fmt: skip
    read = re.compile(rf"(?:spec|policy|_spec|rate|budget|limits)\.{own}\b")
    assert any(read.search(source) for source in sources)


@pytest.mark.parametrize(("name", "beside"), UNUSED)
def test_a_field_without_effect_is_refused_in_the_words_of_its_caller(
    monkeypatch, tmp_path, name, beside
):
    value = SOMETIMES[name][0]
    default = default_of(name)
    # Also at the default: somebody expects something of it.
    for one in [value] if default in (None, ()) else [value, default]:
        fields = {**JOB, **beside, name: one}
        # Python: nothing is started for it.
        with Client() as client, pytest.raises(SpecError, match=rf"\b{name}: has no effect"):
            client.submit(fields, ["text"])
        given = {key: value for key, value in fields.items() if key != "model"}
        with (
            ParallelCalls(fields["model"]) as runner,
            pytest.raises(SpecError, match=rf"\b{name}: has no effect"),
        ):
            runner.run(["text"], **given)
        # YAML.
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({"inputs": "a.txt", **fields}))
        with pytest.raises(SpecError, match=rf"job\.yaml: (\w+\.)?{name}: has no effect"):
            from_command_line(str(path))
        # Options.
        with pytest.raises(SpecError, match=f"^--{name.replace('_', '-')}: has no effect"):
            from_command_line(*words(fields, tmp_path))


@pytest.mark.parametrize(("name", "beside"), USED)
def test_a_field_that_has_an_effect_is_taken(tmp_path, name, beside):
    fields = {**JOB, **beside, name: SOMETIMES[name][0]}
    require_used(make_spec(**fields))
    assert from_command_line(*words(fields, tmp_path))


def is_refused(spec, **options):
    try:
        require_used(spec, **options)
    except SpecError:
        return True
    return False


def test_nothing_that_nobody_gave_is_refused():
    for beside in [*(beside for _, beside in UNUSED), {"stop": (), "seed": None}]:
        assert not is_refused(make_spec(**JOB | beside)), beside
    assert not is_refused(RunSpec(**JOB, context_tokens=None))


@pytest.mark.parametrize(("name", "beside"), UNUSED)
def test_what_an_earlier_run_has_stored_is_not_asked_again(name, beside):
    spec = make_spec(**{**JOB, **beside, name: SOMETIMES[name][0]})
    stored = stored_spec(spec.model_dump_json())
    assert stored == spec
    require_used(stored)
    require_used(stored.model_copy(update={"base_dir": "/"}))


GROUPED = {**SUMMED, "group_by": "document"}
ASPECTS = {"prompt": None, "aspects": {"a": "{input}"}}
# What a job file has, options over it, and the fields of the file that are ignored then.
OVERRULED: list[tuple[dict[str, Any], list[str], set[str]]] = [
    ({"split": "tokens", "chunk_tokens": 9}, ["--split", "lines"], {"chunk_tokens"}),
    ({"split": "tokens", "chunk_tokens": 9, "chunk_overlap_tokens": 3}, ["--split", "none"],
     {"chunk_tokens", "chunk_overlap_tokens"}),
    ({**SUMMED, "context_tokens": 999}, ["--reduce", "llm"], set()),
    ({**GROUPED, "context_tokens": 999, "aggregate_max_tokens": 9}, ["--reduce", "none"],
     {"aggregate_prompt", "group_by", "context_tokens", "aggregate_max_tokens"}),
    ({**GROUPED, "context_tokens": 999, "aggregate_max_tokens": 9}, ["--reduce", "vote"],
     {"aggregate_prompt", "context_tokens", "aggregate_max_tokens"}),
    ({**GROUPED, "reduce": "llm"}, ["--reduce", "concat"], {"aggregate_prompt"}),
    ({"reduce": "vote", "group_by": "document"}, ["--reduce", "none"], {"group_by"}),
    ({"reduce": "vote", "group_by": "document"}, ["--aggregate", "{input}"], {"reduce"}),
    ({**ASPECTS, "reduce": "vote", "group_by": "aspect"}, ["--prompt", "{input}"],
     {"aspects", "group_by"}),
    ({**ASPECTS, "reduce": "vote", "group_by": "document"}, ["--prompt", "{input}"], {"aspects"}),
    ({}, ["--aspect", "a={input}"], {"prompt"}),
    ({**SUMMED, "fold": "cluster", "embed": "a.b:c"}, ["--fold", "tree"], {"embed"}),
    ({"reduce": "table", "by": ("x",), "measures": ("count",)}, ["--reduce", "vote"], {"measures"}),
    ({"reduce": "top", "by": ("x",), "k": 3}, ["--reduce", "none"], {"by", "k"}),
    ({"reduce": "rank", "by": ("x",), "k": 3}, ["--aggregate", "{input}"], {"reduce", "by", "k"}),
    ({**SUMMED, "base_wait_s": 3}, ["--max-attempts", "1"], {"base_wait_s"}),
    ({"retries": {"base_wait_s": 99, "max_wait_s": 3}}, ["--max-attempts", "1"],
     {"base_wait_s", "max_wait_s"}),
    ({"text_column": "x", "delimiter": ";", "base_dir": "."}, ["INPUT"], set()),
    ({"schema": {"type": "string"}, "max_reasks": 1}, ["--choices", "a,b"], {"schema"}),
    ({"output_format": "json"}, ["--choices", "a,b"], {"output_format"}),
    ({"choices": ["a", "b"]}, ["--schema", STRING], {"choices"}),
    ({"fallback": ["fake", "fake?seed=2"]}, ["--model", "fake?seed=2"], {"fallback"}),
    ({"model": ["fake", "fake?seed=2"], "reduce": "vote", "group_by": "model"}, ["--model", "fake"],
     {"group_by"}),
    ({"reduce": "vote", "group_by": "model"}, ["--model", "fake", "--model", "local"], set()),
    ({"samples": 3, "certainty": 0.9}, ["--samples", "1"], {"certainty"}),
    ({"price": {"fake": {"input_mtok": 1, "output_mtok": 2}}}, ["--model", "local"], {"price"}),
    ({"model": ["fake", "fake?seed=2"], "certainty": 0.9}, ["--model", "fake"], {"certainty"}),
    ({"prompt": "{input} {context}", "retrieve": "kb", "passage_tokens": 50}, ["--retrieve", "a.b:c"],
     {"passage_tokens"}),
    ({"max_reasks": 1}, ["--aggregate", "{input}", "--aggregate-schema", STRING], set()),
]  # fmt: skip


@pytest.mark.parametrize(("job", "options", "ignored"), OVERRULED)
def test_an_option_overrules_what_a_job_file_has_for_another(inputs, job, options, ignored):
    path = inputs / "job.yaml"
    file = {"inputs": TEXT, **JOB, **job}
    path.write_text(yaml.safe_dump({name: one for name, one in file.items() if one is not None}))
    arguments = [str(inputs / TEXT) if one == "INPUT" else one for one in options]
    spec = from_command_line(str(path), *arguments)
    require_used(spec)
    assert list(checked_documents(spec, None))
    in_file = {**job, **job.get("retries", {})}
    for name in in_file.keys() - {"retries", "base_dir"}:
        holder = spec.retries if name in PARTS else spec
        default = type(holder).model_fields[name].get_default(call_default_factory=True)
        if name in ignored:
            assert getattr(holder, name) == default
        elif f"--{name}" not in options and in_file[name] is not None:
            assert getattr(holder, name) == in_file[name]
    assert ("prompt" in ignored) == (spec.prompt is None)


def test_every_field_that_others_depend_on_overrules_them():
    options = {word for _, words, _ in OVERRULED for word in words if word.startswith("--")}
    deciding = {name for rule in (*CONFLICTS, *RULES) for name in rule.deciding}
    assert options == {_OPTION_OF[name] for name in deciding}


@pytest.mark.parametrize(
    ("job", "options", "words"),
    [
        ({}, ["--base-wait-s", "5", "--max-wait-s", "2"],
         "--base-wait-s: 5.0 must not be greater than --max-wait-s (2.0)"),
        ({}, ["--base-wait-s", "61"], "--base-wait-s: 61.0 must not be greater than max_wait_s (60.0)"),
        ({"base_wait_s": 3}, ["--max-wait-s", "2"],
         "job.yaml: retries.base_wait_s: 3.0 must not be greater than max_wait_s (2.0)"),
        ({"retries": {"base_wait_s": 3, "max_wait_s": 2}}, [],
         "job.yaml: retries.base_wait_s: 3.0 must not be greater than max_wait_s (2.0)"),
        ({"base_wait_s": 3}, ["--max-wait-s", "3"], None),
        ({}, ["--max-wait-s", "0.1"], None),
    ],
)  # fmt: skip
def test_a_first_wait_is_not_longer_than_the_longest(tmp_path, job, options, words):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"inputs": "a.txt", **JOB, **job}))
    if words is None:
        assert from_command_line(str(path), *options)
        return
    with pytest.raises(SpecError) as caught:
        from_command_line(str(path), *options)
    assert str(caught.value).endswith(words)


@pytest.mark.parametrize(
    ("job", "options", "words"),
    [
        ({"prompt": "{input}"}, ["-m", "fake", "-m", "fake"], "--model: has 'fake' twice"),
        ({}, ["-m", "fake", "-m", ""], "--model: "),
        ({"models": ["fake", "fake"]}, [], "job.yaml: models: has 'fake' twice"),
        ({}, ["--fallback", "a", "--fallback", "a"], "--fallback: has 'a' twice"),
    ],
)
def test_a_message_about_models_names_the_option_that_gave_them(tmp_path, job, options, words):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"inputs": "a.txt", **JOB, **job}))
    with pytest.raises(SpecError) as caught:
        from_command_line(str(path), *options)
    assert words in str(caught.value)


def test_an_option_does_not_overrule_one(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"inputs": "a.txt", **JOB, "split": "tokens", "seed": 1}))
    with pytest.raises(SpecError, match=r"^--chunk-tokens: has no effect with split 'lines'"):
        from_command_line(str(path), "--split", "lines", "--chunk-tokens", "9")
    # Two options that exclude each other.
    with pytest.raises(SpecError, match=r"^--reduce: 'vote' does not use an aggregate prompt"):
        from_command_line(str(path), "--reduce", "vote", "--aggregate", "{input}")
    # What a model cannot do is no matter of taste.
    with pytest.raises(SpecError, match=r"job\.yaml: seed: has no effect: anthropic/m takes no"):
        from_command_line(str(path), "--model", "anthropic/m")


LANES_OF = {
    "openai/m": {"flex", "batch", "auto"},
    "gemini/m": {"flex", "batch", "auto"},
    "anthropic/m": {"batch", "auto"},
    "litellm/openai/m": set(),
    "local": set(),
    "fake": set(),
    "a.b:c": set(),
}


@pytest.mark.parametrize("lane", ["realtime", "flex", "batch", "auto"])
@pytest.mark.parametrize("model", LANES_OF)
def test_a_lane_that_a_model_lacks_is_refused_in_every_form_of_a_job(tmp_path, model, lane):
    path = tmp_path / "job.yaml"
    job = {"inputs": "a.txt", **JOB, "lane": lane, "deadline_s": 9}
    path.write_text(yaml.safe_dump(job))
    if lane in {"realtime", *LANES_OF[model]}:
        assert from_command_line(str(path), "-m", model).lane == lane
        assert make_spec(**{**job, "model": model}).lane == lane
        return
    reason = f"lane: {model} has no lane '{lane}'"
    with pytest.raises(SpecError, match=f"^{reason}"):
        make_spec(**{**job, "model": model})
    with pytest.raises(SpecError, match=f"^--{reason}"):
        from_command_line("a.txt", "-p", "{input}", "-m", model, "--lane", lane)
    # An option for the model does not make a cheap job a dear one without a word.
    with pytest.raises(SpecError, match=f"job.yaml: {reason}"):
        from_command_line(str(path), "-m", model)
    # Of several models, all that are asked first need it.
    with pytest.raises(SpecError, match=f"lane: openai/m, {model} has no"):
        make_spec(**{**job, "model": ["openai/m", model]})
    assert make_spec(**{**job, "model": "openai/m", "fallback": [model]}).lane == lane


def test_the_lane_auto_needs_a_deadline():
    with pytest.raises(SpecError, match=r"^lane: 'auto' needs deadline_s"):
        make_spec(model="openai/m", prompt="{input}", lane="auto")


@pytest.mark.parametrize(
    ("fields", "timeout_s"),
    [
        ({}, 120),
        ({"lane": "batch"}, 120),
        ({"lane": "flex"}, 900),
        ({"lane": "flex", "timeout": 120}, 120),
    ],
)
def test_flex_has_a_long_timeout_unless_one_is_given(fields, timeout_s):
    spec = make_spec(model="openai/m", prompt="{input}", **fields)
    assert spec.timeout_s == timeout_s
    assert stored_spec(spec.model_dump_json()) == spec


def words(fields, folder):
    """The arguments that give fields; steps have no option, and are in a job file."""
    path = folder / "steps.yaml"
    if "steps" in fields:
        path.write_text(yaml.safe_dump({"inputs": "a.txt", "steps": fields["steps"]}))
    options = [
        word
        for name, value in fields.items()
        if name != "steps" and value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return [str(path) if "steps" in fields else "a.txt", *options]


def command_of(name):
    module, _, attribute = _COMMANDS[name][0].partition(":")
    return getattr(import_module(f"fanout.cli.{module}"), attribute)


def invoked(name, *arguments):
    # A copy: click keeps the option for help of the first context that a command is used in.
    return CliRunner().invoke(copy.copy(command_of(name)), arguments)


def from_command_line(*arguments):
    taken = []

    def command(inputs, **options):
        taken.append(job_spec(inputs, options, load_settings()))

    click.command("run")(job_options(command)).main(list(arguments), standalone_mode=False)
    return taken[0]


# How an input is read.

TEXT, TABLE, LINES, BOOK = "a.txt", "b.csv", "c.jsonl", "d.xlsx"
RTF, PAGE = "d.rtf", "e.html"


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    (tmp_path / TEXT).write_text("hello")
    (tmp_path / TABLE).write_text("text,x\nhello,1\n")
    (tmp_path / LINES).write_text('{"text": "hello", "x": 1}\n')
    book = openpyxl.Workbook()
    for row in (["text"], ["hello"]):
        book.active.append(row)
    book.save(tmp_path / BOOK)
    (tmp_path / RTF).write_text(r"{\rtf1 hello}")
    (tmp_path / PAGE).write_text("<p>hello")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def absolute(folder, paths):
    return [f"{folder}{path}" if path.startswith("/") else path for path in paths]


@pytest.mark.parametrize(
    ("field", "value", "used", "unused"),
    [
        ("base_dir", ".", [[TEXT], ["/" + TEXT, TEXT]], [["/" + TEXT]]),
        ("text_column", "text", [[TABLE], [LINES], [TEXT, TABLE]], [[TEXT]]),
        ("sheet", "1", [[BOOK], [TEXT, BOOK]], [[TEXT], [TABLE]]),
        ("delimiter", ",", [[TABLE], [TEXT, TABLE]], [[TEXT], [LINES], [TEXT, LINES]]),
        ("id_column", "x", [[TABLE], [LINES], [TEXT, TABLE]], [[TEXT]]),
        ("where", "x = 1", [[TABLE], [LINES], [TEXT, TABLE]], [[TEXT]]),
        ("encoding", "latin-1", [[TEXT], [TABLE], [LINES], [PAGE], [RTF, TEXT]], [[RTF]]),
        ("parse_timeout", 50, [[RTF], [TEXT, PAGE], [BOOK]], [[TEXT], [TABLE], [LINES, TEXT]]),
    ],
)
def test_how_an_input_is_read_is_refused_where_it_is_not_read_so(
    inputs, field, value, used, unused
):
    for some in unused:
        paths = absolute(inputs, some)
        with pytest.raises(SpecError, match=f"^{ALIASES.get(field, field)}: has no effect"):
            checked_documents(make_spec(**JOB, inputs=paths, **{field: value}), None)
        done = invoked(
            "run", *paths, f"--{field.replace('_', '-')}", str(value), "-m", "fake", "-p", "x"
        )
        assert f"--{field.replace('_', '-')}: has no effect" in str(done.exception or done.output)
    for some in used:
        paths = absolute(inputs, some)
        assert list(checked_documents(make_spec(**JOB, inputs=paths, **{field: value}), None))
        if field in {"id_column", "where"}:
            # They name a column, which the input must have.
            continue
        # A run that has stored it goes on with any.
        stored = stored_spec(make_spec(**JOB, inputs=[TEXT], **{field: value}).model_dump_json())
        assert list(checked_documents(stored, None))


@pytest.mark.parametrize("path", ["-", "/{}", "{}"])
def test_a_folder_that_nobody_gave_need_not_have_an_effect(inputs, path):
    seen = []

    def stop(spec, *_arguments, **_options):
        seen.append(spec)
        raise KeyboardInterrupt

    path = absolute(inputs, [path.format(TEXT)])[0]
    with pytest.MonkeyPatch.context() as patch, Client() as client:
        patch.setattr("fanout.client.client.checked_documents", stop)
        with pytest.raises(KeyboardInterrupt):
            client.submit({**JOB, "inputs": [path]})
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"text")))
        assert list(checked_documents(seen[0], None))
    # It is remembered all the same.
    assert seen[0].base_dir == str(inputs)


def test_how_documents_in_memory_are_read():
    def read(field, value, items):
        return list(checked_documents(make_spec(**JOB, **{field: value}), items))

    fields = {
        "base_dir": "x",
        "delimiter": ";",
        "sheet": "s",
        "text_column": "t",
        "id_column": "t",
        "where": "t=1",
        "encoding": "latin-1",
        "parse_timeout_s": 5,
    }
    for field, value in fields.items():
        with pytest.raises(SpecError, match=f"^{field}: has no effect"):
            read(field, value, ["a", "b"])
    assert read("text_column", "t", ["a", {"t": "b"}])
    with pytest.raises(SpecError, match=r"^text_column: has no effect"):
        read("text_column", "t", ["a", Document(name="b", index=0, text="b")])
    # Nobody looks through what can be read only once.
    assert read("text_column", "t", iter(["a"]))


def test_a_document_is_held_to_the_size_that_a_document_may_have():
    items = ["a" * 99, {"text": "a" * 99}, Document(name="d", index=0, text="a" * 99), "b"]
    spec = make_spec(**JOB, max_document_mb=0.00005)
    errors = [one.error for one in checked_documents(spec, items)]
    assert errors[3] is None
    assert all("longer than the" in error for error in errors[:3])


def test_the_inputs_of_a_job_file_are_in_the_folder_that_it_names(inputs, monkeypatch):
    (inputs / "jobs").mkdir()
    (inputs / "jobs" / "job.yaml").write_text(
        yaml.safe_dump({**JOB, "inputs": TEXT, "base_dir": ".."})
    )
    monkeypatch.chdir("/")
    spec = from_command_line(str(inputs / "jobs" / "job.yaml"))
    assert [one.text for one in checked_documents(spec, None)] == ["hello"]
    spec = from_command_line(str(inputs / "jobs" / "job.yaml"), "--base-dir", str(inputs))
    assert [one.text for one in checked_documents(spec, None)] == ["hello"]


# A function takes its prompt, and nothing else.

TO_FUNCTIONS: dict[str, Any] = {
    "system": "s",
    "temperature": 0.5,
    "max_tokens": 9,
    "seed": 3,
    "stop": ["."],
}


def test_every_field_that_a_request_has_is_known_of_functions():
    # The answer of a function is checked as well, and what is wrong comes with the next prompt.
    taken = {"prompt", "shape", "turns", "lane", "cache", "review"}
    asked = {name for name in LLMRequest.__struct_fields__ if name not in taken}
    assert asked == TO_FUNCTIONS.keys()
    assert {field for rule in FUNCTION_RULES for field in rule.fields} == asked


@pytest.mark.parametrize("name", TO_FUNCTIONS)
def test_what_a_function_would_ignore_is_refused(name):
    with ParallelCalls(str.upper) as runner, pytest.raises(SpecError, match=f"^{name}: has no"):
        runner.run(["a"], "{input}", **{name: TO_FUNCTIONS[name]})
    model = register_callable(FakeLLM())
    try:
        with Client() as client, pytest.raises(SpecError, match="chunk_tokens"):
            # Refused for that alone: a model that is an object takes all of them.
            client.submit({**JOB, "model": model, "chunk_tokens": 1, **TO_FUNCTIONS}, ["a"])
    finally:
        unregister_callable(model)


def test_the_tokens_that_a_rate_books_have_an_effect():
    assert is_refused(make_spec(**JOB, max_tokens=9), is_function=True)
    spec = make_spec(**JOB, max_tokens=9, tokens_per_minute=100)
    assert not is_refused(spec, is_function=True)


@pytest.mark.parametrize("name", sorted(TO_FUNCTIONS.keys() - {"max_tokens"}))
def test_a_function_that_only_workers_know_fails_of_what_it_would_ignore(name):
    value = TO_FUNCTIONS[name]
    request = LLMRequest(prompt="p", **{name: tuple(value) if name == "stop" else value})
    with pytest.raises(LLMError, match=f"takes the prompt only: leave out {name}") as caught:
        asyncio.run(CallableLLM(str.upper, concurrency=1).complete(request))
    assert (caught.value.kind.value, caught.value.stop_after) == ("bad_request", 1)


def test_an_object_hears_what_fences_mean_and_a_function_does_not():
    for rule in (RULE, RULE + SUBTASK_RULE):
        request = LLMRequest(prompt="p", system=rule)
        reply = asyncio.run(CallableLLM(str.upper, concurrency=1).complete(request))
        assert reply.text == "P"
    heard = []
    model = FakeLLM(script=lambda request: heard.append(request.system) or "x")
    with ParallelCalls(model) as runner:
        runner.run(["a"], "{input}", fence=True)
        runner.run(["a"], "{input}", fence=True, system="S")
    assert heard == [RULE, f"S\n\n{RULE}"]
    with ParallelCalls(str.upper) as runner:
        result = runner.run(["a"], "{input}", fence=True)
    assert result.outputs[0].startswith("<DOCUMENT ID=")


# The arguments of a client.


@pytest.mark.parametrize("given_by", ["argument", "variable"])
def test_a_client_of_a_fleet_has_no_concurrency(monkeypatch, given_by):
    if given_by == "variable":
        monkeypatch.setenv("FANOUT_BROKER_URL", NOBODY)
    url = NOBODY if given_by == "argument" else None
    with pytest.raises(SpecError, match=r"concurrency: has no effect with a broker.*leave it out"):
        Client(url, concurrency=4)
    # A cap of the whole fleet is something else.
    with pytest.raises(BrokerError):
        ParallelCalls("fake", 4, broker_url=url).run(["a"], "{input}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"script": str, "fail_rate": 0.5}, "fail_rate has no effect with a script"),
        ({"script": str, "answer": "x"}, "answer has no effect with a script"),
        ({"fail_kind": "timeout"}, "fail_kind has no effect with neither"),
        ({"retry_after_s": 3.0, "fail_rate": 0.5}, "retry_after_s has no effect with no calls"),
        ({"retry_after_s": 3.0}, "retry_after_s has no effect"),
    ],
)
def test_an_option_of_the_fake_without_effect_is_refused(options, words):
    with pytest.raises(ModelError, match=words):
        FakeLLM(**options)


def test_the_window_of_a_fake_counts_that_is_passed_as_it_is():
    model = register_callable(FakeLLM(context_tokens=300))
    try:
        assert context_tokens(model) == 300
    finally:
        unregister_callable(model)


# Variables of the environment. What one role of a machine has no use of is another one's.

VARIABLES = {
    "broker_url", "broker_url_file", "model", "key_prefix", "storage", "run_ttl_s",
    "cache_mb", "cache_ttl_s", "visibility_timeout_s", "reaper_interval_s", "grace_s",
    "max_deliveries", "queues", "batch_calls", "batch_wait_s", "batch_poll_s",
    "worker_name", "pool", "allowed_callables", "read_schemes", "max_message_kb", "max_output_kb",
    "log_format", "traces", "task_events", "flower_password", "flower_password_file", "cache_dir",
    "state_dir", "prices", "confirm_usd",
    "budget_usd_per_day", "budget_calls_per_day", "budget_tokens_per_day",
}  # fmt: skip
REFUSED = {
    "broker_ca_file": ({"FANOUT_BROKER_CA_FILE": "/x"}, "the broker's URL is not rediss"),
    "stall_s": ({"FANOUT_STALL_S": "9", "FANOUT_REAPER_INTERVAL_S": "0"}, "has no effect"),
    "traces_branch_ratio": ({"FANOUT_TRACES_BRANCH_RATIO": "0.1"}, "FANOUT_TRACES is off"),
    "autoscale": ({"FANOUT_AUTOSCALE": "8,2"}, "works with the prefork pool only"),
}
# Of one command each: see below, and test_flower.
OF_COMMANDS = {"concurrency", "flower_user"}


def test_every_variable_has_an_entry():
    assert sorted([*VARIABLES, *REFUSED, *OF_COMMANDS]) == sorted(Settings.model_fields)


@pytest.mark.parametrize("name", REFUSED)
def test_a_variable_without_effect_is_refused(monkeypatch, name):
    variables, words = REFUSED[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^FANOUT_{name.upper()}: .*{words}"):
        load_settings()


# Options of the commands.

EFFECTIVE = {
    "--address", "--broker-url", "--control", "--dry-run", "--fail-under", "--help",
    "--interval", "--json", "--kind", "--limit", "--loglevel", "--model", "--name", "--out", "--pool",
    "--port", "--queues",
    "--quiet", "--report", "--status", "--storage", "--stream", "--summary", "--token-file", "--wait",
    "--within",
}  # fmt: skip
PREFORK = {"FANOUT_POOL": "prefork", "FANOUT_AUTOSCALE": "4,2"}
LISTEN = ["metrics", "--no-auth", "--token-file", "/etc/hostname"]
WITHOUT_EFFECT = [
    (["run", TEXT, "-m", "fake", "-p", "x", "--force"], {}, "--force has no effect without --out"),
    (["run", TEXT, "-m", "fake", "-p", "x", "--out-mode", "600"], {}, "--out-mode has no effect"),
    (["run", TEXT, "-m", "fake", "-p", "x", "--wide"], {}, "--wide has no effect without --out"),
    (["run", TEXT, "-m", "fake", "-p", "x", "--wide", "--out", "d/"], {},
     "--wide has no effect on a folder"),
    (["run", TEXT, "-m", "fake", "-p", "x", "--wide", "--out", "o.csv"], {},
     "--wide has no effect: the run has one answer for each chunk"),
    (["run", TEXT, "-m", "fake", "-p", "x", "--stream", "--json"], {}, "leave one of them out"),
    *[
        (["run", TEXT, "-m", "fake", "-p", "x", "--dry-run", *words], {}, "has no effect with --dry-run")
        for words in (["--out", "d/"], ["--report", "r.html"], ["--stream"], ["--yes"])
    ],
    (["eval", "latest", "--metric", "macro_f1"], {}, "--metric has no effect without --fail-under"),
    (["eval", "latest", "--yes"], {}, "--yes has no effect on a run"),
    (["results", "latest", "--wide"], {}, "--wide has no effect without --out"),
    (["results", "latest", "--force"], {}, "--force has no effect without --out"),
    (["results", "latest", "--out-mode", "640"], {}, "--out-mode has no effect without --out"),
    (LISTEN, {}, "--no-auth lets everybody read"),
    (LISTEN[:2], {"FANOUT_METRICS_TOKEN_FILE": "/etc/hostname"}, "--no-auth lets everybody read"),
    (["worker", "--concurrency", "4", "--pool", "prefork", "--autoscale", "4,2"], {},
     "--concurrency: has no effect, as --autoscale takes"),
    (["worker", "--concurrency", "4"], PREFORK, "as FANOUT_AUTOSCALE takes its place"),
    (["worker"], {**PREFORK, "FANOUT_CONCURRENCY": "4"}, "FANOUT_CONCURRENCY: has no effect"),
    (["worker", "--concurrency", "4", "--pool", "solo"], {}, "no effect with --pool solo"),
]  # fmt: skip


def test_every_option_of_a_command_has_an_entry():
    of_jobs = {o for p in click.command("x")(job_options(lambda: None)).params for o in p.opts}
    known = EFFECTIVE | of_jobs | {word for words, _, _ in WITHOUT_EFFECT for word in words}
    for name in _COMMANDS:
        for option in command_of(name).params:
            assert not isinstance(option, click.Option) or known & set(option.opts), option.opts


@pytest.mark.parametrize(("arguments", "variables", "words"), WITHOUT_EFFECT)
def test_an_option_without_effect_is_refused(inputs, monkeypatch, arguments, variables, words):
    for name, value in {"FANOUT_BROKER_URL": NOBODY, **variables}.items():
        monkeypatch.setenv(name, value)
    done = invoked(*arguments)
    # Before anything else is done, such as to look for the broker.
    assert words in " ".join(f"{done.output} {done.exception}".split())
    assert done.exit_code != 0
