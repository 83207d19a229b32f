"""The confidence of a label: what is asked for, what servers refuse, and what the tokens say."""

from __future__ import annotations

import asyncio
import json
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.core.answer_shape import shape_of
from fanout.core.records import ErrorKind
from fanout.core.spec import RetrySpec
from fanout.llm import LLMRequest
from fanout.llm.anthropic import AnthropicLLM
from fanout.llm.base import Token
from fanout.llm.calls import complete_with_retries
from fanout.llm.confidence import label_confidence, token_of, tokens_of
from fanout.llm.gemini import GeminiLLM
from fanout.llm.limit_headers import LimitHeaders
from fanout.llm.litellm import LiteLLM
from fanout.llm.openai import OpenAILLM
from fanout.llm.refusals import Refusals
from tests.scripted_provider import anthropic_reply, openai_reply

pytestmark = pytest.mark.usefixtures("at_provider")

GOOD_BAD = shape_of(None, ("good", "bad"))
ONCE = RetrySpec(max_attempts=1)


def tokens(*parts):
    """Return tokens of ``(text, probability, {other: probability})``."""
    made = []
    for text, probability, *others in parts:
        likely = others[0] if others else {}
        made.append(
            Token(
                text.encode(),
                math.log(probability),
                tuple((other.encode(), math.log(p)) for other, p in likely.items()),
            )
        )
    return tuple(made)


LABELS = ("very good", "very bad", "bad")
DIALECT = ("A", "A*", ".NET")
LONG = ("good", "good enough", "bad")
CASES = {
    "one token": (("good", "bad"), "good", tokens(("good", 0.9, {"good": 0.9, "bad": 0.1})), 0.9),
    "other beginnings do not count": (
        ("good", "bad"), "good",
        tokens(("good", 0.6, {"good": 0.6, "bad": 0.2, "The": 0.2})), 0.75,
    ),
    "other spellings do": (
        ("good", "bad"), "good",
        tokens(("good", 0.5, {"good": 0.5, " good": 0.1, "Good": 0.15, "bad": 0.25})), 0.75,
    ),
    "in JSON": (
        ("good", "bad"), "good",
        tokens(('{"', 1), ("answer", 1), ('":', 1), (' "', 1), ("good", 0.8, {"bad": 0.2}), ('"}', 1)),
        0.8,
    ),
    "the quote is in the token": (
        ("good", "bad"), "good",
        tokens(('{"answer": ', 1), ('"good', 0.8, {'"bad': 0.2}), ('"}', 1)), 0.8,
    ),
    "the rest is certain": (
        ("good", "bad"), "good",
        tokens(("g", 0.8, {"b": 0.2}), ("o", 0.5, {"r": 0.5}), ("od", 0.5)), 0.8,
    ),
    "a common beginning": (
        LABELS, "very bad",
        tokens(("very", 0.5, {"bad": 0.5}), (" bad", 0.75, {" good": 0.25})), 0.375,
    ),
    "without likely tokens": (LABELS, "very bad", tokens(("very", 0.5), (" bad", 0.5)), 0.25),
    "a label within another, in JSON": (
        LONG, "good",
        tokens(('{"answer":"', 1), ("good", 0.8, {"bad": 0.2}), ('"}', 0.5, {" enough": 0.5})), 0.4,
    ),
    "a label within another": (LONG, "good", tokens(("good", 0.8, {"bad": 0.2})), 0.8),
    "signs are a part of a label": (
        DIALECT, "A*", tokens(("A*", 0.6, {"A": 0.2, ".NET": 0.2})), 0.6,
    ),
    "a label that begins with a sign": (
        DIALECT, ".NET", tokens((".", 0.5, {"A": 0.5}), ("NET", 1)), 0.5,
    ),
    "case alone": (("US", "us"), "us", tokens(("us", 0.7, {"US": 0.3})), 0.7),
    "after reasoning": (
        ("good", "bad"), "bad",
        tokens(("<think>good?</think>", 0.5), ("\n", 1), ("bad", 0.9, {"good": 0.1})), 0.9,
    ),
    "in a fence": (
        ("good", "bad"), "bad",
        tokens(('```json\n{"answer": "', 1), ("bad", 0.9, {"good": 0.1}), ('"}\n```', 1)), 0.9,
    ),
    "with a full stop": (
        ("good", "bad"), "good", tokens(("**", 0.5), ("Good", 0.9, {"Bad": 0.1}), ("**.", 1)), 0.9,
    ),
    "escaped": (
        ("é", "ö"), "é", tokens(('{"a":"', 1), ("\\u00e9", 0.9, {"\\u00f6": 0.1}), ('"}', 1)), 0.9,
    ),
    "a part of a character": (
        ("é", "ö"), "é",
        (Token(b"\xc3", 0.0), Token(b"\xa9", math.log(0.75), ((b"\xb6", math.log(0.25)),))), 0.75,
    ),
    "spaces differ": (LABELS, "very bad", tokens(("very", 0.5), ("  bad", 0.5)), 0.25),
    "one label only": (("good",), "good", tokens(("good", 0.2, {"bad": 0.8})), 1.0),
    "other tokens than the answer's": (("good", "bad"), "good", tokens(("bad", 0.9)), None),
    "no text": (("good", "bad"), "good", (Token(b"\xff", 0.0),), None),
    "impossible": (
        ("good", "bad"), "good", (Token(b"good", -9999.0, ((b"bad", 0.0),)),), 0.0,
    ),
    "nothing is possible": (
        ("good", "bad"), "good", (Token(b"good", -1e9, ((b"bad", -1e9), (b"good", -1e9))),), None,
    ),
    "impossible, though it was answered": (
        ("good", "bad"), "good", (Token(b"good", -1e9, ((b"bad", -0.1),)),), None,
    ),
    "impossible, but likely": (
        ("good", "bad"), "good",
        (Token(b"good", -1e9, tokens(("", 1, {"good": 0.8, "bad": 0.2}))[0].others),), 0.8,
    ),
    "impossible, without likely tokens": (LABELS, "very bad", (
        Token(b"very", -0.5), Token(b" bad", -1e9)), None,
    ),
    "impossible, of a sign around it": (
        ("good", "bad"), "good",
        (Token(b'{"a":"', -1e9), *tokens(("good", 0.8, {"bad": 0.2}), ('"}', 1))), 0.8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_tokens_of_a_label_have_its_probability(name):
    labels, label, given_tokens, expected = CASES[name]
    found = label_confidence(given_tokens, shape_of(None, labels), label)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-5))


