"""What the page of a run says, from branches that are made up."""

from __future__ import annotations

import ast
import itertools
import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jinja2 import nodes
from jinja2.filters import FILTERS

from fanout.aggregators import Aggregate, Coverage, Source
from fanout.cli.progress import summary
from fanout.core.latency import Latency, bucket_of
from fanout.core.passage_uses import PassageUse
from fanout.core.records import ErrorKind, RunStatus, StepOutcome, Usage, total_usage
from fanout.core.spec import make_spec
from fanout.core.units import duration, plain
from fanout.report import figures, gather
from fanout.report.charts import Bar, Chart, Tick, draw, linear_ticks, log_ticks, time_ticks
from fanout.report.page import Facts, _environment, page
from fanout.report.slices import _WIDTHS_MS
from fanout.report.text import clean, cut, one_line
from fanout.runs.branch_output import Output
from fanout.runs.result_values import ResultValues
from fanout.runs.status import ReduceError, StageStatus, Status, StoredResult
from tests.memory import peak_bytes

BORN = 1_700_000_000.0
SPEC = make_spec(model="fake", prompt="Is it good? {input}", reduce="concat")
NASTY = (
    "<script>alert(1)</script></style><img src=x onerror='alert(2)'>\"quotes\" & \x00\x1b[31m "
    "\u202eoverride \u200f\u05de\u05d1\u05d7\u05df العربية 🧪 \ud800 " + "W" * 300 + "]]>--><!--"
)


def branch(index=0, kind=None, **fields):
    given = {
        "index": index, "document": f"item {index + 1}", "document_index": index, "chunk": index,
        "position": 0, "start": 0, "end": 1, "aspect": None, "sample": 0,
        "output": None if kind else "yes", "kind": kind, "message": "away" if kind else None,
        "attempts": 1, "usage": Usage(calls=1, input_tokens=10, output_tokens=2, cost_usd=0.5),
        "elapsed_s": 1.0, "ended_at": BORN + 1,
    }  # fmt: skip
    return Output(**{**given, **fields})


def facts(branches=(), *, stored=None, spec=SPEC, **fields):
    branches = list(branches)
    ok = sum(one.kind is None for one in branches)
    given = {
        "run_id": "r1", "status": RunStatus.SUCCEEDED, "total": len(branches),
        "done": len(branches), "succeeded": ok, "failed": len(branches) - ok, "errors": {},
        "usage": Usage(calls=len(branches)), "created_at": BORN, "elapsed_s": 42.0, "stage": 0,
        "error": None, "workers": 1,
    }  # fmt: skip
    return Facts(
        status=Status(**{**given, **fields}),
        spec=spec,
        figures=gather(branches, created_at=BORN),
        values=ResultValues(stored or StoredResult()),
        made_at=BORN + 60,
    )


