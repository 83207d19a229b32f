"""How the tokens of texts are counted: by their bytes, or by the tokenizer of a model.

Tokenizers are optional packages (the extra ``tokens``), which are imported when one is named.
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from importlib import import_module
from math import ceil
from typing import TYPE_CHECKING, Any

from fanout.core.errors import SpecError
from fanout.core.tokens import BYTES_PER_TOKEN, utf8_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["TokenCounter", "bytes_tokenizer", "make_counter", "ratio_of"]

_BYTES = re.compile(r"bytes/(\d+(?:\.\d+)?)")
_LEAST_RATIO, _MOST_RATIO = 0.25, 100.0
_TIKTOKEN = "tiktoken"
_MISSING = "{} is not installed: pip install 'fanout-llm[tokens]'"


class TokenCounter:
    """Counts tokens.

    A text is measured in units that can be added up: bytes, or the tokens themselves.

    Args:
        bytes_per_token: How many bytes of UTF-8 are a token.
        exact: Returns the tokens of a text; it wins over the bytes.

    Attributes:
        bytes_per_token: The bytes of a token; None if they are not what counts.
    """

    def __init__(
        self,
        bytes_per_token: float = float(BYTES_PER_TOKEN),
        *,
        exact: Callable[[str], int] | None = None,
    ) -> None:
        self.bytes_per_token = None if exact is not None else bytes_per_token
        self.units: Callable[[str], int] = utf8_bytes if exact is None else exact

    def __call__(self, text: str) -> int:
        """Return the tokens of a text."""
        return self.tokens_of(self.units(text))

    def tokens_of(self, units: int) -> int:
        """Return the tokens of so many units."""
        if self.bytes_per_token is None:
            return units
        return ceil(units / self.bytes_per_token)


def bytes_tokenizer(bytes_per_token: float) -> str:
    """Return how a job says that so many bytes are a token."""
    return f"bytes/{bytes_per_token:g}"


def ratio_of(tokenizer: str | None) -> float | None:
    """Return the bytes per token of ``bytes/N``; None for anything else.

    Raises:
        SpecError: N is not a sensible number.
    """
    match = None if tokenizer is None else _BYTES.fullmatch(tokenizer)
    if match is None:
        return None
    ratio = float(match[1])
    if not _LEAST_RATIO <= ratio <= _MOST_RATIO:
        raise SpecError(
            f"bytes/N takes {_LEAST_RATIO:g} to {_MOST_RATIO:g} bytes for a token (got {tokenizer!r})",
            field="tokenizer",
        )
    return ratio


def make_counter(tokenizer: str | None, *, model: str = "") -> TokenCounter:
    """Return what counts tokens as a job says.

    Args:
        tokenizer: ``bytes/N``; ``tiktoken``, for the encoding of an OpenAI model, or
            ``tiktoken:ENCODING``; the path of a ``tokenizer.json``; or the name of a model at Hugging
            Face. None is a quarter of the bytes.
        model: The model, for ``tiktoken``.

    Raises:
        SpecError: There is no such tokenizer, or its package is not installed.
    """
    if tokenizer is None:
        return TokenCounter()
    if tokenizer.startswith("bytes/"):
        ratio = ratio_of(tokenizer)
        if ratio is None:
            raise _unknown(tokenizer, "bytes/N needs a number")
        return TokenCounter(ratio)
    name, _, encoding = tokenizer.partition(":")
    if name == _TIKTOKEN:
        return TokenCounter(exact=_tiktoken(tokenizer, encoding, model))
    return TokenCounter(exact=_tokenizers(tokenizer))


def _tiktoken(tokenizer: str, encoding: str, model: str) -> Callable[[str], int]:
    try:
        import tiktoken
    except ImportError:
        raise _unknown(tokenizer, _MISSING.format("tiktoken")) from None
    try:
        found: Any = (
            tiktoken.get_encoding(encoding)
            if encoding
            else tiktoken.encoding_for_model(model.rpartition("/")[2])
        )
    except KeyError:
        raise _unknown(
            tokenizer, f"tiktoken knows no encoding of {model}; give tiktoken:ENCODING"
        ) from None
    except ValueError as error:
        known = ", ".join(tiktoken.list_encoding_names())
        raise _unknown(tokenizer, f"{_first_line(error)} (known: {known})") from None
    except Exception as error:  # noqa: BLE001 - it fetches encodings with a client of its own
        raise _unknown(tokenizer, f"it cannot be fetched: {_first_line(error)}") from None
    return lambda text: len(found.encode(_sound(text), disallowed_special=()))


def _tokenizers(tokenizer: str) -> Callable[[str], int]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise _unknown(tokenizer, _MISSING.format("tokenizers")) from None
    is_file = tokenizer.endswith(".json")
    try:
        if is_file:
            found = Tokenizer.from_file(tokenizer)
        else:
            with _silent_client():
                found = Tokenizer.from_pretrained(tokenizer)
    except Exception as error:  # noqa: BLE001 - it raises bare exceptions
        what = "it cannot be read" if is_file else "it cannot be fetched from Hugging Face"
        raise _unknown(tokenizer, f"{what}: {_first_line(error)}") from None
    found.no_padding()
    found.no_truncation()
    return lambda text: len(found.encode(_sound(text), add_special_tokens=False).ids)


@contextmanager
def _silent_client() -> Iterator[None]:
    """Keep the client of Hugging Face from printing its tries: the error says the last."""
    client: Any = import_module("huggingface_hub.utils")
    level, had_bars = client.logging.get_verbosity(), not client.are_progress_bars_disabled()
    client.logging.set_verbosity(logging.CRITICAL + 1)
    client.disable_progress_bars()
    try:
        yield
    finally:
        client.logging.set_verbosity(level)
        if had_bars:
            client.enable_progress_bars()


def _sound(text: str) -> str:
    """Return a text without lone surrogates, which no tokenizer takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _unknown(tokenizer: str, reason: str) -> SpecError:
    return SpecError(f"{reason} (got {tokenizer!r})", field="tokenizer")


def _first_line(error: BaseException) -> str:
    """Return why something failed: the first cause, as the messages of clients are long."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