MANY = tuple(f"label {number:04d}" for number in range(1_000))
ESCAPED = '"' + '\\"' * 500_000


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"a": "label 0500"}', 0.5),
        # Reasoning may be long, but not the answer behind it.
        (f"<think>{ESCAPED}</think>label 0500", 0.5),
        (f"label 0500{' ' * 100_000}", 0.5),
        (f"{ESCAPED}\n```\nlabel 0500\n```", None),
        (f"{ESCAPED[:6_000]}\\", None),
    ],
)
def test_long_answers_and_many_labels_do_not_hold_up_other_calls(answer, expected):
    """A search that is not linear would take minutes, and one of all labels seconds."""
    begin, _, end = answer.partition("label 0500")
    made = tokens((begin or " ", 1), ("label 0500", 0.5), (end or " ", 1))
    found = [label_confidence(made, shape_of(None, MANY), "label 0500") for _ in range(50)]
    assert set(found) == {expected}


LABEL = st.text(st.sampled_from('abAB é"\\*.:{}😀'), min_size=1, max_size=6).filter(
    lambda text: text.strip() == text
)
AROUND = [("", ""), ('{"answer":', "}"), ('{"answer": ', "}"), ('```json\n{"x":', "}\n```")]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.lists(LABEL, min_size=1, max_size=4, unique=True), st.sampled_from(AROUND))
def test_a_label_is_found_however_its_answer_is_cut_into_tokens(data, labels, around):
    """Each token has the probability 1/2: the result is a power of it, of the label's tokens at most."""
    label = data.draw(st.sampled_from(labels))
    shape = shape_of(None, tuple(labels))
    ascii_only = data.draw(st.booleans())
    shown = json.dumps(label, ensure_ascii=ascii_only) if around[0] else label
    before, after = (part.encode() for part in around)
    text = before + shown.encode() + after
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=8)))
    edges = [0, *[cut for cut in cuts if cut < len(text)], len(text)]
    made = tuple(Token(text[start:end], math.log(0.5)) for start, end in pairwise(edges))
    found = label_confidence(made, shape, label)
    begin, end = len(before), len(before) + len(shown.encode())
    inside = sum(start < end and stop > begin for start, stop in pairwise(edges))
    try:
        is_label = shape.checked(text.decode()) == label
    except ValueError:
        is_label = False
    if not is_label:
        assert found is None
    else:
        assert found is not None
        assert 0.5 ** (inside + 1) - 1e-6 <= found <= 1
        assert found == 0 or found == pytest.approx(0.5 ** round(-math.log2(found)), abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["content", "token", "logprob", "bytes", "top_logprobs", "tokens",
                             "token_logprobs", "chosenCandidates", "topCandidates", "candidates",
                             "logProbability"]),
            inner, max_size=4,
        ),
        max_leaves=20,
    )
)  # fmt: skip
def test_hostile_log_probabilities_are_no_confidence_and_no_error(value):
    from fanout.llm import gemini, litellm, openai

    for read in (openai._tokens, gemini._tokens, litellm._tokens):
        for given_tokens in (read(value), read({"content": [value, value]})):
            found = label_confidence(given_tokens, GOOD_BAD, "good") if given_tokens else None
            assert found is None or 0 <= found <= 1