class Reader(HTMLParser):
    """Reads a page as a browser would: its elements, its text, and what it would load."""

    VOID = frozenset({"meta", "link"})

    def __init__(self, source):
        super().__init__()
        self.elements, self.open, self.words, self.ids = [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        self.ids += [value for key, value in attributes if key == "id"]
        if name not in self.VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def attributes(self, name):
        return [found for element, found in self.elements if element == name]


def read(*arguments, **fields):
    return Reader(page(facts(*arguments, **fields)))


def test_outcomes_are_counted_by_kind_attempts_aspect_and_document():
    kinds = [None, ErrorKind.TIMEOUT, None, ErrorKind.TIMEOUT, ErrorKind.AUTH, ErrorKind.AUTH]
    branches = [
        branch(
            i, kind, attempts=i, aspect="ab"[i % 2], document_index=i // 2, document=f"d{i // 2}"
        )
        for i, kind in enumerate(kinds)
    ]
    figures = gather(branches, created_at=BORN)
    assert (figures.succeeded, figures.failed, figures.calls) == (2, 4, 15)
    assert [(row.kind, row.count) for row in figures.errors] == [("auth", 2), ("timeout", 2)]
    assert [(a.attempts, a.succeeded, a.failed) for a in figures.attempts] == [
        (0, 1, 0), (1, 0, 1), (2, 1, 0), (3, 0, 1), (4, 0, 1), (5, 0, 1),
    ]  # fmt: skip
    assert [(t.name, t.succeeded, t.failed) for t in figures.aspects] == [("a", 2, 1), ("b", 0, 3)]
    documents = figures.documents
    assert (documents.complete, documents.partial, documents.failed) == (0, 2, 1)
    assert [(one.name, one.failed) for one in documents.worst] == [("d2", 2), ("d0", 1), ("d1", 1)]
    # The first one made no call: nothing is known of how long a call takes from it.
    assert figures.durations.count == 5


def test_examples_of_errors_differ_where_they_can():
    messages = ["a", "a", "a", "a", "b"]
    branches = [branch(i, ErrorKind.LOST, message=text) for i, text in enumerate(messages)]
    [row] = gather(branches, created_at=BORN).errors
    assert [(one.branch.index, one.message) for one in row.examples] == [
        (0, "a"),
        (1, "a"),
        (4, "b"),
    ]


def test_the_slowest_are_the_slowest_and_the_answers_come_from_all_over():
    branches = [branch(i, elapsed_s=(i * 37) % 1000 / 100) for i in range(1000)]
    figures = gather(branches, created_at=BORN)
    assert [place.elapsed_s for place in figures.slowest] == [n / 100 for n in range(999, 979, -1)]
    indices = [one.branch.index for one in figures.answers]
    assert 5 <= len(indices) <= 10
    gaps = {after - before for before, after in itertools.pairwise(indices)}
    assert len(gaps) == 1
    assert indices[-1] > 800


def test_percentiles_are_off_by_two_percent_at_most_and_no_branch_is_lost():
    kinds = itertools.cycle([None, None, ErrorKind.TIMEOUT])
    took = [0.01 * 1.001**i for i in range(5000)]
    branches = [branch(i, next(kinds), elapsed_s=s) for i, s in enumerate(took)]
    figures = gather(branches, created_at=BORN).durations
    assert figures.p50_s == pytest.approx(took[2499], rel=0.02)
    assert figures.p99_s == pytest.approx(took[4949], rel=0.02)
    assert (figures.least_s, figures.most_s) == (took[0], took[-1])
    assert figures.mean_s == pytest.approx(sum(took) / 5000)
    assert sum(one.succeeded for one in figures.bins) == 3334
    assert sum(one.failed for one in figures.bins) == 1666
    assert all(a.high_s == pytest.approx(b.low_s) for a, b in itertools.pairwise(figures.bins))
    assert len(figures.bins) <= 40


def test_a_histogram_tells_microseconds_apart():
    took = [12e-6, 14e-6, 17e-6, 30e-6]
    bins = gather([branch(elapsed_s=s) for s in took], created_at=BORN).durations.bins
    assert [one.succeeded for one in bins if one.succeeded] == [1, 1, 1, 1]


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 0.5, 1e9])
def test_durations_that_are_all_alike_have_a_chart(seconds):
    branches = [branch(i, elapsed_s=seconds) for i in range(3)]
    figures = gather(branches, created_at=BORN).durations
    assert (figures.p50_s, figures.p99_s) == (seconds, seconds)
    assert sum(one.succeeded for one in figures.bins) == 3
    assert "NaN" not in page(facts(branches))


@pytest.mark.parametrize(
    ("count", "span_s", "width_s"),
    [(1, 0.5, 0.1), (100_000, 10, 0.1), (100_000, 100, 1), (27, 240, 30), (9000, 86_400, 1800)],
)
def test_slices_are_few_and_of_a_round_width(count, span_s, width_s):
    branches = (branch(i, ended_at=BORN + span_s * i / count) for i in range(count))
    over_time = gather(branches, created_at=BORN).over_time
    assert over_time.width_s == width_s
    assert sum(one.succeeded for one in over_time.slices) == count
    assert sum(one.input_tokens for one in over_time.slices) == 10 * count
    assert len(over_time.slices) <= 120


def test_a_slice_holds_what_ended_in_it_regardless_of_order_and_clocks():
    ended = [95.0, 3.0, -7.0, 50.0, 50.5] * 100
    branches = [branch(i, ended_at=BORN + at) for i, at in enumerate(ended)]
    branches += [branch(501, ErrorKind.LOST, ended_at=0.0)]
    over_time = gather(branches, created_at=BORN).over_time
    filled = {one.start_s: one.succeeded for one in over_time.slices if one.succeeded}
    width_s = over_time.width_s
    assert filled == {at // width_s * width_s: n for at, n in
                      {95: 100, 3: 100, -7: 100, 50: 200}.items()}  # fmt: skip
    assert over_time.undated == 1


def test_slices_of_a_run_of_years_are_few():
    branches = [branch(0), branch(1, ended_at=BORN + 5e8), branch(2, ended_at=1.0)]
    over_time = gather(branches, created_at=BORN).over_time
    assert sum(one.succeeded for one in over_time.slices) == 3
    assert len(over_time.slices) <= 120


def test_widths_of_slices_divide_each_other():
    assert [b % a for a, b in itertools.pairwise(_WIDTHS_MS)] == [0] * (len(_WIDTHS_MS) - 1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "498 of 500 branches (99.6%) succeeded in 42 s"),
        ({"status": RunStatus.RUNNING, "total": 900},
         "So far, 500 of 900 branches (55.6%) have ended"),
        ({"status": RunStatus.ENQUEUING, "total": 900},
         "So far, 500 of 900 or more branches (55.6%) have ended"),
        ({"elapsed_s": 3729.0}, "498 of 500 branches (99.6%) succeeded in 1 h 2 min"),
    ],
)  # fmt: skip
def test_the_headline_says_what_the_run_came_to(fields, said):
    kinds = [ErrorKind.TIMEOUT] * 2 + [None] * 498
    source = page(facts([branch(i, kind) for i, kind in enumerate(kinds)], **fields))
    [headline] = map(Reader, re.findall("<h1>.*?</h1>", source, re.DOTALL))
    assert headline.text == said


