"""What reads documents, prompts and answers takes a time that grows with their length only.

Time is that of this thread's CPU, so that a busy machine changes nothing, and the bounds are some
hundred times what is needed: only a cost that grows with the square of the length exceeds them.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import itertools
import re
import time
from collections import defaultdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import fanout
import workers
from fanout.aggregators import Fields, make_accumulator, score_of, whole
from fanout.aggregators.base import Item
from fanout.core.errors import LLMError, PromptError
from fanout.core.json_text import parse_json
from fanout.core.label_text import layers
from fanout.core.numbers import number_of_text
from fanout.core.redaction import redacted
from fanout.core.spec import make_spec
from fanout.inputs.documents.json_rows import read_json, read_jsonl
from fanout.inputs.documents.tables import detect_table, read_table
from fanout.inputs.prompts import Template
from fanout.inputs.splitters import make_splitter
from fanout.llm.answers import validate_json

PACKAGES = [Path(package.__file__).parent for package in (fanout, workers)]
COMPILING = {"compile"}
PATTERN_SIZES = (300, 20_000)
PATTERN_BOUND_S = 0.25
SIZES = (1_000, 30_000)
BOUND_S = 1.0


def modules():
    """The modules whose text has something of ``re``, by name."""
    for folder in PACKAGES:
        for path in sorted(folder.rglob("*.py")):
            if re.search(r"\bre\.(?!escape\b)", path.read_text()):
                name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
                yield name.removesuffix(".__init__"), path


def uses_of_re(tree):
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "re"
        and node.func.attr != "escape"
    ]


def patterns_in(value):
    if isinstance(value, re.Pattern):
        return [value]
    if isinstance(value, dict):
        return [one for part in value.values() for one in patterns_in(part)]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [one for part in value for one in patterns_in(part)]
    return []


def patterns_of(name, tree):
    """The patterns that a module compiles at its top, by name."""
    module = importlib.import_module(name)
    uses = uses_in(tree)
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if not targets or not any(isinstance(part, ast.Attribute) and part.attr in COMPILING
                   for part in ast.walk(node)):  # fmt: skip
            continue
        for target in targets:
            assert isinstance(target, ast.Name)
            for at, one in enumerate(patterns_in(getattr(module, target.id))):
                yield f"{name}.{target.id}[{at}]", (one, uses[target.id])


def uses_in(tree):
    """The methods of each name that a module calls; none of one that it calls by another name."""
    uses = defaultdict(set)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            uses[node.value.id].add(node.attr)
    return uses


ANCHORED = {"match", "fullmatch"}


def scan(pattern, uses, data):
    """Have the pattern read all of a text, in the way in which it is used."""
    if uses and uses <= ANCHORED:
        for use in uses:
            getattr(pattern, use)(data)
    else:
        for _ in pattern.finditer(data):
            pass


# Every process looks for them as it collects the tests, so none is parsed before its test.
MODULES = dict(modules())
# Made of literal texts alone, where the values are known only when it runs; and what reads the
# embedded server's own files, in a process that starts faster without.
# One is made of a table of letters, where it is first needed, and reads each letter once.
ELSEWHERE = {
    "fanout.core.redaction": 1,
    "fanout.client.embedded.keeper": 2,
    "fanout.retrieval.words": 1,
}


def test_every_regular_expression_is_one_that_is_tried_here():
    """Compiled at the top of its module: so the test below finds it."""
    elsewhere = {}
    tried = 0
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        top = [node for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
        at_top = sum(len(uses_of_re(node)) for node in top)
        tried += at_top
        if more := len(uses_of_re(tree)) - at_top:
            elsewhere[name] = more
    assert elsewhere == ELSEWHERE
    assert tried >= 20


def attacks(pattern):
    """Texts that a pattern nearly matches: what it is made of, again and again."""
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode()
    words = sorted({word for word in re.findall(r"[A-Za-z]{2,}|://|=", source) if word != "re"})
    letters = sorted({*re.sub(r"\w", "", source), " ", "\n", "a", "0", "-", ".", "_", "A"})
    heads = ["", *words[:4]]
    yield from product(heads, [*letters, *words])
    yield from product([""], map("".join, product(["\n", " ", "0", "a"], letters)))


def cpu_s(do):
    began = time.thread_time()
    do()
    return time.thread_time() - began


@pytest.mark.parametrize("module", MODULES)
def test_the_regular_expressions_of_a_module_are_linear(module):
    tree = ast.parse(MODULES[module].read_text())
    for name, (pattern, uses) in patterns_of(module, tree):
        for (head, pump), size in product(attacks(pattern), PATTERN_SIZES):
            text = head + pump * (size // len(pump)) + "\x00"
            data = text if isinstance(pattern.pattern, str) else text.encode()
            took = cpu_s(partial(scan, pattern, uses, data))
            assert took < PATTERN_BOUND_S, (name, head, pump, size)


def quietly(do, *errors):
    def run(text):
        with contextlib.suppress(*errors):
            do(text)

    return run


def aggregated(name):
    def run(text):
        accumulator = make_accumulator(name, Fields(by=("output",)))
        for output in (text, text[:-1]):
            accumulator.add(Item(index=0, document="d", output=output))
        whole(accumulator.result())

    return run


def split(name, chunk_tokens):
    splitter = make_splitter(name, chunk_tokens=chunk_tokens, chunk_overlap_tokens=0)
    return lambda text: list(splitter(text))


def document(kind):
    """Read a text as a file of that kind."""

    def run(text):
        data = io.BytesIO(text.encode("utf-8", "replace"))
        if kind == "json":
            made = read_json("f", data, itertools.count(), "text", 1_000_000)
        elif kind == "jsonl":
            made = read_jsonl("f", data, itertools.count(), "text", 1_000_000)
        else:
            look = {"text_column": "a", "delimiter": kind, "max_bytes": 1_000_000}
            head = io.BytesIO(f"a{kind}b\n1{kind}2\n".encode())
            table = detect_table("f", head, **look)
            made = read_table("f", io.BytesIO(head.getvalue() + data.getvalue()), table,
                              itertools.count(), 1_000_000)  # fmt: skip
        for _ in made:
            pass

    return run


READERS = {
    **{f"file: {kind}": document(kind) for kind in ("json", "jsonl", ",", "\t")},
    "parse_json": quietly(parse_json, ValueError),
    "validate_json": quietly(validate_json, LLMError),
    "score_of": score_of,
    "redacted": redacted,
    "template": quietly(lambda text: Template.parse(text).require(["input"]), PromptError),
    **{name: aggregated(name) for name in ("vote", "merge", "rank", "concat", "table", "top")},
    "layers": lambda text: list(layers(text)),
    "number_of_text": number_of_text,
    "sentences": split("sentences", 100),
    "sentences, large chunks": split("sentences", 1_000_000),
    "tokens": split("tokens", 100),
    "lines": split("lines", 100),
}
HOSTILE = [
    ("```json\n", "\n", "x"), ("```json\n", " ", "```x"), ("```", "```", ""), ("```a\n", "a", ""),
    ("", "[", ""), ("", '{"a":', ""), ("", '{"score":[', ""), ('"', "\\", ""), ("", "[]", ""),
    ("", "<think>", ""), ("<think>", "a", ""), ("", "{", "}"), ("", "9", ""), ("", "1,111", "x"),
    ("", "score ", ""), ("score", " ", "x"), ("score", '"', ""), ("score (", "a", ""),
    ("", "score (", ""), ("score", "*_", ""), ("", "scale  1", ""), ("scale", " ", ""),
    ("scale ", "1", "x"), ("", "score: none ", ""), ("score out of ", "a", ""),
    ("", ".", "x"), ("", "!?", "x"), ("a.", '"', "x"), ("", "a. ", ""), ("", "\n ", "x"),
    ("\n", " ", "x"), ("", "\u3002\u300d", ""), ("", "\u2026)", ""), ("", "\u00e9. ", ""),
    ("", "sk-", ""), ("", "://", ""), ("://a:", "b", ""), ("", "://a:b", ""),
    ("", '1,"x\n', ""), ("", '1,"\n', ""), ("", 'a","b\n', ""), ('1,"\n', '1,""x\n', ""),
    ('1,"\n', "1,2\n", ""), ("", '1\t"x\n', ""), ("", 'a"\t"b\n', ""), ("", '"\n', ""),
    ("", '1,"a""\n', ""), ("", '"",\n', ""), ("", '1,",\n', ""), ("[", '"', ""), ("", "[\n", ""),
    ("", '{"a":1}', ""), ("[", "{},", ""), ('{"', "a", ""), ("", '"\\', ""),
    ("{", '"a":1,"b":2,', '"b":1}'), ("", "password=", " "),
    ("", "Bearer ", ""), ("", "{{", "{"), ("", "{a", ""), ("", " ", ""),
]  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_what_reads_texts_is_linear(name):
    for (head, pump, tail), size in product(HOSTILE, SIZES):
        text = head + pump * (size // len(pump)) + tail
        took = cpu_s(lambda text=text: READERS[name](text))
        assert took < BOUND_S, (head, pump, tail, size)


NAMES = [f"name {number}" for number in range(30_000)]
LISTS: dict[str, dict[str, Any]] = {
    "choices": {"choices": NAMES},
    "models": {"model": NAMES},
    "fallback": {"fallback": NAMES},
    "by": {"reduce": "table", "by": NAMES},
    "measures": {"reduce": "table", "measures": [f"mean:{name}" for name in NAMES]},
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_a_job_is_checked_in_linear_time(name):
    took = cpu_s(lambda: make_spec(**{"model": "fake", "prompt": "{input}", **LISTS[name]}))
    assert took < BOUND_S