@pytest.mark.parametrize(
    "entry",
    [
        ("good", float("nan")), ("good", "0"), ("good", True), ("good", 0.5), ("good", None),
        (None, -1.0), (3, -1.0),
    ],
)  # fmt: skip
def test_a_value_that_is_no_log_probability_is_none(entry):
    assert token_of(*entry) is None
    assert tokens_of([("good", -1.0), entry], lambda pair: token_of(*pair)) == ()


def test_minus_infinity_is_read_but_no_confidence_and_rounding_is_a_probability():
    impossible = token_of("good", float("-inf"))
    assert impossible.logprob < -1000
    assert label_confidence((impossible,), GOOD_BAD, "good") is None
    assert token_of("a", 1e-7).logprob == 0
    assert token_of("?", -1.0, [195]).text == b"\xc3"
    assert token_of("?", -1.0, [999]).text == b"?"


def top(text, probability, others):
    def one(name, p):
        return {"token": name, "logprob": math.log(p), "bytes": list(name.encode())}

    return {**one(text, probability), "top_logprobs": [one(*pair) for pair in others.items()]}


SURE = [top("good", 0.8, {"good": 0.8, "bad": 0.2})]


def openai_sure(_body):
    reply = openai_reply("good")
    reply["choices"][0]["logprobs"] = {"content": SURE}
    return reply


def together_sure(_body):
    reply = openai_reply("good")
    reply["choices"][0]["logprobs"] = {"tokens": ["good"], "token_logprobs": [math.log(0.8)]}
    return reply


def gemini_reply(text="good", finish="STOP", **more):
    candidate = {"content": {"parts": [{"text": text}]}, "finishReason": finish, **more}
    return {"candidates": [candidate], "usageMetadata": {"promptTokenCount": 1}}


def gemini_sure(_body):
    likely = [{"token": "good", "logProbability": math.log(0.8)},
              {"token": "bad", "logProbability": math.log(0.2)}]  # fmt: skip
    result = {"chosenCandidates": likely[:1], "topCandidates": [{"candidates": likely}]}
    return gemini_reply(logprobsResult=result)


def asks_for_logprobs(body):
    return bool(body.get("logprobs")) or "responseLogprobs" in body.get("generationConfig", {})


def has_schema(body):
    return "response_format" in body or "responseSchema" in body.get("generationConfig", {})


MODELS = {
    "openai": (OpenAILLM, openai_sure),
    "together": (OpenAILLM, together_sure),
    "gemini": (GeminiLLM, gemini_sure),
}