def test_what_is_not_known_is_said_to_be_unknown_and_what_is_known_is_a_least():
    unknown = Usage(calls=1)
    branches = [branch(0), branch(1, usage=unknown), branch(2, ErrorKind.TIMEOUT, usage=unknown)]
    text = read(branches, usage=total_usage([one.usage for one in branches])).text
    assert "Tokens unknown at least 10 in, 2 out: 1 of 2 answers came with a count" in text
    assert "Cost unknown at least $0.50: the cost of 1 of 2 answers is known" in text
    # A call that was given up, and the answer of another one.
    both = Usage(calls=2, at_least={"input_tokens": 10, "output_tokens": 2, "cost_usd": 0.5})
    half = read([branch(0, usage=both, attempts=2)], usage=both, saved=both).text
    assert half.count("nothing is known of some calls") == 2
    assert "1 again, after one that failed or was given up" in half
    assert "at least $0.50 saved" in half
    none = read([branch(0, usage=unknown)]).text
    assert "Tokens unknown no answer came with a count" in none
    assert "Cost unknown no price is known" in none
    known = read([branch(0)], usage=Usage(calls=1, input_tokens=9, output_tokens=1, cost_usd=2.0))
    assert "Tokens 10 9 in, 1 out" in known.text
    cached = Usage(calls=1, input_tokens=9, output_tokens=1, cached_input_tokens=4)
    assert "Tokens 10 9 in (4 cached), 1 out" in read([branch(0)], usage=cached).text
    assert "Cost $2.00" in known.text


@pytest.mark.parametrize("status", list(RunStatus))
def test_a_run_without_a_branch_has_a_page(status):
    reader = read(status=status, error="there was nothing to do")
    assert f"{status.value} Run r1 The run has" in reader.text
    assert "there was nothing to do" in reader.text
    assert "What was asked" in reader.text
    assert "nan" not in reader.text.lower()


def test_the_question_comes_first():
    reader = read([branch(0)])
    headings = [found.get("id") for found in reader.attributes("h2")]
    assert headings[0] == "question"
    assert headings[-1] == "settings"
    assert reader.text.index("Is it good?") < reader.text.index("Succeeded")


@pytest.mark.parametrize("value", [None, "all in all, yes"])
def test_only_where_there_is_an_aggregate_it_is_said_to_be_below(value):
    made = Aggregate(value=value, succeeded=1, failed=0, notes=[])
    reader = read([branch(0)], stored=StoredResult(aggregates={"": made}))
    assert ("The aggregate is below." in reader.text) is (value is not None)


def test_each_statement_is_linked_to_its_sources():
    one = Source(
        id="s-aaaaaaa", document="<b>.pdf", pages=(3, 4), position=1, is_part=True, index=7, count=2
    )
    text = "Red [s-aaaaaaa], blue [s-bbbbbbb] <i>"
    made = Aggregate(value=text, sources=[one])
    html = page(facts([branch(0)], stored=StoredResult(aggregates={"": made})))
    link = '<a href="#source-0-s-aaaaaaa" title="&lt;b&gt;.pdf, pages 3-4, chunk 1">[s-aaaaaaa]</a>'
    assert f"Red {link}, blue [s-bbbbbbb] &lt;i&gt;" in html
    assert '<tr id="source-0-s-aaaaaaa">' in html
    reader = read([branch(0)], stored=StoredResult(aggregates={"": made}))
    assert "Source Document Cited [s-aaaaaaa] <b>.pdf, pages 3-4, chunk 1 2" in reader.text


def test_what_is_behind_an_aggregate_and_why_there_is_none():
    whole = Coverage(documents=2, documents_behind=2, branches=2, branches_behind=2)
    none = Coverage(branches=2, branches_behind=1, missing={"timeout": 1}, problem="too little")
    made = {"a": Aggregate(value="x", coverage=whole), "b": Aggregate(value=None, coverage=none)}
    spec = make_spec(model="fake", prompt="{input}", reduce="concat", group_by="document")
    text = read([branch(0)], stored=StoredResult(aggregates=made), spec=spec).text
    assert "Behind it: 2 of 2 branches (100.0%), 2 of 2 documents" in text
    assert "There is no aggregate: too little" in text
    assert "failed: timeout 1" in text
    assert text.count("Behind it:") == 2


def test_a_reason_that_says_what_is_behind_an_aggregate_is_enough():
    some = Coverage(branches=2, branches_behind=1, missing={"timeout": 1})
    some = msgspec.structs.replace(some, problem=f"too little is behind it: {some.words}")
    made = {"": Aggregate(value=None, coverage=some)}
    text = read([branch(0)], stored=StoredResult(aggregates=made)).text
    assert "There is no aggregate: too little is behind it: 1 of 2 branches" in text
    assert text.count("1 of 2 branches") == 1


