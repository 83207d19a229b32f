from __future__ import annotations

import socket

import pytest

from fanout.core.errors import SettingsError, SpecError
from fanout.core.prices import PriceSpec
from fanout.core.settings import load_settings
from fanout.core.spec import make_spec, stored_spec
from fanout.llm.prices import price_of, unpriced, window_of
from fanout.llm.registry import known_context_tokens
from fanout.policy.pricing import FREE

HAIKU, MINI = "anthropic/claude-haiku-4-5", "openai/gpt-5-mini"
GIVEN = PriceSpec(input_mtok=1.0, output_mtok=4.0)


@pytest.fixture(autouse=True)
def no_addresses(monkeypatch):
    for name in ("OPENAI", "ANTHROPIC", "GEMINI"):
        monkeypatch.delenv(f"{name}_BASE_URL", raising=False)
    monkeypatch.delenv("FANOUT_PRICES", raising=False)


def rates(price):
    return (price.input_mtok, price.output_mtok, price.cached_input_mtok, price.cache_write_mtok)


def test_known_prices_have_their_lanes_and_caches():
    haiku, mini = price_of(HAIKU), price_of(MINI)
    assert rates(haiku) == (1.0, 5.0, 0.1, 1.25)
    assert rates(haiku.batch) == (0.5, 2.5, 0.05, 0.625)
    assert haiku.flex is None
    assert rates(mini) == (0.25, 2.0, 0.025, None)
    assert rates(mini.flex) == rates(mini.batch) == (0.125, 1.0, 0.0125, None)
    # The list has no flex price of it: it is that of the batch lane. A cache is no cheaper there.
    older = price_of("openai/gpt-4.1")
    assert rates(older.batch) == rates(older.flex) == (1.0, 4.0, 0.5, None)
    pro = price_of("gemini/gemini-2.5-pro")
    assert [above for above, _ in pro.longer] == [200_000]
    assert rates(pro.longer[0][1]) == (2.5, 15.0, 0.25, None)
    assert rates(pro.batch.longer[0][1])[:2] == (1.25, 7.5)
    assert rates(price_of("litellm/groq/llama-3.3-70b-versatile"))[:2] == (0.59, 0.79)
    # A dated name is the same model.
    assert price_of("openai/gpt-5-mini-2025-08-07") == mini


def test_a_model_of_the_own_machines_is_free_and_an_unknown_one_has_no_price(monkeypatch):
    def refused(*_):
        raise AssertionError

    monkeypatch.setattr(socket.socket, "connect", refused)
    assert {price_of(model) for model in ("local", "fake", "fake?seed=3")} == {FREE}
    unknown = ("openai/made-up", "my.module:ask", "litellm/none/x", "litellm/x", "callable:f-1")
    assert {price_of(model) for model in unknown} == {None}


@pytest.mark.parametrize(
    ("address", "model", "is_known"),
    [
        # Behind a proxy, the name says whose model it is.
        ("http://127.0.0.1:8000/v1", MINI, True),
        ("http://127.0.0.1:8000/v1", "openai/Qwen/Qwen3-8B", False),
        # Open weights on the machine of the user.
        ("http://127.0.0.1:8000/v1", "openai/gpt-oss-20b", False),
        ("https://openrouter.ai/api/v1", "openai/anthropic/claude-haiku-4.5", True),
        ("https://openrouter.ai/api/v1", "openai/made-up", False),
        ("https://api.deepseek.com/v1", "openai/deepseek-chat", True),
        ("https://api.deepseek.com/v1", MINI, False),
        ("https://mine.openai.azure.com/openai/v1", MINI, True),
    ],
)
def test_another_address_has_the_prices_of_its_provider(monkeypatch, address, model, is_known):
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    assert (price_of(model) is not None) == is_known


def test_what_the_user_gives_wins_and_the_rest_follows_the_known_price():
    price = price_of(HAIKU, {"*": GIVEN})
    assert rates(price) == (1.0, 4.0, 0.1, 1.25)
    assert (rates(price.batch)[:2], price.flex, price.is_given) == ((0.5, 2.0), None, True)
    dear = PriceSpec(input_mtok=2.0, output_mtok=4.0)
    doubled = price_of(HAIKU, {"*": GIVEN, HAIKU: dear})
    assert rates(doubled) == pytest.approx((2.0, 4.0, 0.2, 2.5))
    unknown = price_of("openai/made-up", {"*": GIVEN})
    assert rates(unknown) == (1.0, 4.0, None, None)
    assert rates(unknown.batch) == rates(unknown.flex) == (0.5, 2.0, None, None)
    whole = PriceSpec(
        input_mtok=1, output_mtok=4, cached_input_mtok=0.5, cache_write_mtok=2, flex=1, batch=0.25
    )
    price = price_of("openai/made-up", {"*": whole})
    assert (rates(price), rates(price.flex)) == ((1.0, 4.0, 0.5, 2.0),) * 2
    assert rates(price.batch) == (0.25, 1.0, 0.125, 0.5)
    # What a cache served is not half again, but for Anthropic.
    cached = {"*": PriceSpec(input_mtok=1, output_mtok=4, cached_input_mtok=0.1)}
    assert rates(price_of("openai/made-up", cached).batch) == (0.5, 2.0, 0.1, None)
    assert rates(price_of("gemini/made-up", cached).flex) == (0.5, 2.0, 0.1, None)
    assert rates(price_of("anthropic/made-up", cached).batch) == (0.5, 2.0, 0.05, None)
    assert rates(price_of("fake", {"*": GIVEN})) == (1.0, 4.0, None, None)
    assert price_of("fake", {"local": GIVEN}) == FREE


