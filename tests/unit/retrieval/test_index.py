"""The index of passages: what it finds, and that its file is what it says."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fanout.core.errors import LostDataError, ModelError, SpecError
from fanout.retrieval import extra
from fanout.retrieval.building import IndexBuilder
from fanout.retrieval.index_file import PassageIndex
from fanout.retrieval.words import words_of

ENGLISH = "The notice period for a lease is three months to the end of a quarter."
GERMAN = "Die Kündigungsfrist für einen Mietvertrag beträgt drei Monate zum Quartalsende."
CHINESE = "租赁合同的解除通知期为三个月,至季度末为止。"
KNOWN = {
    "How long is the notice period of a lease?": ENGLISH,
    "Wie lang ist die KÜNDIGUNGSFRIST beim Mietvertrag?": GERMAN,
    "租赁合同的通知期是多久?": CHINESE,
}


def build(folder, passages):
    with IndexBuilder(folder) as builder:
        for number, text in enumerate(passages):
            builder.add(text, f"file {number}")
        builder.finish()
        path = builder.path.rename(folder / f"{builder.content}.passages")
    return PassageIndex(path), path


@pytest.fixture(scope="module")
def thousands(tmp_path_factory):
    rand = random.Random(7)
    words = [
        *(list(words_of(f"{ENGLISH} {GERMAN}")) * 3),
        *("".join(rand.choices("abcdefghijklmnop", k=rand.randint(2, 9))) for _ in range(3_000)),
        *("".join(rand.choices(CHINESE, k=3)) for _ in range(300)),
    ]
    passages = [" ".join(rand.choices(words, k=40)) for _ in range(4_000)]
    for place, text in zip((17, 1_900, 3_999), KNOWN.values(), strict=True):
        passages[place] = text
    return build(tmp_path_factory.mktemp("index"), passages)[0], passages


@pytest.mark.parametrize("query", KNOWN)
def test_a_known_passage_is_the_first_among_thousands(thousands, query):
    index, passages = thousands
    found = index.search(query, 5)
    assert found[0].text == KNOWN[query]
    assert found[0].id == f"p{passages.index(KNOWN[query]) + 1}"
    assert found[0].source == f"file {passages.index(KNOWN[query])}"
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert len(found) == 5


@pytest.mark.parametrize("block", [1, 3, 65_536])
def test_scores_are_those_of_bm25(tmp_path, monkeypatch, block):
    monkeypatch.setattr("fanout.retrieval.building._BLOCK", block)
    passages = ["a b b c", "b c d", "d d d e", "a"]
    index, _ = build(tmp_path, passages)
    lengths = [len(one.split()) for one in passages]
    mean = sum(lengths) / 4

    def score(words, text, length):
        total = 0.0
        for word in words:
            count, has = text.split().count(word), sum(word in one.split() for one in passages)
            idf = np.log(1 + (4 - has + 0.5) / (has + 0.5))
            total += idf * count / (count + 1.5 * (0.25 + 0.75 * length / mean))
        return total

    expected = {
        f"p{at + 1}": score("bd", text, lengths[at]) for at, text in enumerate(passages[:3])
    }
    assert {one.id: one.score for one in index.search("B d, d", 9)} == pytest.approx(
        expected, rel=1e-5
    )


def test_passages_are_found_by_their_titles(tmp_path):
    with IndexBuilder(tmp_path) as builder:
        builder.add("It ends in May.", "a", "Notice period")
        builder.add("It ends in June.", "b")
        builder.finish()
        [found] = PassageIndex(builder.path).search("notice", 2)
    assert (found.id, found.title, found.text) == ("p1", "Notice period", "It ends in May.")


def test_equal_passages_come_in_their_order_and_no_more_than_fit(tmp_path):
    index, _ = build(tmp_path, ["same words"] * 50 + ["other"])
    assert [one.id for one in index.search("words", 3)] == ["p1", "p2", "p3"]
    assert [one.id for one in index.search("other same", 2)] == ["p51", "p1"]
    assert len(index.search("words", 99)) == 50
    assert index.search("unheard of", 3) == []
    assert index.search("?!", 3) == []


def test_a_long_query_goes_by_its_rarest_words(tmp_path):
    common = " ".join(f"w{n}" for n in range(900))
    index, _ = build(tmp_path, [common, common, "needle"])
    assert index.search(f"{common} needle", 3)[-1].id == "p3"


def test_passages_without_a_word_have_an_index(tmp_path):
    index, _ = build(tmp_path, ["?", "!"])
    assert index.count == 2
    assert index.search("a", 3) == []
    assert index.passage(1).text == "!"


def test_the_same_passages_have_the_same_name_and_the_same_bytes(tmp_path):
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(build(tmp_path / name, ["one", "two"])[1])
    assert made[0].name == made[1].name
    assert made[0].read_bytes() == made[1].read_bytes()
    with IndexBuilder(tmp_path) as other:
        other.add("on", "")
        other.add("etwo", "")
    assert other.content != made[0].stem
    assert list(tmp_path.glob("*.unfinished")) == []


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:-1], lambda data: b"x" + data[1:],
    lambda data: data[:-9] + b"\xff" + data[-8:],
])  # fmt: skip
def test_a_damaged_file_is_no_index(tmp_path, damage):
    _, path = build(tmp_path, ["one", "two"])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LostDataError, match="is no index of passages"):
        PassageIndex(path)


def test_no_passage_is_read_before_it_is_found(thousands, monkeypatch):
    index, _ = thousands
    read = []
    monkeypatch.setattr(
        PassageIndex, "passage", lambda self, number, score=None: read.append(number)
    )
    index.search("lease", 3)
    assert len(read) == 3


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(ModelError, match=r"pip install 'fanout-llm\[retrieval\]'"):
        extra.bm25_module()
    with pytest.raises(SpecError, match=r"retrieve: needs bm25s, which is not installed"):
        extra.require_extra()
