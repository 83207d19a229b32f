"""How many tokens a text has for a model, learnt from the usage that its calls come back with.

A tokenizer makes few tokens of words that it knows, and many of code or of scripts that it does not.
So there is no ratio of bytes to tokens that holds for all texts of a model: its calls are fitted by a
sum over kinds of bytes, and a constant for what is put around each prompt. The fit is a weighted ridge
regression around the estimate without a tokenizer, a quarter of the bytes. Its sums can be added: each
worker gathers its own, and the fleet's are the sum of all.
"""

from __future__ import annotations

from math import ceil, isfinite
from typing import TYPE_CHECKING, Self

import msgspec

from fanout.core.tokens import BYTES_PER_TOKEN, encoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "KINDS",
    "MOST_CALLS",
    "SUMS",
    "TokenRatio",
    "TokenSums",
    "bytes_by_kind",
    "kept_ratio",
    "script_of",
]

# The kinds of bytes of a prompt. Together they are all of its bytes but `calls`, which is 1 for each
# call: the tokens of the chat template.
KINDS = (
    "calls",
    "lower",  # small ASCII letters
    "upper",  # capital ASCII letters
    "digits",
    "spaces",  # between words
    "indents",  # spaces in pairs, as code has them
    "marks",  # the rest of ASCII
    "latin",  # of characters of 2 bytes: accented Latin, Greek, Cyrillic, Arabic and others
    "han",  # of Chinese characters
    "others",  # of all other characters
    "shapes",  # of the schema, which some providers count, and others do not
)
_COUNT = len(KINDS)
# The sums of a fit: a triangle of products, and the products with what the estimate is wrong by.
SUMS = _COUNT * (_COUNT + 1) // 2 + _COUNT

# Of older calls less is remembered: a provider may change its tokenizer.
MOST_CALLS = 2_000.0

# Byte by byte: which kind it begins or is.
_LOWER, _UPPER, _DIGIT, _SPACE, _MARK, _TWO, _HAN, _OTHER, _REST = b"lUd smho."
_TABLE = bytes(
    _LOWER if 0x61 <= byte <= 0x7A  # noqa: PLR2004 - ranges of UTF-8
    else _UPPER if 0x41 <= byte <= 0x5A  # noqa: PLR2004
    else _DIGIT if 0x30 <= byte <= 0x39  # noqa: PLR2004
    else _SPACE if byte == 0x20  # noqa: PLR2004
    else _MARK if byte < 0x80  # noqa: PLR2004
    else _REST if byte < 0xC0  # noqa: PLR2004 - a later byte of a character
    else _TWO if byte < 0xE0  # noqa: PLR2004
    else _HAN if 0xE4 <= byte <= 0xE9  # noqa: PLR2004
    else _OTHER
    for byte in range(256)
)  # fmt: skip

# How far the tokens of a byte may be from a quarter, and those around a prompt from none: standard
# deviations. The noise of a call grows with its bytes.
_SPREAD = 0.2
_CALL_SPREAD = 30.0
_NOISE = 0.3
_RIDGE = tuple(_NOISE / (_CALL_SPREAD if name == "calls" else _SPREAD) ** 2 for name in KINDS)
# No text is so far from the estimate.
_MOST_OFF = 6.0
# What is lost in sums of fractions.
_ROUNDING = 1e-6


def bytes_by_kind(texts: Iterable[str], *, shape_bytes: int = 0) -> list[int]:
    """Return how many bytes of each kind the texts of one call have.

    Args:
        texts: Its prompt, system prompt and so on.
        shape_bytes: The size of the schema of its answer.
    """
    counts = [0] * _COUNT
    counts[0] = 1
    for text in texts:
        if not text:
            continue
        data = encoded(text)
        kinds = data.translate(_TABLE)
        lower, spaces, pairs = kinds.count(b"l"), kinds.count(b" "), data.count(b"  ")
        upper, digits = kinds.count(b"U"), kinds.count(b"d")
        two = han = 0
        if len(data) == len(text):
            marks, others = len(data) - lower - spaces - upper - digits, 0
        else:
            marks, two, han = kinds.count(b"s"), 2 * kinds.count(b"m"), 3 * kinds.count(b"h")
            others = len(data) - lower - spaces - upper - digits - marks - two - han
        found = (lower, upper, digits, spaces - 2 * pairs, 2 * pairs, marks, two, han, others)
        for at, count in enumerate(found, 1):
            counts[at] += count
    counts[-1] = shape_bytes
    return counts


