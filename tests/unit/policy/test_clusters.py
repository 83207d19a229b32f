"""Which answers are clusters, and which clusters share a prompt."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.policy.clusters import Clusters, Vocabulary, WordIndex, shared_prompts
from fanout.policy.postings import Sketches

ROOM = 100


def clusters_of(texts, **options):
    vocabulary, clusters = Vocabulary(), Clusters(WordIndex(), Sketches([{}]), **options)
    for text in texts:
        vocabulary.add(text.split())
    return [clusters.add(vocabulary.sketch(text.split())) for text in texts]


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        ([], []),
        ([""], [0]),
        (["a b c"], [0]),
        (["a b c", "a b c"], [1, 1]),
        (["late parcel", "broken screen", "parcel late", "screen broken", "ok"], [1, 2, 1, 2, 0]),
        (["late parcel again", "late parcel twice", "x y"], [1, 1, 0]),
        # What all have in common tells little.
        (["it is red red", "it is blue blue", "it is red", "it is blue"], [1, 2, 1, 2]),
    ],
)
def test_answers_with_the_same_telling_words_are_a_cluster(texts, numbers):
    assert clusters_of(texts) == numbers


def test_no_more_leaders_are_kept_than_allowed():
    texts = [f"w{number} v{number}" for number in range(9)] * 2
    assert max(clusters_of(texts)) == 9
    assert clusters_of(texts, most_leaders=3) == [1, 2, 3, *[0] * 6] * 2


def test_a_sketch_has_a_bounded_number_of_terms():
    text = " ".join(f"w{number}" for number in range(500))
    vocabulary = Vocabulary()
    for _ in range(2):
        vocabulary.add(text.split())
    sketch = vocabulary.sketch(text.split())
    assert len(sketch) == 24
    assert sum(weight * weight for weight in sketch.values()) == pytest.approx(1)


def test_long_answers_that_are_equal_are_a_cluster():
    text = " ".join(f"w{number}" for number in range(500))
    assert clusters_of([text, "other words", text]) == [1, 0, 1]


A, B = {1: 1.0}, {2: 1.0}


@pytest.mark.parametrize(
    ("sizes", "leaders", "prompts"),
    [
        ([], [], []),
        ([0], [{}], [0]),
        # Large ones have prompts of their own, also if these are not enough.
        ([60, 51, 900], [A, A, A], [0, 1, 2]),
        # Small ones that are alike share one.
        ([40, 30, 40, 30], [A, B, A, B], [0, 1, 0, 1]),
        ([30, 40, 40], [A, A, A], [0, 0, 1]),
        # Others, too, if their prompts would not be half full.
        ([10, 20, 10, 60], [A, B, {}, B], [0, 0, 0, 1]),
        ([30, 60, 30, 45], [A, A, B, {}], [0, 1, 0, 2]),
    ],
)
def test_clusters_share_prompts_that_they_do_not_fill(sizes, leaders, prompts):
    assert shared_prompts(sizes, leaders, WordIndex(), room=ROOM) == prompts


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2 * ROOM),
            st.dictionaries(st.integers(0, 4), st.floats(0.1, 1), max_size=3),
        ),
        max_size=40,
    )
)
def test_prompts_are_at_least_half_full_and_never_too_full(clusters):
    sizes, leaders = [one[0] for one in clusters], [one[1] for one in clusters]
    prompts = shared_prompts(sizes, leaders, WordIndex(), room=ROOM)
    assert shared_prompts(sizes, leaders, WordIndex(), room=ROOM) == prompts
    used = [0] * (max(prompts, default=-1) + 1)
    for prompt, size in zip(prompts, sizes, strict=True):
        used[prompt] += size
    assert sum(total <= ROOM / 2 for total in used) <= 1
    for prompt, total in enumerate(used):
        shared = prompts.count(prompt) > 1
        assert not shared or total <= ROOM