def test_votes_of_groups_are_one_table():
    def votes(**given):
        return Aggregate(
            value={"winner": "yes", "tied": [], "votes": given, "share": 0.5},
            succeeded=4, failed=0, notes=[],
        )  # fmt: skip

    spec = make_spec(model="fake", prompt="{input}", reduce="vote", group_by="who")
    stored = StoredResult(aggregates={"Ann": votes(yes=3, no=1), "Bob": votes(no=2)})
    text = read([branch(0)], stored=stored, spec=spec).text
    assert "Group yes no Votes Ann 3 (75.0%) 1 (25.0%) 4 Bob 0 (0%) 2 (100%) 2" in text


def test_the_part_of_the_input_that_was_taken_is_a_setting():
    part = {"where": "stars <= 2", "sample": 20, "limit": 5, "id_column": "sku"}
    text = read([branch(0)], spec=make_spec(model="fake", prompt="{input}", **part)).text
    assert "where stars <= 2 sample 20 limit 5 id_column sku" in text
    assert "where" not in read([branch(0)], spec=SPEC).text


def test_the_answers_of_a_vote_are_no_calls_that_were_made_again():
    spec = make_spec(model="fake", prompt="{input}", samples=9, certainty=0.9)
    text = read(
        [branch(0, attempts=5, samples=5), branch(1, attempts=4, samples=3)], spec=spec
    ).text
    assert "1 again, after one that failed" in text
    assert "a branch asks for several answers, and a call may be made again" in text
    assert "tried again" not in text


def test_calls_are_told_apart_by_what_they_were_for():
    plan = StageStatus(stage=0, total=3, succeeded=3, failed=0, done=3, calls=3)
    for calls, fields, told in [
        (5, {}, "Calls 5 3 to split documents"),
        (6, {}, "Calls 6 3 to split documents; 1 before a retry of the run"),
        (6, {"aggregate_prompt": "{input}"},
         "3 to split documents; 1 by the aggregate, or before a retry of the run"),
    ]:  # fmt: skip
        spec = make_spec(model="fake", prompt="{input}", split="model", **fields)
        text = read([branch(0), branch(1)], spec=spec, plan=plan, usage=Usage(calls=calls)).text
        assert told in text
    steps = [{"name": "a", "prompt": "{input}"}, {"name": "b", "prompt": "{a}"}]
    text = read([branch(0, attempts=2)], spec=make_spec(model="fake", steps=steps)).text
    assert "Each step of a branch that asks a model makes one" in text
    assert "tried again" not in text


def test_titles_of_parts_and_passages_stand_beside_answers():
    uses = (
        PassageUse(id="p1", source="leave.md", title=hostile("Leave")),
        PassageUse(id="p2", share=0.0),
    )
    step = StepOutcome(name="a", output="x", passages=uses)
    for fields in ({"passages": uses}, {"step_records": (step, step)}):
        made = facts([branch(0, title=hostile("Payment"), text="T", **fields)])
        source = page(made)
        text = Reader(source).text
        assert f"item 1 · {hostile('Payment')} #0" in text
        assert f"passages: [p1] leave.md > {hostile('Leave')}" in text
        assert "p2" not in text
        assert "<script" not in source
        shown = made.figures.to_dict()["answers"][0]
        assert shown["branch"]["title"] == hostile("Payment")
        assert len(shown["passages"]) == 1


@pytest.mark.parametrize(
    ("fields", "shown", "absent"),
    [
        ({"split": "model", "split_prompt": "A law.", "split_max_tokens": 9},
         "1,000 tokens split_model fake split_prompt A law. split_max_tokens 9 split_gaps fill",
         "neighbours"),
        ({"split": "lines", "neighbours": 2, "prompt": "{before} {input}", "tokenizer": "bytes/3",
          "fence": False}, "split lines neighbours 2 tokenizer bytes/3 fence no", "split_model"),
        ({"retrieve": "https://ann:s3cretpassword@host/kb.csv", "prompt": "{input} {context}",
          "top_k": 3, "query": "{input}?", "passage_column": "body"},
         "host/kb.csv top_k 3 query {input}? passage_tokens 200 passage_column body",
         "s3cretpassword"),
        ({"retrieve": "own.module:find", "prompt": "{input} {context}"},
         "retrieve own.module:find top_k 5", "passage_tokens"),
        ({}, "output_format text", "max_reasks"),
        ({"output_format": "json", "labels": {"a": "gold"}, "max_reasks": 1},
         "output_format json max_reasks 1 after an answer that does not fit labels a=gold", "schema"),
        ({"choices": "good,bad", "reduce": "table", "by": "output", "measures": "count,share"},
         "by output measures count, share choices good, bad max_reasks 2", "output_format"),
        ({"schema": {"type": "object", "properties": {"a": {}, "b": {}}}, "reduce": "top",
          "by": "a", "k": 7},
         "by a k 7 schema an object with a, b max_reasks 2", "output_format"),
        ({"schema": {"type": "integer"}}, 'schema {"type": "integer"}', "output_format"),
        ({"reduce": "llm", "aggregate_prompt": "{input}", "aggregate_schema": {"type": "string"},
          "on_truncated": "keep", "prompt_order": "as_written", "lane": "flex",
          "model": "openai/x"},
         "on_truncated keep prompt_order as_written lane flex",
         "measures"),
        ({"aggregate_prompt": "{input}", "fold": "cluster", "embed": "own.words:vectors"},
         "fold cluster embed own.words:vectors", "measures"),
        ({"aggregate_prompt": "{input}", "fold": "cluster"}, "fold cluster", "embed"),
        ({"reduce": [{"name": "a", "llm": {"aggregate_prompt": "{input}"}, "fold": "refine"},
                     {"name": "b", "vote": True}]},
         "reduce.a.fold refine", "reduce.b.fold"),
    ],
)  # fmt: skip
def test_what_was_asked_of_the_answers_is_a_setting(fields, shown, absent):
    text = read(
        [branch(0)], spec=make_spec(**{"model": "fake", "prompt": "{input}", **fields})
    ).text
    settings = text.partition("Settings ")[2]
    assert shown in settings
    assert absent not in settings


