"""Passages of files: how they are read, split and called."""

from __future__ import annotations

import pytest

from fanout.core.errors import InputError
from fanout.core.spec import make_spec
from fanout.core.tokens import BYTES_PER_TOKEN
from fanout.retrieval.reading import expected_contexts, read_passages


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kb" / "hr").mkdir(parents=True)
    (tmp_path / "kb" / "leave.md").write_text(
        "# Leave\n\n28 days.\n\n# Sick leave\n\nCall us. " * 60
    )
    (tmp_path / "kb" / "hr" / "pay.txt").write_text("Pay day is the 25th.")
    (tmp_path / "faq.csv").write_text("body,n\nFirst answer,1\n\nSecond answer,2\n")
    return tmp_path


def read(folder, source, notices=None, **fields):
    spec = make_spec(
        model="fake", prompt="{input} {context}", retrieve=source, base_dir=str(folder), **fields
    )
    notify = (lambda _: None) if notices is None else notices.append
    return list(read_passages(spec, source, notify=notify))


def test_passages_are_called_as_in_their_folder_wherever_that_is(folder):
    for source in ("kb", f"{folder}/kb", f"{folder}/kb/"):
        names = {one.source for one in read(folder, source)}
        assert names == {"leave.md", "hr/pay.txt"}
    assert {one.source for one in read(folder, "kb/*.md")} == {"leave.md"}
    assert {one.source for one in read(folder, f"{folder}/kb/hr/pay.txt")} == {"pay.txt"}
    [first, second] = read(folder, "faq.csv", passage_column="body")
    assert first.text == "First answer"
    assert second.source.startswith("faq.csv:")


def test_passages_have_the_headings_they_stand_under_or_the_title_of_their_row(folder):
    assert {one.title for one in read(folder, "kb/leave.md")} == {"Leave", "Sick leave"}
    assert [one.title for one in read(folder, "kb/hr/pay.txt")] == [""]
    (folder / "page.html").write_text("<h1>Staff</h1><h2>Tea</h2><p>At four.</p>")
    assert read(folder, "page.html")[0].title == "Staff"
    (folder / "faq.csv").write_text(f"text,title\nFour.,When is  tea?\nYes.,{'long ' * 90}\nNo.,\n")
    titles = [one.title for one in read(folder, "faq.csv")]
    assert (titles[0], titles[2]) == ("When is tea?", "")
    assert titles[1].endswith("long...")
    assert len(titles[1]) <= 203


def test_passages_are_no_longer_than_the_job_says(folder):
    for tokens in (20, 200):
        passages = read(folder, "kb/leave.md", passage_tokens=tokens)
        sizes = [len(one.text.encode()) for one in passages]
        assert max(sizes) <= tokens * BYTES_PER_TOKEN
        assert min(sizes) > 0
    assert len(passages) < len(read(folder, "kb/leave.md", passage_tokens=20))


def test_what_cannot_be_read_is_said(folder):
    notices = []
    (folder / "kb" / "empty.txt").write_text("  ")
    assert read(folder, "kb", notices)
    assert [one.text for one in notices if one.is_warning] == [
        "no passages of kb/empty.txt: it is empty"
    ] or any("empty.txt" in one.text for one in notices)
    for source, words in (("nowhere", "retrieve: .*nowhere"), ("kb/empty.txt", "no passage in")):
        with pytest.raises(InputError, match=words):
            read(folder, source)


@pytest.mark.parametrize(
    ("name", "text", "given"),
    [
        ("a.csv", "body,n\nFirst,1\n", "passage_column (--passage-column)"),
        ("a.jsonl", '{"body": "First", "n": 1}\n', "passage_column"),
        ("a.csv", "a;b,text\n1;2,3\n4;5,6\n", None),
    ],
)
def test_errors_name_the_fields_of_passages(folder, name, text, given):
    (folder / name).write_text(text)
    try:
        told = " ".join(one.source for one in read(folder, name))
    except InputError as error:
        told = str(error)
    assert "text_column" not in told
    assert "delimiter" not in told or "--delimiter" not in told
    assert given is None or given in told


def test_an_estimate_has_as_much_context_as_prompts_will(folder):
    job = {"model": "fake", "base_dir": str(folder)}
    spec = make_spec(prompt="{input} {context}", retrieve="faq.csv", passage_column="body", **job)
    assert 20 < len(expected_contexts(spec)[""]) < 100
    spec = make_spec(prompt="{input} {context}", retrieve="a.b:c", top_k=10, **job)
    assert 7_000 < len(expected_contexts(spec)[""]) < 9_000
    spec = make_spec(
        steps=[{"name": "a", "prompt": "{input}"},
               {"name": "b", "prompt": "{context}", "retrieve": "kb", "top_k": 1}], **job,
    )  # fmt: skip
    found = expected_contexts(spec)
    assert found.keys() == {"b"}
    assert 50 < len(found["b"]) < 1_000
    assert expected_contexts(make_spec(prompt="{input}", **job)) == {}
