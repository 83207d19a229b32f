from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.errors import SpecError
from fanout.core.records import Document
from fanout.core.tokens import estimate_tokens
from fanout.inputs.splitters import make_splitter, split_documents

NAMES = ["none", "lines", "tokens", "markdown", "sentences"]
SIZED = ["tokens", "markdown", "sentences"]

words = st.sampled_from(
    [
        "Hello",
        "world.",
        "Is it?",
        "\n",
        "\n\n",
        "# Title\n",
        "été",
        "今日は。",
        "😀",
        "a" * 60,
        " ",
        "\t",
        "- x\n",
    ]
)
prose = st.lists(words, max_size=60).map(" ".join)


def split(name, text, chunk_tokens=10, overlap=0):
    splitter = make_splitter(name, chunk_tokens=chunk_tokens, chunk_overlap_tokens=overlap)
    return list(splitter(text))


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("été", 2), ("今日は", 3)]
)
def test_tokens_are_estimated_by_bytes(text, tokens):
    assert estimate_tokens(text) == tokens


@pytest.mark.parametrize("name", NAMES)
@given(text=prose)
def test_spans_are_in_order_and_lose_no_word(name, text):
    spans = split(name, text)
    at = 0
    left_out = ""
    for start, end in spans:
        assert at <= start < end <= len(text) or (name == "none" and text == "")
        left_out += text[at:start]
        at = end
    left_out += text[at:]
    assert left_out.strip() == ""


def test_a_document_that_the_library_panics_at_is_split_all_the_same():
    text = "\t été \n\n \t world. Hello   \t Hello   - x\n \t " + "a" * 60
    spans = split("markdown", text, overlap=4)
    assert "".join(text[start:end] for start, end in spans).count("a") >= 60
    assert all(estimate_tokens(text[start:end]) <= 10 for start, end in spans)


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("overlap", [0, 4])
@given(text=prose)
def test_no_chunk_is_larger_than_asked(name, overlap, text):
    for start, end in split(name, text, overlap=overlap):
        assert estimate_tokens(text[start:end]) <= 10
        assert text[start:end].strip()


@pytest.mark.parametrize("name", SIZED)
def test_an_overlap_repeats_the_end_of_the_chunk_before(name):
    text = "One two. Three four. Five six. Seven eight. Nine ten. " * 3
    spans = split(name, text, overlap=5)
    overlaps = [before[1] - after[0] for before, after in itertools.pairwise(spans)]
    assert max(overlaps) > 0
    assert all(estimate_tokens("x" * max(overlap, 0)) <= 5 for overlap in overlaps)


@pytest.mark.parametrize("name", ["none", "lines"])
def test_a_splitter_without_overlap_says_so(name):
    with pytest.raises(SpecError, match=r"chunk_overlap_tokens: split '.*' has no overlap"):
        make_splitter(name, chunk_tokens=10, chunk_overlap_tokens=2)


def test_lines_are_chunks_and_blank_ones_are_not():
    text = "one\n\n  two  \r\nthree"
    assert [text[a:b] for a, b in split("lines", text)] == ["one", "  two", "three"]


def test_sentences_stay_whole():
    text = 'He said "no." Then he left! Was it 3.14? 今日は。はい。'
    chunks = [text[a:b] for a, b in split("sentences", text, chunk_tokens=4)]
    assert chunks == ['He said "no."', "Then he left!", "Was it 3.14?", "今日は。", "はい。"]


def test_markdown_is_cut_at_headings():
    text = "# A\n\nalpha alpha\n\n# B\n\nbeta beta"
    chunks = [text[a:b].strip() for a, b in split("markdown", text, chunk_tokens=6)]
    assert chunks == ["# A\n\nalpha alpha", "# B\n\nbeta beta"]


def test_chunks_know_their_document_their_position_and_their_offsets():
    document = Document(name="d", index=3, text="été one\nzwei", columns={"who": "Ann"})
    splitter = make_splitter("lines", chunk_tokens=10)
    first, second = split_documents([document], splitter)
    assert (second.document, second.document_index, second.position) == ("d", 3, 1)
    assert document.text[second.start : second.end] == second.text == "zwei"
    assert (first.position, first.columns) == (0, {"who": "Ann"})


@pytest.mark.parametrize(
    ("document", "error"),
    [
        (Document(name="d", index=0, error="broken"), "broken"),
        (Document(name="d", index=0, text="\n\n"), "the document is empty"),
    ],
)
def test_a_document_without_chunks_is_one_chunk_with_an_error(document, error):
    [chunk] = split_documents([document], make_splitter("lines", chunk_tokens=10))
    assert (chunk.error, chunk.text, chunk.document) == (error, "", "d")


@pytest.mark.parametrize("name", SIZED)
def test_a_large_text_is_split(name):
    text = "The quick brown fox jumps over the lazy dog. \u00c9t\u00e9 \u00e0 la plage.\n" * 20_000
    assert len(split(name, text, chunk_tokens=500)) > 500


def test_the_library_that_splits_is_imported_only_when_it_splits():
    code = "import sys, fanout.inputs.splitters; sys.exit('semantic_text_splitter' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