def test_a_page_says_that_answers_were_cut_off_and_kept():
    assert "2 answers were cut off and kept" in read([branch(0)], kept_truncated=2).text
    assert "cut off" not in read([branch(0)]).text


def test_an_answer_stands_beside_its_text():
    reader = read([branch(0, text="The soup was cold.", output="negative")])
    assert "The soup was cold. negative" in reader.text


def test_bars_of_a_table_have_one_scale():
    branches = [branch(i, document_index=0, document="large") for i in range(3)]
    branches += [branch(3, ErrorKind.TIMEOUT, document_index=0, document="large")]
    branches += [branch(4, ErrorKind.TIMEOUT, document_index=1, document="small")]
    source = page(facts(branches))
    covered = source[source.index('id="coverage"') :]
    widths = re.findall(r'width="([0-9.]+)%"', covered[: covered.index("</section>")])
    assert sorted(map(float, widths)) == [25.0, 25.0, 75.0]


def test_the_page_and_the_command_line_say_the_same_percentiles():
    took_s = (0.2, 1.7, 40.0)
    counts = {bucket_of(one): 1 for one in took_s}
    latency = Latency(counts=counts, sum_s=41.9, least_s=0.2, most_s=40.0)
    branches = [branch(at, elapsed_s=one) for at, one in enumerate(took_s)]
    figures = gather(branches, created_at=BORN, latency=latency)
    line = summary(facts(branches, latency=latency).status)
    assert figures.durations.p99_s <= figures.durations.most_s == 40.0
    median, slow = duration(figures.durations.p50_s), duration(figures.durations.p99_s)
    assert plain(f"half took {median} at most, 99% {slow}") in line
    assert "in 42 s" in line


def test_an_aggregate_is_shown_by_its_kind():
    def shown(value, reduce="concat", **fields):
        spec = make_spec(model="fake", prompt="{input}", reduce=reduce, **fields)
        made = Aggregate(value=value, succeeded=2, failed=1, notes=["one is missing"])
        group = "Gold" if fields else ""
        stored = StoredResult(aggregates={group: made})
        return read([branch()], stored=stored, spec=spec).text

    assert "The aggregate all is well one is missing" in shown("all is well")
    assert '{ "a": [ 1 ] }' in shown({"a": [1]}, "merge")
    votes = {"winner": "yes", "tied": [], "votes": {"no": 1, "yes": 2}, "share": 2 / 3}
    assert "yes won with 66.7% of the 3 votes" in shown(votes, "vote")
    assert "yes 2 66.7% no 1 33.3%" in shown(votes, "vote")
    tie = {"winner": None, "tied": ["yes", "no"], "votes": {"no": 1, "yes": 1}, "share": 0.5}
    assert "A tie: 2 answers have 1 vote each." in shown(tie, "vote")
    nobody = {"winner": None, "tied": [], "votes": {}, "share": 0.0}
    assert "There are no votes." in shown(nobody, "vote")
    row = {"rank": 1, "score": 9.5, "index": 0, "document": "ann", "sample": 1, "output": "9.5!"}
    assert "1 9.5 ann · sample 2 9.5!" in shown([row], "rank")
    assert "1 1,000,000.01 ann" in shown([row | {"score": 1000000.01}], "top")
    assert "1 1,000,000 ann" in shown([row | {"score": 10**6}], "top")
    money = [{"sum:price": 2234568.2, "max:price": -1234567.89, "count": 1000}]
    assert "2,234,568.2 -1,234,567.89 1,000" in shown(money, "table", measures="count")
    assert "Gold 2 of 3 branches" in shown("x", group_by="document")


def test_a_failed_reduce_and_what_was_asked_are_shown():
    failure = ReduceError(group="", kind=ErrorKind.TIMEOUT, message="too slow", attempts=3)
    spec = make_spec(
        model="fake", aspects={"term": "How long? {input}"}, aggregate_prompt="Sum up: {input}",
        system="Be brief.", min_success=0.9, temperature=0.5, group_by="document",
    )  # fmt: skip
    stored = StoredResult(errors=[failure])
    text = read([branch(aspect="term")], stored=stored, spec=spec).text
    for said in ("(empty) timeout too slow 3", "Prompt term How long? {input}", "Sum up: {input}",
                 "Be brief.", "at least 90% must succeed", "temperature 0.5"):  # fmt: skip
        assert said in text