class TokenSums(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the calls to a model, as sums that can be added.

    Attributes:
        calls: The calls; those of long ago count less.
        fit: The sums of the regression; see SUMS.
        output_tokens: Tokens of their answers.
        output_squares: The sum of the squares of these.
        answers: The calls whose answer has known tokens.
        elapsed_s: Seconds that the calls took.
    """

    calls: float = 0.0
    fit: tuple[float, ...] = (0.0,) * SUMS
    output_tokens: float = 0.0
    output_squares: float = 0.0
    answers: float = 0.0
    elapsed_s: float = 0.0

    @classmethod
    def of_call(
        cls,
        kinds: Sequence[int],
        input_tokens: int,
        *,
        output_tokens: int | None = None,
        elapsed_s: float = 0.0,
    ) -> Self:
        """Return the sums of one call.

        Args:
            kinds: Its bytes by kind.
            input_tokens: The tokens that the provider has counted in its prompt.
            output_tokens: Those of its answer, or None.
            elapsed_s: Seconds that it took.
        """
        size = sum(kinds) - 1
        weight = 1.0 / max(1, size)
        wrong = (input_tokens - size / BYTES_PER_TOKEN) * weight
        products = [one * other * weight for at, one in enumerate(kinds) for other in kinds[at:]]
        return cls(
            calls=1.0,
            fit=(*products, *(one * wrong for one in kinds)),
            output_tokens=output_tokens or 0,
            output_squares=float((output_tokens or 0) ** 2),
            answers=0.0 if output_tokens is None else 1.0,
            elapsed_s=elapsed_s,
        )

    @classmethod
    def total(cls, some: Sequence[TokenSums]) -> TokenSums:
        """Return the sums of all of them."""
        return cls.of_numbers(
            [sum(each) for each in zip(*(one.numbers for one in some), strict=True)]
        )

    @property
    def numbers(self) -> list[float]:
        """All sums in one list, the calls first."""
        rest = [self.output_tokens, self.output_squares, self.answers, self.elapsed_s]
        return [self.calls, *rest, *self.fit]

    @classmethod
    def of_numbers(cls, numbers: Sequence[float]) -> TokenSums:
        """Return the sums of such a list; those of none if it is damaged, or of other kinds."""
        if len(numbers) != len(_NONE) or not all(map(isfinite, numbers)):
            return cls()
        calls, output_tokens, output_squares, answers, elapsed_s, *fit = numbers
        return cls(
            calls=calls,
            output_tokens=output_tokens,
            output_squares=output_squares,
            answers=answers,
            elapsed_s=elapsed_s,
            fit=tuple(fit),
        )


_NONE = TokenSums().numbers


class TokenRatio(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens that a model makes of bytes, by their kind.

    Attributes:
        weights: Tokens for each byte of a kind, in the order of KINDS.
        calls: The calls that it is learnt from; 0 is the estimate without a tokenizer.
    """

    weights: tuple[float, ...] = (0.0, *(1 / BYTES_PER_TOKEN,) * (_COUNT - 1))
    calls: float = 0.0

    @classmethod
    def fitted(cls, sums: TokenSums) -> Self:
        """Return the ratio that fits the calls best."""
        if not sums.calls:
            return cls()
        rows = [[0.0] * (_COUNT + 1) for _ in range(_COUNT)]
        numbers = iter(sums.fit)
        for at in range(_COUNT):
            for other in range(at, _COUNT):
                rows[at][other] = rows[other][at] = next(numbers)
        for at in range(_COUNT):
            rows[at][at] += _RIDGE[at]
            rows[at][_COUNT] = next(numbers)
        off = _solved(rows)
        weights = tuple(one + more for one, more in zip(cls().weights, off, strict=True))
        return cls(weights=weights, calls=sums.calls)

    def tokens_of(self, kinds: Sequence[float]) -> float:
        """Return the expected tokens of bytes by kind, of one call or of several."""
        plain = (sum(kinds) - kinds[0]) / BYTES_PER_TOKEN
        found = sum(one * count for one, count in zip(self.weights, kinds, strict=True))
        around = max(0.0, self.weights[0]) * kinds[0]
        return min(max(found, plain / _MOST_OFF), plain * _MOST_OFF + around)

    def tokens(self, texts: Iterable[str], *, shape_bytes: int = 0) -> int:
        """Return the expected tokens of the prompt of a call, rounded up."""
        return ceil(self.tokens_of(bytes_by_kind(texts, shape_bytes=shape_bytes)) - _ROUNDING)

    def bytes_per_token(self, text: str) -> float:
        """Return how many bytes of a text make a token, without what is around a prompt."""
        kinds = bytes_by_kind((text,))
        kinds[0] = 0
        size = sum(kinds)
        return size / self.tokens_of(kinds) if size else float(BYTES_PER_TOKEN)


def _solved(rows: list[list[float]]) -> list[float]:
    """Return the solution of linear equations by Cholesky-like elimination; the last column is theirs.

    The matrix is symmetric and positive definite, as each diagonal has a ridge: no pivoting is needed.
    """
    size = len(rows)
    for at, row in enumerate(rows):
        for below in rows[at + 1 :]:
            factor = below[at] / row[at]
            if factor:
                for column in range(at, size + 1):
                    below[column] -= factor * row[column]
    found = [0.0] * size
    for at in reversed(range(size)):
        row = rows[at]
        known = sum(row[column] * found[column] for column in range(at + 1, size))
        found[at] = (row[size] - known) / row[at]
    return found


# Chunks keep their boundaries, and so their answers in the response cache, while the ratio that they
# were made with is not further off than this.
_MOST_WRONG = 1.2
# No tokenizer makes more of a text, in any script: a server that reports fewer tokens has not counted all.
_MOST_BYTES = 8.0


def kept_ratio(kept: float | None, learnt: float) -> float:
    """Return the bytes per token that texts are to be cut by.

    Args:
        kept: What such texts were last cut by; None is the estimate without a tokenizer.
        learnt: What is known now.
    """
    before, learnt = kept or float(BYTES_PER_TOKEN), min(learnt, _MOST_BYTES)
    is_near = 1 / _MOST_WRONG <= learnt / before <= _MOST_WRONG
    return before if is_near else round(learnt, 2)


# Above this share of marks and indents a text is code or data.
_CODE = 0.15


def script_of(text: str) -> str:
    """Return the kind of a text, by what most of it is: for each, another ratio is kept."""
    kinds = dict(zip(KINDS, bytes_by_kind((text,)), strict=True))
    size = max(1, len(encoded(text)))
    for name in ("han", "others", "latin"):
        # German has few bytes of its own script, Russian has many.
        if kinds[name] > size * 0.4:
            return name
    if kinds["marks"] + kinds["indents"] > size * _CODE:
        return "code"
    return "words"
