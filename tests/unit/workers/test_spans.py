"""Spans of runs, shards, branches and calls: a tree of which each worker writes a part."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fanout.core.errors import LLMError, SettingsError
from fanout.core.ids import BranchId, ShardId, StageId
from fanout.core.records import ErrorKind, Outcome, RunStatus, Usage
from fanout.core.settings import load_settings
from fanout.core.state import RecordRequest
from fanout.core.trace_settings import check_traces
from tests.fakes import RUN, FakeContext, record_one, run_branch
from workers.context.inflight import StopReason
from workers.reduce.stages import collect, expand
from workers.telemetry.reports import Calls, Telemetry, make_telemetry
from workers.telemetry.spans import Tracing, provider_and_model

CANARY = "canary-7f3a"


class Traced(FakeContext):
    """A worker that keeps the spans that it writes."""

    telemetry: Tracing

    def __init__(self, *, branch_ratio=1.0, **fields):
        super().__init__(**fields)
        self.exporter = InMemorySpanExporter()
        self.report_to(self.another(branch_ratio))

    def another(self, branch_ratio=1.0):
        """What another worker of the same fleet would tell with."""
        return Tracing(
            self.store.run,
            branch_ratio=branch_ratio,
            exporter=self.exporter,
        )

    @property
    def spans(self):
        self.telemetry._provider.force_flush()
        return self.exporter.get_finished_spans()

    def tree(self):
        """What is below what, as names and a word each."""
        ids = {span.context.span_id: span for span in self.spans}
        assert len(ids) == len(self.spans), "an id twice"
        assert len({span.context.trace_id for span in self.spans}) == 1
        children = {}
        for span in sorted(self.spans, key=lambda span: (span.start_time, where(span))):
            parent = span.parent.span_id if span.parent else None
            assert parent is None or parent in ids, f"{span.name} has a parent that is not there"
            children.setdefault(parent, []).append(span)

        def below(parent):
            return [(word(s), below(s.context.span_id)) for s in children.get(parent, [])]

        return below(None)


def where(span):
    names = ("fanout.stage", "fanout.shard", "fanout.index", "fanout.attempt")
    return tuple(span.attributes.get(name, -1) for name in names)


def word(span):
    outcome = span.attributes.get("fanout.outcome") or span.attributes.get("error.type") or "ok"
    return f"{span.name.removeprefix('fanout.')} {outcome}"


def named(spans, name):
    return [span for span in spans if span.name == name]


def test_a_run_is_a_tree_of_its_shards_branches_and_calls():
    context = Traced(retries={"max_attempts": 2, "base_wait_s": 0.01}, reduce="none")
    replies = iter(["fine", LLMError(ErrorKind.TIMEOUT, CANARY), "at last"])
    context.answer = lambda request: (
        LLMError(ErrorKind.BAD_REQUEST, CANARY) if "bad" in request.prompt else next(replies)
    )
    context.write(["a", "b", "bad"], max_branches=2)
    context.process()
    assert context.tree() == [
        (
            "run ok",
            [
                (
                    "shard ok",
                    [
                        ("branch succeeded", [("chat fake ok", [])]),
                        ("branch succeeded", [("chat fake timeout", []), ("chat fake ok", [])]),
                    ],
                ),
                ("shard ok", [("branch bad_request", [("chat fake bad_request", [])])]),
            ],
        )
    ]
    assert CANARY not in " ".join(span.to_json() for span in context.spans)


def test_a_tree_reduce_is_further_shards_of_the_run():
    context = Traced(
        aggregate_prompt="sum {input}", context_tokens=1100, aggregate_max_tokens=20, reduce="llm"
    )
    context.answer = lambda request: "so it is " * (2 if request.prompt.startswith("sum") else 100)
    context.write([f"text {n}" for n in range(12)])
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage)
        stage += 1
    ((run, shards),) = context.tree()
    assert run == "run ok"
    assert len(shards) == stage >= 3, "each stage is one shard here"
    assert [len(branches) for _, branches in shards][-1] == 1
    assert named(context.spans, "fanout.run")[0].attributes["fanout.stages"] == stage


def test_all_workers_write_the_same_ids():
    first, second = Traced(), Traced()
    for context in (first, second):
        context.write(["a", "b"])
        context.process()
    ids = [{(s.context.trace_id, s.context.span_id) for s in r.spans} for r in (first, second)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == len(first.spans)


def test_a_call_is_described_as_the_conventions_want_it():
    context = Traced(temperature=0.5, max_tokens=7, seed=4)
    context.write([CANARY])
    context.process()
    (call,) = named(context.spans, "chat fake")
    usage = {key: call.attributes[key] for key in call.attributes if "usage" in key}
    assert call.kind is SpanKind.CLIENT
    assert {key: value for key, value in call.attributes.items() if key not in usage} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "fanout",
        "gen_ai.request.model": "fake",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.seed": 4,
        "fanout.run.id": RUN,
        "fanout.attempt": 1,
        "fanout.cost_usd": 0.0,
    }
    assert usage.pop("gen_ai.usage.cache_read.input_tokens") == 0
    assert usage.pop("gen_ai.usage.cache_creation.input_tokens") == 0
    assert usage.keys() == {"gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"}
    assert all(value > 0 for value in usage.values())


def test_a_span_says_how_a_branch_ended_and_when():
    context = Traced(retries={"max_attempts": 1})
    context.answer = lambda request: LLMError(ErrorKind.SERVER_ERROR, "down")
    context.write(["a"])
    context.process()
    (branch,) = named(context.spans, "fanout.branch")
    (call,) = named(context.spans, "chat fake")
    (run,) = named(context.spans, "fanout.run")
    assert dict(branch.attributes) == {
        "fanout.run.id": RUN,
        "fanout.stage": 0,
        "fanout.shard": 0,
        "fanout.index": 0,
        "fanout.attempts": 1,
        "fanout.outcome": "server_error",
        "error.type": "server_error",
    }
    assert (branch.status.status_code, branch.status.description) == (StatusCode.ERROR, None)
    assert branch.start_time <= call.start_time <= call.end_time <= branch.end_time
    assert (run.attributes["fanout.run.status"], run.status.status_code) == (
        "failed",
        StatusCode.ERROR,
    )
    assert run.start_time == 1_000_000_000, "the run was created a second after the epoch"


def test_a_branch_that_is_delivered_again_has_one_span():
    context = Traced()
    context.write(["a"])
    run_branch(context, BranchId(RUN, 0, 0, 0))
    run_branch(context, BranchId(RUN, 0, 0, 0))
    assert len(named(context.spans, "fanout.branch")) == 1


def test_a_branch_whose_outcome_was_not_the_first_has_no_span():
    context = Traced()
    context.write(["a"])

    def told(request):
        record_one(context.store, RecordRequest(BranchId(RUN, 0, 0, 0), outcome()))
        return "too late"

    context.answer = told
    run_branch(context, BranchId(RUN, 0, 0, 0))
    assert context.spans == ()


def test_a_shard_that_is_collected_again_has_one_span():
    context = Traced()
    context.write(["a"])
    run_branch(context, BranchId(RUN, 0, 0, 0))
    collect(context, [], ShardId(RUN, 0, 0))
    collect(context, [], ShardId(RUN, 0, 0))
    assert len(named(context.spans, "fanout.shard")) == 1


def test_a_branch_whose_call_was_stopped_says_so():
    context = Traced()
    context.write(["a"])
    context.models.in_flight.stop = StopReason.HALTED
    with pytest.raises(Exception, match="cancelled"):
        run_branch(context, BranchId(RUN, 0, 0, 0))
    assert [word(span) for span in context.spans] == ["branch cancelled"]


def test_a_retry_is_a_trace_of_its_own_that_names_the_first():
    context = Traced(retries={"max_attempts": 1})
    context.answer = lambda request: ValueError("no") if "b" in request.prompt else "fine"
    context.write(["a", "b"])
    context.process()
    (first,) = named(context.spans, "fanout.run")
    context.exporter.clear()
    context.store.reopen_run(RUN, retry=frozenset({ErrorKind.INTERNAL}))
    # A worker looks again after some seconds.
    context.report_to(context.another())
    expand(context, ShardId(RUN, 0, 0))
    context.process()
    ((run, ((_, branches),)),) = context.tree()
    assert (run, len(branches)) == ("run ok", 1)
    (again,) = named(context.spans, "fanout.run")
    assert again.context.trace_id != first.context.trace_id
    assert [link.context.span_id for link in again.links] == [first.context.span_id]


def outcome(**fields):
    return Outcome(**{"index": 0, "output": "x", "attempts": 1, "usage": Usage(calls=1), **fields})


def test_of_many_ordinary_branches_a_share_has_spans_and_of_others_all():
    context = Traced(branch_ratio=0.1)
    for position in range(300):
        context.telemetry.branch(BranchId(RUN, 0, 0, position), outcome(), Calls(1.0))
    kept = {span.context.span_id for span in context.spans}
    assert 10 <= len(kept) <= 60
    context.exporter.clear()
    again = context.another(0.1)
    for position in range(300):
        again.branch(BranchId(RUN, 0, 0, position), outcome(), Calls(1.0))
    again._provider.force_flush()
    assert {s.context.span_id for s in context.exporter.get_finished_spans()} == kept, "the same"
    context.exporter.clear()
    for position in range(20):
        failed = outcome(output=None, kind=ErrorKind.TIMEOUT)
        context.telemetry.branch(BranchId(RUN, 0, 1, position), failed, Calls(1.0))
        context.telemetry.branch(BranchId(RUN, 0, 2, position), outcome(attempts=2), Calls(1.0))
    assert len(context.spans) == 40


@pytest.mark.parametrize("sampler", ["parentbased_traceidratio", "traceidratio"])
def test_a_run_is_sampled_as_a_whole(monkeypatch, sampler):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    context = Traced()
    for number in range(40):
        run = f"run{number}"
        context.store.create_run(run, spec="{}", created_at=1.0)
        context.telemetry.branch(BranchId(run, 0, 0, 0), outcome(), Calls(1.0))
        context.telemetry.shard(ShardId(run, 0, 0), [outcome()])
        context.telemetry.run(context.store.run(run), [context.store.stage(StageId(run, 0))])
    runs = [span.attributes["fanout.run.id"] for span in context.spans]
    assert {runs.count(run) for run in runs} == {3}
    assert 5 <= len(set(runs)) <= 35


class Broken(SpanExporter):
    def export(self, spans):
        raise OSError(CANARY)


class Away(SpanExporter):
    """A collector that takes its time."""

    def __init__(self):
        self.is_shut = False

    def export(self, spans):
        logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").error("away")
        return SpanExportResult.FAILURE

    def shutdown(self):
        self.is_shut = True


@pytest.mark.parametrize("exporter", [Broken(), Away()])
def test_a_collector_that_is_away_hurts_no_run_and_says_little(exporter, monkeypatch, caplog):
    monkeypatch.setattr("workers.telemetry.spans._COMPLAINT_FILTER._next", float("-inf"))
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    context = FakeContext()
    context.report_to(Tracing(context.store.run, exporter=exporter))
    context.write([f"t{n}" for n in range(50)])
    context.process()
    context.telemetry.close()
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    complaints = [r for r in caplog.records if r.name.startswith("opentelemetry")]
    assert len(complaints) == 1
    assert complaints[0].exc_info is None


def test_a_fault_of_the_telling_hurts_no_branch(caplog):
    class Faulty(Telemetry):
        def branch(self, *_):
            raise ValueError(CANARY)

    context = FakeContext()
    context.report_to(Faulty())
    context.write(["a", "b"])
    context.process()
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("model", "known_as"),
    [
        ("openai/gpt-5-mini", ("openai", "gpt-5-mini")),
        ("anthropic/claude-sonnet-4-5", ("anthropic", "claude-sonnet-4-5")),
        ("litellm/azure/my-gpt", ("azure.ai.openai", "my-gpt")),
        ("litellm/groq/llama/3", ("groq", "llama/3")),
        ("fake?latency_s=1", ("fanout", "fake")),
        ("local", ("fanout", "local")),
        ("package.module:function", ("fanout", "package.module:function")),
    ],
)
def test_a_model_string_becomes_a_provider_and_a_model(model, known_as):
    assert provider_and_model(model) == known_as


def test_traces_need_their_extra(monkeypatch):
    settings = load_settings(traces="otlp")
    check_traces(settings)
    monkeypatch.setattr("fanout.core.trace_settings.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=re.escape("pip install 'fanout-llm[otel]'")):
        check_traces(settings)
    check_traces(load_settings())


def test_only_the_protocol_that_is_spoken_is_accepted(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL: .* \(got 'grpc'\)"):
        check_traces(load_settings(traces="otlp"))


def test_the_sdk_can_be_disabled_as_everywhere(monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "True")
    assert isinstance(make_telemetry(load_settings(traces="otlp"), print), Telemetry)


def test_without_traces_nothing_of_the_extra_is_imported():
    """redis-py and Anthropic's SDK import other parts of OpenTelemetry where these are there."""
    code = (
        "import json, sys, workers.app\n"
        "context = workers.app.app.context\n"
        "context.reports.close()\n"
        "print(json.dumps([name for name in sys.modules if 'opentelemetry' in name]))\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd="/")
    loaded = json.loads(shown.stdout)
    assert not [name for name in loaded if re.search(r"exporter|proto|sdk\.trace", name)]