def test_settings_say_prices_of_the_job_and_that_it_takes_no_kept_answers():
    prices = {
        "*": {"input_mtok": 1, "output_mtok": 4},
        "fake": {"input_mtok": 0.25, "output_mtok": 2},
    }
    text = read(
        [branch(0)], spec=make_spec(model="fake", prompt="{input}", price=prices, cache=False)
    ).text
    for said in ("price $1 in and $4 out per million tokens",
                 "price of fake $0.25 in and $2 out per million tokens", "cache no"):  # fmt: skip
        assert said in text
    assert "cache no" not in read([branch(0)]).text


def nasty_page():
    branches = [
        branch(0, document=NASTY, aspect=NASTY, output=NASTY),
        branch(1, ErrorKind.INTERNAL, document=NASTY, aspect=NASTY, message=NASTY),
    ]
    spec = make_spec(model="fake", aspects={NASTY.replace("\ud800", ""): "<b>{input}</b>"},
                     reduce="vote", group_by="aspect", system="</style><script>")  # fmt: skip
    votes = {"winner": NASTY, "tied": [], "votes": {NASTY: 1}, "share": 1.0}
    made = Aggregate(value=votes, succeeded=1, failed=1, notes=[NASTY])
    failure = ReduceError(group=NASTY, kind=ErrorKind.TIMEOUT, message=NASTY, attempts=1)
    stored = StoredResult(aggregates={NASTY: made}, errors=[failure])
    return page(facts(branches, stored=stored, spec=spec, error=NASTY))


def test_nothing_in_a_document_gets_out_of_its_place():
    source = nasty_page()
    reader = Reader(source)
    assert {name for name, _ in reader.elements}.isdisjoint({"script", "img", "b", "iframe"})
    assert source.count("<style>") == source.count("</style>") == 1
    assert not any(key.startswith("on") for _, found in reader.elements for key in found)
    assert source.count("<!--") == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202d\u202e\ud800-\udfff]", source)
    source.encode()
    # It is not lost either.
    assert "<script>alert(1)</script></style>" in reader.text
    assert "␀␛[31m �override" in reader.text
    assert "\u05de\u05d1\u05d7\u05df العربية 🧪 �" in reader.text


def hostile(field):
    """Return a value that would leave an element, an attribute in either quotes, and a style."""
    return f"{field}\"'><script>alert(1)</script></style><b onclick=x>&amp;{{{{ 7 * 7 }}}}"


def hostile_facts(reduce, value):
    """A run each of whose texts is hostile, and names its field."""
    branches = [
        branch(0, document=hostile("document"), aspect=hostile("aspect"), sample=1,
               text=hostile("text"), output=hostile("output")),
        branch(1, ErrorKind.INTERNAL, document_index=1, document=hostile("failed document"),
               aspect=hostile("failed aspect"), message=hostile("message")),
    ]  # fmt: skip
    spec = make_spec(
        model=f"fake/{hostile('model')}", reduce=reduce, group_by=hostile("group_by"),
        aspects={hostile("prompt name"): hostile("prompt").replace("{{ 7 * 7 }}", "") + "{input}"},
        system=hostile("system"), stop=[hostile("stop")], samples=2,
    )  # fmt: skip
    spec = spec.model_copy(
        update={"inputs": [hostile("inputs")], "aggregate_prompt": hostile("aggregate_prompt")}
    )
    made = Aggregate(value=value, succeeded=1, failed=1, notes=[hostile("note")])
    failure = ReduceError(
        group=hostile("reduce group"), kind=ErrorKind.TIMEOUT, message=hostile("reduce message"),
        attempts=1,
    )  # fmt: skip
    stored = StoredResult(aggregates={hostile("group"): made}, errors=[failure])
    return facts(
        branches, stored=stored, spec=spec, error=hostile("error"), run_id=hostile("run_id")
    )


def test_no_credential_of_an_input_is_shown():
    url = "https://ann:s3cretpassword@host/a.pdf?X-Amz-Signature=deadbeef"
    request = json.dumps({"source": url})
    spec = SPEC.model_copy(update={"inputs": (url, "s3://b/c.txt", "plain.txt")})
    shown = page(facts([branch(text=request)], spec=spec))
    assert "s3cretpassword" not in shown
    assert "deadbeef" not in shown
    for part in ("host/a.pdf", "s3://b/c.txt, plain.txt"):
        assert part in shown


