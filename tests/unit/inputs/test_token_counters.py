"""What counts the tokens of a job's texts."""

from __future__ import annotations

import logging
import sys
from importlib import import_module

import pytest
import tiktoken
from tiktoken import registry
from tokenizers import Tokenizer, models, pre_tokenizers

from fanout.core.errors import SpecError
from fanout.core.tokens import estimate_tokens
from fanout.inputs.splitters import make_splitter
from fanout.inputs.token_counters import bytes_tokenizer, make_counter, ratio_of

hub = import_module("huggingface_hub.utils")
TEXT = "Eine kleine Küche. Noch ein Satz, 人人生而自由。 " * 40


@pytest.fixture
def encoding(monkeypatch):
    """An encoding of one token a byte, as OpenAI's cannot be fetched here."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    made = tiktoken.Encoding(
        name="of-bytes", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|end|>": 256}
    )
    monkeypatch.setitem(registry.ENCODINGS, "of-bytes", made)
    return "tiktoken:of-bytes"


@pytest.fixture
def tokenizer_json(tmp_path):
    """A tokenizer of one token a word."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.enable_truncation(3)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return str(path)


def test_bytes_are_counted():
    assert make_counter(None)(TEXT) == make_counter("bytes/4")(TEXT) == estimate_tokens(TEXT)
    assert make_counter("bytes/2.5")("x" * 11) == 5
    assert bytes_tokenizer(2.5) == "bytes/2.5"
    assert ratio_of("bytes/2.5") == 2.5
    assert ratio_of("tiktoken") is ratio_of(None) is None


def test_an_encoding_of_tiktoken_counts_exactly(encoding):
    count = make_counter(encoding)
    assert count(TEXT) == len(TEXT.encode())
    assert count("<|end|>") == 7, "a document has no special tokens"
    assert count("a\ud800") == 2, "a lone surrogate is counted as one sign"


def test_a_tokenizer_json_counts_exactly(tokenizer_json):
    count = make_counter(tokenizer_json)
    assert count(TEXT) == len(TEXT.split()), "not only the tokens that the model would be given"
    assert count("") == 0


@pytest.mark.parametrize("split", ["tokens", "markdown", "sentences"])
@pytest.mark.parametrize("overlap", [0, 4])
def test_chunks_are_as_large_as_the_tokenizer_says(encoding, tokenizer_json, split, overlap):
    for name in (encoding, tokenizer_json, "bytes/1.5", "bytes/9"):
        count = make_counter(name)
        for text in (TEXT, "plain words and no more. " * 60):
            spans = list(
                make_splitter(split, chunk_tokens=20, chunk_overlap_tokens=overlap, count=count)(
                    text
                )
            )
            sizes = [count(text[start:end]) for start, end in spans]
            assert max(sizes) <= 20, name
            assert sum(sizes) / len(sizes) > 8, name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bytes/0", "takes 0.25 to 100"),
        ("bytes/1000", "takes 0.25 to 100"),
        ("bytes/x", "needs a number"),
        ("tiktoken:none-such", "Unknown encoding none-such"),
        ("tiktoken", "knows no encoding of openai/m"),
        ("missing.json", "cannot be read"),
    ],
)
def test_a_wrong_tokenizer_is_refused(name, reason):
    with pytest.raises(SpecError, match=reason) as found:
        make_counter(name, model="openai/m")
    assert found.value.field == "tokenizer"
    assert repr(name) in str(found.value)


@pytest.mark.parametrize(("name", "package"), [("tiktoken", "tiktoken"), ("org/m", "tokenizers")])
def test_a_missing_package_says_what_to_install(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SpecError, match=r"pip install 'fanout-llm\[tokens\]'"):
        make_counter(name)


@pytest.mark.parametrize("name", ["org/none-such", "tiktoken:o200k_base"])
def test_what_cannot_be_fetched_is_refused_in_one_line(monkeypatch, capfd, name):
    def refused(*_args, **_kwargs):
        hub.logging.get_logger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        with hub.tqdm(total=1) as bar:
            bar.update()
        raise OSError("An error happened while, and so on") from OSError("no network")

    hub.logging.set_verbosity_warning()
    monkeypatch.setitem(registry.ENCODINGS, "o200k_base", None)
    monkeypatch.setattr("tiktoken.get_encoding", refused)
    monkeypatch.setattr("tokenizers.Tokenizer.from_pretrained", refused, raising=False)
    with pytest.raises(SpecError, match=r"cannot be fetched.*: no network \(got"):
        make_counter(name)
    assert name.startswith("tiktoken") or capfd.readouterr().err == ""
    assert hub.logging.get_verbosity() == logging.WARNING
    assert not hub.are_progress_bars_disabled()