def results(make, count=1, shape=GOOD_BAD, at_once=False, max_reasks=2):
    async def run():
        llm = make("m")

        async def one():
            return await complete_with_retries(
                llm, LLMRequest(prompt="p", shape=shape), policy=ONCE, timeout_s=10,
                max_reasks=max_reasks,
            )  # fmt: skip

        try:
            if at_once:
                return await asyncio.gather(*[one() for _ in range(count)])
            return [await one() for _ in range(count)]
        finally:
            await llm.aclose()

    return asyncio.run(run())


def sent(provider):
    return [body for _, _, body in provider.requests]


@pytest.mark.parametrize("name", MODELS)
def test_a_choice_has_the_confidence_that_its_server_returns(provider, name):
    make, sure = MODELS[name]
    provider.respond = lambda _headers, body: (200, sure(body))
    [result] = results(make)
    assert (result.output, result.confidence) == ("good", pytest.approx(0.8, abs=1e-5))
    assert asks_for_logprobs(sent(provider)[0])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [None, shape_of({"type": "string"})])
def test_nothing_is_asked_for_without_choices(provider, name, shape):
    make, sure = MODELS[name]
    provider.respond = lambda _headers, body: (200, sure(body))
    [result] = results(make, shape=shape, max_reasks=0)
    assert not asks_for_logprobs(sent(provider)[0])
    assert result.confidence is None


def test_an_api_without_log_probabilities_is_not_asked_for_them(provider):
    provider.respond = lambda _headers, _body: (200, anthropic_reply("good"))
    [result] = results(lambda _: AnthropicLLM("claude-opus-4-1"))
    assert (result.output, result.confidence) == ("good", None)
    assert "logprobs" not in sent(provider)[0]


REFUSALS = {
    "openai, a reasoning model": (403, "You are not allowed to request logprobs from this model"),
    "groq": (400, "`logprobs` is not supported with this model"),
    "gemini": (400, "Logprobs is not enabled for models/gemini-2.5-pro"),
    "vertex": (400, "Unable to submit request because Logprobs is not supported for this model."),
    "mistral": (422, {"detail": [{"loc": ["body", "logprobs"], "msg": "Extra inputs are not permitted"}]}),
    "together": (400, "5 is greater than the maximum of 1 - 'logprobs'"),
    "a server that fails": (500, "log probabilities are not implemented"),
}  # fmt: skip
SCHEMA = (400, "response_format: not supported here")
BOTH = (400, "Unrecognized request arguments supplied: response_format, logprobs")
TOGETHER = (400, "logprobs cannot be combined with response_format")


class Server:
    """A server that refuses parts of requests: the first refusal whose parts a request has."""

    def __init__(self, provider, name, refusals):
        self.name = name
        self.refusals = refusals
        provider.respond = self.respond

    def respond(self, _headers, body):
        asked = {"logprobs": asks_for_logprobs(body), "schema": has_schema(body)}
        for parts, (status, words) in self.refusals:
            if all(asked[part] for part in parts):
                return status, words if isinstance(words, dict) else {"error": {"message": words}}
        sure = MODELS[self.name][1](body)
        if not asked["logprobs"]:
            candidate = next(iter(sure.get("choices", sure.get("candidates"))))
            candidate.pop("logprobs", None)
            candidate.pop("logprobsResult", None)
        return 200, sure


LOGPROBS_ONLY = [(("logprobs",), REFUSALS["groq"])]
ORDERS = {
    "log-probabilities": (LOGPROBS_ONLY, 2, False, True),
    "schemas": ([(("schema",), SCHEMA)], 2, True, False),
    "both, schemas first": ([(("schema",), SCHEMA), *LOGPROBS_ONLY], 3, False, False),
    "both, schemas last": ([*LOGPROBS_ONLY, (("schema",), SCHEMA)], 3, False, False),
    "both at once": ([(("schema", "logprobs"), BOTH)], 2, False, False),
    "both at once, of this model": (
        [
            (
                ("schema", "logprobs"),
                (400, "response_format and logprobs are not supported with this model"),
            )
        ],
        2,
        False,
        False,
    ),
    "one beside the other": ([(("schema", "logprobs"), TOGETHER)], 2, False, True),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["openai", "gemini"])