def hostile_pages():
    row = {"rank": 1, "score": 1.0, "document": hostile("ranked document"), "sample": 0,
           "aspect": hostile("ranked aspect"), "output": hostile("ranked output")}  # fmt: skip
    winner = hostile("winner")
    votes = {"winner": winner, "tied": [], "votes": {winner: 2, hostile("vote"): 1}}
    values = {"vote": votes, "rank": [row], "concat": hostile("aggregate"),
              "merge": {hostile("key"): hostile("value")}}  # fmt: skip
    return {reduce: page(hostile_facts(reduce, value)) for reduce, value in values.items()}


FIELDS = {
    "vote": (
        "document|aspect|text|output|failed document|failed aspect|message|model|group_by|prompt|"
        "prompt name|system|stop|inputs|aggregate_prompt|note|reduce group|reduce message|group|"
        "error|run_id|winner|vote"
    ),
    "rank": "ranked document|ranked aspect|ranked output",
    "concat": "aggregate",
    "merge": "key|value",
}


def test_every_template_escapes_every_field():
    pages = hostile_pages()
    for reduce, fields in FIELDS.items():
        reader = Reader(pages[reduce])
        # JSON and repr escape quotes before the template does.
        text = reader.text.replace('\\"', '"').replace("\\'", "'")
        for field in fields.split("|"):
            assert hostile(field).partition("{")[0] in text, field
        assert {name for name, _ in reader.elements}.isdisjoint({"script", "b"})
        assert not [key for _, found in reader.elements for key in found if key.startswith("on")]
        assert "49" not in pages[reduce].partition("</style>")[2]
        assert pages[reduce].count("</style>") == 1
    rendered = {name for _, name in _environment().cache.keys()}  # noqa: SIM118 - it has no iterator
    assert rendered == set(_environment().list_templates())


def templates():
    environment = _environment()
    return {name: environment.loader.get_source(environment, name)[0]
            for name in environment.list_templates()}  # fmt: skip


@pytest.mark.parametrize("name", sorted(templates()))
def test_no_template_switches_escaping_off(name):
    source = templates()[name]
    tree = _environment().parse(source)
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    assert not filters & {"safe", "tojson", "xmlattr", "urlize"}
    assert not list(tree.find_all((nodes.EvalContextModifier, nodes.MarkSafe)))
    # A value of an attribute stands in quotes: escaping alone would not hold it there.
    assert not re.search(r"[\w-]=\{\{", source)


def test_the_docs_list_every_filter():
    own = {
        name for name, filter_ in _environment().filters.items()
        if FILTERS.get(name) is not filter_
    }  # fmt: skip
    docs = Path(__file__).parents[3].joinpath("docs", "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)", docs, re.MULTILINE)) == own


def test_no_module_of_the_report_has_html_in_it():
    folder = Path(figures.__file__).parent
    found = [
        (path.name, node.value)
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"</?[a-z!][a-z0-9]*[\s/>]|<!--|&[a-z]+;|&#", node.value)
    ]
    assert found == []
    assert len(list(folder.rglob("*.py"))) > 5


def test_the_page_needs_nothing_else():
    source = nasty_page()
    reader = Reader(source)
    [policy] = [found["content"] for found in reader.attributes("meta") if "http-equiv" in found]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    loading = {"src", "href", "srcset", "action", "data", "poster", "style"}
    loaded = [found[key] for _, found in reader.elements for key in loading & found.keys()]
    assert loaded == ["data:,"]
    style = source.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in style
    assert len(reader.ids) == len(set(reader.ids))
    labels = " ".join(found.get("aria-labelledby", "") for _, found in reader.elements).split()
    assert set(labels) <= set(reader.ids)


def many(count, text=""):
    """A run in which nothing is like anything else, with all kinds of error."""
    kinds = list(ErrorKind)
    messages = [f"{n}{text}" for n in range(50)]
    for i in range(count):
        kind = kinds[i % 34] if i % 34 < 17 else None
        yield branch(
            i, kind, document=text or f"d{i}", message=messages[i % 50], document_index=i // 3,
            output=None if kind else text or f"a{i}", elapsed_s=i * 7919 % 10_007 / 100,
            ended_at=BORN + i,
        )  # fmt: skip


def test_a_run_that_is_ten_times_as_long_takes_no_more_memory():
    def peak(count):
        return peak_bytes(partial(gather, many(count), created_at=BORN))

    short = peak(2_000)
    # Threads that other tests have left may make something meanwhile, but not each time.
    assert any(peak(20_000) < 2 * short for _ in range(3))


def test_a_run_that_is_very_long_has_a_small_page():
    figures = gather(many(200_000), created_at=BORN)
    assert figures.done == 200_000
    given = Facts(status=facts().status, spec=SPEC, figures=figures, values=ResultValues(StoredResult()),
                  made_at=BORN)  # fmt: skip
    assert len(page(given).encode()) < 200_000


