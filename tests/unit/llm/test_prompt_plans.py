"""How a run lays out its prompts, what it marks of them, and which calls go ahead."""

import pytest

from fanout.core.records import Chunk
from fanout.core.spec import make_spec
from fanout.inputs.fences import block
from fanout.llm import prompt_plans
from fanout.policy.prefixes import CacheRules

OPENAI = CacheRules(read=0.1)
SONNET = CacheRules(is_marked=True, write=1.25, read=0.1)
TEXT = "abcd" * 2_000
LONG_SYSTEM = "s" * 4 * 1_100
ASPECTS = {"good": "Good of:\n\n{input}", "bad": "Bad of:\n\n{input}", "odd": "Odd of:\n\n{input}"}
HEAD = f"<document>\n{TEXT}\n</document>\n\n"


def plan(rules, **fields):
    given = {"model": "openai/m", "aspects": ASPECTS, "fence": False, **fields}
    if "prompt" in fields:
        del given["aspects"]
    spec = make_spec(**given)
    return spec, planned(spec, dict.fromkeys(spec.models or (spec.model,), rules))


def planned(spec, rules):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prompt_plans, "cache_rules", lambda model, _price: rules[model])
        return prompt_plans.plan_of(spec)


def prompt(rules, index=0, text=TEXT, chunks=100, lane="realtime", **fields):
    spec, made = plan(rules, **fields)
    chunk, ref = Chunk(text=text, document="d", document_index=0), spec.variants.ref(index)
    values = {"input": text, "document": "d", "aspect": ref.aspect or "", "sample": str(ref.sample)}
    model = ref.model or spec.model
    return made.prompt(chunk, ref, values, model=model, chunks=chunks, lane=lane)


def families(rules, count, text=TEXT, chunks=100, lane="realtime", **fields):
    spec, made = plan(rules, **fields)
    chunk = Chunk(text=text, document="d", document_index=0)
    refs = [spec.variants.ref(index) for index in range(count)]
    return [
        made.families(chunk, ref, model=ref.model or spec.model, chunks=chunks, lane=lane)
        for ref in refs
    ]


def test_the_aspects_of_a_chunk_begin_with_the_same_bytes_and_key():
    made = [prompt(OPENAI, index) for index in range(3)]
    assert [text[len(HEAD) :].split()[0] for text, _ in made] == ["Good", "Bad", "Odd"]
    assert all(text.startswith(HEAD) for text, _ in made)
    assert len({cache.key for _, cache in made}) == 1
    assert {cache.marks for _, cache in made} == {()}
    other = prompt(OPENAI, text=f"other {TEXT}")[1]
    with_system = prompt(OPENAI, system="Be kind")[1]
    assert len({made[0][1].key, other.key, with_system.key}) == 3


@pytest.mark.parametrize("order", ["auto", "document_first", "as_written"])
@pytest.mark.parametrize("head", ["", "{input}\n", "{input} {document} "])
def test_fences_are_shared_as_the_text_is(order, head):
    aspects = {name: f"{head}{name} of {{document}}{{input}}" for name in ("good", "bad")}
    if head:
        aspects = {name: one.removesuffix("{input}") for name, one in aspects.items()}
    fields = {"fence": None, "aspects": aspects, "prompt_order": order, "system": LONG_SYSTEM}
    fenced = block("document", TEXT)
    (good, good_cache), (bad, bad_cache) = (prompt(SONNET, at, **fields) for at in range(2))
    assert fenced in good
    assert fenced in bad
    assert good.endswith('good of "d"' if head or order != "as_written" else fenced) or not head
    if not head and order == "as_written":
        return
    assert good_cache.key == bad_cache.key
    end = good_cache.marks[-1]
    assert end == bad_cache.marks[-1]
    assert good[:end] == bad[:end]
    assert end >= len(fenced)


@pytest.mark.parametrize(
    ("rules", "fields", "is_first"),
    [
        (OPENAI, {}, True),
        (OPENAI, {"prompt_order": "as_written"}, False),
        (OPENAI, {"text": "short"}, False),
        (OPENAI, {"text": "short", "prompt_order": "document_first"}, True),
        (OPENAI, {"text": "short", "system": LONG_SYSTEM}, True),
        (OPENAI, {"aspects": {"only": "Good of:\n\n{input}"}}, False),
        (OPENAI, {"prompt": "Good of:\n\n{input}"}, False),
        (OPENAI, {"prompt": "Good of:\n\n{input}", "prompt_order": "document_first"}, True),
        # They share it as they are.
        (OPENAI, {"aspects": {"a": "{input}\ngood?", "b": "{input}\nbad?"}}, False),
        (SONNET, {"lane": "batch"}, True),
    ],
)
def test_the_text_comes_first_where_that_pays_and_nobody_says_otherwise(rules, fields, is_first):
    text = prompt(rules, **fields)[0]
    assert text.startswith("<document>\n") is is_first
    assert is_first is ("[the text in <document> above]" in text)