def test_what_a_server_refuses_is_asked_for_once(provider, name, order, caplog):
    refusals, calls, keeps_logprobs, keeps_schema = ORDERS[order]
    Server(provider, name, refusals)
    got = results(MODELS[name][0], count=3)
    assert [(result.output, result.attempts) for result in got] == [("good", 1)] * 3
    assert len(provider.requests) == calls + 2
    last = sent(provider)[-1]
    assert (asks_for_logprobs(last), has_schema(last)) == (keeps_logprobs, keeps_schema)
    assert [result.confidence is not None for result in got] == [keeps_logprobs] * 3
    assert len(caplog.records) == (not keeps_logprobs) + (not keeps_schema)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_each_words_of_a_refusal_are_understood(provider, refusal):
    Server(provider, "openai", [(("logprobs",), REFUSALS[refusal])])
    first, second = results(OpenAILLM, count=2)
    assert (first.output, second.output, len(provider.requests)) == ("good", "good", 3)
    assert has_schema(sent(provider)[-1])


@pytest.mark.parametrize("order", ORDERS)
def test_calls_in_flight_when_the_first_one_learns_fail_no_branch(provider, order):
    refusals, *_ = ORDERS[order]
    Server(provider, "openai", refusals)
    provider.delay_s = 0.05
    got = results(OpenAILLM, count=16, at_once=True)
    assert {(result.output, result.kind) for result in got} == {("good", None)}


def test_a_refusal_of_another_thing_is_none_of_log_probabilities(provider):
    provider.status, provider.body = 400, {"error": {"message": "temperature is too high"}}
    [result] = results(OpenAILLM)
    assert (result.kind, len(provider.requests)) == (ErrorKind.BAD_REQUEST, 1)


def test_the_confidence_is_that_of_the_answer_that_was_accepted(provider):
    answers = iter(
        [
            ("so so", top("so so", 0.9, {"so so": 0.9})),
            ("bad", top("bad", 0.6, {"bad": 0.6, "good": 0.4})),
        ]
    )

    def respond(_headers, _body):
        text, token = next(answers)
        reply = openai_reply(text)
        reply["choices"][0]["logprobs"] = {"content": [token]}
        return 200, reply

    provider.respond = respond
    [result] = results(OpenAILLM)
    assert (result.output, result.attempts) == ("bad", 2)
    assert result.confidence == pytest.approx(0.6, abs=1e-5)


class UnsupportedError(Exception):
    """What litellm raises for a parameter that its provider does not take."""


UnsupportedError.__name__ = "UnsupportedParamsError"


def litellm_of(complete):
    llm = LiteLLM.__new__(LiteLLM)
    llm._limit_headers = LimitHeaders()
    llm._name, llm._refusals = "x/m", Refusals("x/m")
    llm._litellm = type("Module", (), {"acompletion": staticmethod(complete)})
    return llm


class Choice:
    finish_reason = "stop"

    def __init__(self, text, logprobs=None):
        self.message = type("Message", (), {"content": text})
        self.logprobs = logprobs


@pytest.mark.parametrize("as_object", [True, False])
def test_litellm_passes_log_probabilities_on(as_object):
    seen = []

    async def complete(**options):
        seen.append(options)
        logprobs = {"content": SURE}
        held = type("Logprobs", (), logprobs)() if as_object else logprobs
        return type("Response", (), {"choices": [Choice("good", held)], "usage": None})

    [result] = results(lambda _: litellm_of(complete))
    assert result.confidence == pytest.approx(0.8, abs=1e-5)
    assert (seen[0]["logprobs"], seen[0]["top_logprobs"]) == (True, 5)


def test_what_litellm_does_not_support_is_asked_for_once():
    seen = []

    async def complete(**options):
        seen.append(sorted(options))
        refused = [name for name in ("logprobs", "response_format") if name in options]
        if refused:
            msg = f"x does not support parameters: {refused}"
            raise UnsupportedError(msg)
        return type("Response", (), {"choices": [Choice("good")], "usage": None})

    got = results(lambda _: litellm_of(complete), count=2)
    assert [(result.output, result.confidence) for result in got] == [("good", None)] * 2
    assert len(seen) == 3