@pytest.mark.parametrize("text", ["&" * 5000, "\x01" * 5000, "\U0001d518" * 5000])
def test_a_page_is_small_though_all_is_as_long_as_it_may_be(text):
    """In characters that take the most room."""
    kinds = list(ErrorKind)
    figures = gather(many(3000, text), created_at=BORN)
    made = Aggregate(value=text * 100, notes=[text] * 100)
    stored = StoredResult(
        aggregates={f"{i}": made for i in range(1000)},
        errors=[ReduceError(group=text, kind=kinds[0], message=text, attempts=1)] * 1000,
    )
    spec = make_spec(model="fake", aspects={f"a{i}": "{input}" + "&" * 50_000 for i in range(100)},
                     reduce="concat", group_by="document", system="&" * 50_000)  # fmt: skip
    given = Facts(
        status=facts().status, spec=spec, figures=figures, values=ResultValues(stored), made_at=BORN
    )  # fmt: skip
    source = page(given)
    Reader(source)
    assert len(source.encode()) < 2_000_000
    assert "more groups are not shown here." in source


def test_text_is_cut_where_it_is_long_and_says_so():
    assert cut("abcdef", 4) == "abcd … (2 more characters)"
    assert cut("abcd", 4) == "abcd"
    assert one_line(" a\n\tb  c ", 5) == "a b c"
    assert one_line("abcdef", 4) == "abc…"
    assert clean("a\r\nb\rc\x85\x7f") == "a\nb\nc�␡"


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0", "1"]),
        (0, 7, ["0", "2", "4", "6", "8"]),
        (0, 3000, ["0", "1,000", "2,000", "3,000"]),
    ],
)
def test_ticks_of_counts_are_round_and_whole(low, high, labels):
    assert [t.label for t in linear_ticks(low, high, wanted=4, is_whole=True)] == labels


def test_ticks_of_durations_and_of_time_have_units():
    def said(ticks):
        return [plain(tick.label) for tick in ticks]

    assert said(log_ticks(0.09, 1.1)) == ["100 ms", "200 ms", "500 ms", "1 s"]
    assert said(log_ticks(1.01, 1.09)) == ["1.02 s", "1.04 s", "1.06 s", "1.08 s"]
    assert said(time_ticks(0, 600)) == ["0", "2 min", "4 min", "6 min", "8 min", "10 min"]
    assert said(time_ticks(-5, 90_000)) == ["0", "6 h", "12 h", "18 h", "1 d"]
    assert said(time_ticks(0, 0.5)) == ["0", "100 ms", "200 ms", "300 ms", "400 ms", "500 ms"]


def test_a_chart_is_drawn_to_scale_and_can_be_read_without_seeing_it():
    chart = Chart(
        bars=[Bar(0, 1, (10, 0), "0", "1"), Bar(1, 2, (5, 5), "1", "2"), Bar(2, 3, (0, 0))],
        ticks=[Tick(0, "0"), Tick(3, "3")],
    )
    drawing = draw(chart, 320)
    (_, [ten]), (_, [five, other]) = drawing.bars
    assert ten.height == pytest.approx(2 * five.height, abs=0.2)
    assert five.height == pytest.approx(other.height, abs=0.2)
    assert other.y + other.height == pytest.approx(five.y, abs=0.2)
    assert [one.series for one in (ten, five, other)] == [0, 0, 1]
    macros: Any = _environment().get_template("chart.svg.j2").module
    reader = Reader(
        macros.svg(chart, 320, "c", "T", "D", "y", "x", [("ok", "good"), ("bad", "not so")])
    )
    bars = reader.attributes("rect")
    assert [found["class"] for found in bars] == ["ok", "ok", "bad"]
    assert [float(found["height"]) for found in bars] == [ten.height, five.height, other.height]
    assert all(0 <= float(found["x"]) <= 320 for found in bars)
    [svg] = reader.attributes("svg")
    assert svg["aria-labelledby"].split() == ["c-title", "c-desc"]
    assert "T D" in reader.text
    assert "1 to 2: 5 good, 5 not so" in reader.text


def luminance(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.040_45 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(part * c for part, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_apart(scheme):
    """WCAG AA: 4.5 for text, 3 for what a chart is drawn with."""
    light, dark = re.findall(r":root \{(.*?)\}", page(facts()), re.DOTALL)[:2]
    source = light if scheme == "light" else dark
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", source))
    for text in ("text", "faint"):
        for ground in ("page", "card", "code"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for text, ground in (("good-text", "good"), ("bad-text", "bad-back"), ("wait-text", "wait")):
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for drawn in ("ok", "bad", "in", "out"):
        assert contrast(colours[drawn], colours["card"]) >= 3, drawn


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_every_kind_of_error_has_a_meaning(kind):
    source = page(facts([branch(0, kind)]))
    [meaning] = re.findall(rf"<code>{kind.value}</code> <small>(.*?)</small>", source)
    assert len(meaning) > 10


def test_half_of_the_branches_took_no_longer_than_the_slowest_on_the_page():
    took_s = (0.0001, 0.0002, 0.000228)
    latency = Latency(counts={0: len(took_s)}, sum_s=sum(took_s))
    branches = [branch(at, elapsed_s=each) for at, each in enumerate(took_s)]
    durations = gather(branches, created_at=BORN, latency=latency).durations
    assert durations.p50_s <= durations.p90_s <= durations.p99_s <= max(took_s)