def test_without_rules_a_run_has_no_plan_unless_it_asks_for_an_order():
    assert plan(None)[1] is None
    assert plan(None, prompt_order="as_written")[1] is None
    assert prompt(None, prompt_order="document_first", model="local") == (
        f"{HEAD}Good of:\n\n[the text in <document> above]",
        None,
    )


def test_all_models_of_a_run_get_the_same_prompt():
    spec = make_spec(models=["local", "openai/m"], aspects=ASPECTS)
    made = planned(spec, {"local": None, "openai/m": OPENAI})
    chunk, ref = Chunk(text=TEXT, document="d", document_index=0), spec.variants.ref(0)
    values = {"input": TEXT}
    asked = [
        made.prompt(chunk, ref, values, model=model, chunks=1, lane="realtime")
        for model in ("local", "openai/m")
    ]
    assert asked[0][0] == asked[1][0]
    assert asked[0][1] is None
    assert made.families(chunk, ref, model="local", chunks=1, lane="realtime") == ()


@pytest.mark.parametrize(
    ("fields", "marks"),
    [
        ({}, (len(HEAD),)),
        ({"lane": "batch"}, ()),
        ({"lane": "batch", "samples": 2}, (len(HEAD),)),
        ({"prompt_order": "as_written"}, ()),
        ({"prompt_order": "as_written", "samples": 2}, (len("Good of:\n\n") + len(TEXT),)),
        ({"system": LONG_SYSTEM}, (0, len(HEAD))),
        ({"system": LONG_SYSTEM, "text": "short", "prompt": "{input}"}, (0,)),
        # A single chunk: nobody else reads it.
        ({"system": LONG_SYSTEM, "prompt": "{input}", "chunks": 1}, ()),
        # Instructions that all chunks share.
        ({"prompt": f"{LONG_SYSTEM} {{input}}", "text": "short"}, (len(LONG_SYSTEM) + 1,)),
        ({"prompt": "{input}"}, ()),
        ({"prompt": "Good of {input}", "samples": 3}, (len("Good of ") + len(TEXT),)),
        ({"prompt": "Good {sample} of {input}", "samples": 3}, ()),
    ],
)
def test_what_is_read_again_is_marked(fields, marks):
    text, cache = prompt(SONNET, **fields)
    assert (cache.marks if cache else ()) == marks
    assert all(end <= len(text) for end in marks)


@pytest.mark.parametrize(
    ("fields", "count", "expected"),
    [
        ({}, 4, ["m//0", "m//0", "m//0", "m//1"]),
        ({"samples": 2}, 3, ["m//0", "m//0", "m//0"]),
        ({"prompt_order": "as_written"}, 2, [None, None]),
        ({"prompt_order": "as_written", "samples": 2}, 3, ["m/good/0", "m/good/0", "m/bad/0"]),
        ({"text": "short"}, 1, [None]),
        ({"lane": "batch"}, 1, [None]),
        ({"prompt": "{input}"}, 1, [None]),
        ({"prompt": "{input}", "samples": 2}, 3, ["m//0", "m//0", "m//1"]),
        ({"prompt": "{sample}{input}", "samples": 2}, 1, [None]),
    ],
)
def test_the_calls_that_share_a_prefix_have_its_name(fields, count, expected):
    found = families(OPENAI, count, **fields)
    names = [one[-1].replace("openai/", "").replace("None", "") if one else None for one in found]
    assert names == expected


def test_a_shorter_prefix_of_the_run_comes_before_that_of_the_chunk():
    (first, _, _, other) = families(OPENAI, 4, system=LONG_SYSTEM)
    assert first == ("openai/m", "openai/m//0")
    assert other == ("openai/m", "openai/m//1")
    two = families(OPENAI, 2, models=["openai/m", "openai/n"], prompt="{input}", samples=1)
    assert two == [(), ()]


def test_the_price_of_a_model_says_whether_there_is_a_cache():
    def order(**fields):
        spec = make_spec(aspects=ASPECTS, **fields)
        made = prompt_plans.plan_of(spec)
        chunk = Chunk(text=TEXT, document="d", document_index=0)
        return made is not None and made.is_document_first(chunk)

    same = {"input_mtok": 1, "output_mtok": 2, "cached_input_mtok": 1}
    assert order(model="openai/gpt-5-mini")
    assert order(model="anthropic/claude-sonnet-4-5")
    assert not order(model="openai/gpt-5-mini", price=same)
    assert order(model="openai/my-own", price={**same, "cached_input_mtok": 0.5})
    assert not order(model="openai/my-own")
    assert not order(model="local")