def test_a_file_has_the_prices_of_a_process(monkeypatch, tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("openai/made-up: {input_mtok: 1, output_mtok: 4}\n")
    monkeypatch.setenv("FANOUT_PRICES", str(path))
    assert str(load_settings().prices) == str(path)
    assert rates(price_of("openai/made-up"))[:2] == (1.0, 4.0)
    assert price_of(MINI).is_given is False
    # The job's own price wins.
    own = PriceSpec(input_mtok=3, output_mtok=4)
    assert price_of("openai/made-up", {"*": own}).input_mtok == 3.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["cannot read the file of prices"]),
        ("- 1", ["a file of prices is a mapping of models, not list"]),
        ("a: [", ["not valid YAML"]),
        ("openai/x: {input_mtok: -1, output_mtok: 2}", ["openai/x.input_mtok: must be 0 or more", "-1"]),
        ("openai/x: {input_mtok: 1}", ["openai/x.output_mtok: is required"]),
        ("openai/x: {input: 1, output_mtok: 1, input_mtok: 1}", ["openai/x.input: there is no such field",
                                                                 "cached_input_mtok"]),
        ("openai/x: cheap\nb: {}", ["openai/x: must be a mapping", "'cheap'"]),
    ],
)  # fmt: skip
def test_a_wrong_file_names_the_model_the_part_and_what_is_allowed(
    monkeypatch, tmp_path, text, words
):
    path = tmp_path / "prices.yaml"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("FANOUT_PRICES", str(path))
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for word in ("FANOUT_PRICES", str(path), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("price", "words"),
    [
        ({"input_mtok": -1, "output_mtok": 2}, ["price.input_mtok: must be 0 or more (got -1)"]),
        ({"input_mtok": "1", "output_mtok": 2}, ["price.input_mtok: must be a number, not text"]),
        ({"input_mtok": 1}, ["price.output_mtok: is required"]),
        ({"input_mtoks": 1, "output_mtok": 2}, ["price.input_mtoks:", "did you mean input_mtok?"]),
        ({"fake": {"input_mtok": 1, "output_mtok": 2, "batch": 2}}, ["price.fake.batch: must be a share"]),
        ({"local": {"input_mtok": 1, "output_mtok": 2}}, ["does not ask (got local; it asks fake)"]),
        ({"fake": {"input_mtok": 1, "output_mtok": 2}, "fakee": {"input_mtok": 1, "output_mtok": 2}},
         ["does not ask (got fakee; it asks fake)"]),
        (3, ["price: must be a mapping (got 3)"]),
    ],
)  # fmt: skip
def test_a_wrong_price_of_a_job_names_its_part(price, words):
    with pytest.raises(SpecError) as caught:
        make_spec(model="fake", prompt="p", price=price)
    for word in words:
        assert word in str(caught.value)


def test_models_without_a_price_are_named_before_the_run():
    spec = make_spec(model=["openai/a", MINI], fallback=["fake", "m:f", "openai/b"], prompt="p")
    (line,) = unpriced(spec)
    assert line.startswith("the price of openai/a, openai/b is not known")
    priced = spec.model_copy(update={"price": {"*": GIVEN}})
    assert list(unpriced(priced)) == []
    assert list(unpriced(make_spec(model="m:f", prompt="p"))) == []


def test_a_price_is_stored_with_its_run():
    for price in (
        {"input_mtok": 1, "output_mtok": 2},
        {"fake": {"input_mtok": 1, "output_mtok": 2}},
    ):
        spec = make_spec(model="fake", prompt="p", price=price)
        stored = stored_spec(spec.model_dump_json())
        assert stored.price == spec.price
        assert rates(price_of("fake", stored.price))[:2] == (1.0, 2.0)


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (HAIKU, 200_000),
        ("anthropic/claude-opus-4-6", 1_000_000),
        ("openai/gpt-4o-mini", 128_000),
        # 400,000 less the 128,000 that only an answer may use.
        (MINI, 272_000),
        ("openai/gpt-5.1-2025-11-13", 272_000),
        ("gemini/gemini-2.5-pro", 1_048_576),
        ("litellm/gemini/gemini-2.5-pro", 1_048_576),
        ("litellm/openai/gpt-4o", 128_000),
        ("openai/gpt-oss-20b", 131_072),
        ("openai/made-up", None),
        ("anthropic/claude-of-tomorrow", 200_000),
    ],
)
def test_windows_are_those_of_the_list(monkeypatch, model, tokens):
    assert (window_of(model), known_context_tokens(model)) == (tokens, tokens)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    assert window_of(model) == tokens
