"""How far the estimate of tokens is off, before any call and after 200 calls, with real tokenizers.

    python -m benchmarks.token_estimate

The texts are of this machine: English reviews (../shared/data/movie-reviews.tsv, or the examples), the
German and the Chinese messages of git, coreutils, PostgreSQL, GnuPG, dpkg and bash
(/usr/share/locale), and the Python sources of the standard library. The tokenizers are those that the
package litellm brings along (`pip install litellm`), and the one of the local model. The provider adds 12
tokens to each prompt. Prints a table in Markdown.
"""

from __future__ import annotations

import gettext
import os
import random
import struct
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tokenizers import Tokenizer, models, pre_tokenizers

from fanout.core.settings import load_settings
from fanout.core.tokens import estimate_tokens
from fanout.policy.token_ratio import TokenRatio, TokenSums, bytes_by_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Count = Callable[[str], int]

CALLS = 200
AROUND = 12
PROMPT = "Summarise in one sentence:\n\n"
_SHORTEST = 20
_LOCALE = Path("/usr/share/locale")
_CATALOGUES = ("git", "coreutils", "postgres-15", "gnupg2", "dpkg", "bash", "libc")
_REVIEWS = Path(__file__).parents[2] / "shared" / "data" / "movie-reviews.tsv"
_EXAMPLES = Path(__file__).parents[1] / "examples"


def main() -> None:
    """Print the table."""
    texts = {
        "English": _documents(_english()),
        "German": _documents(_messages("de")),
        "Chinese": _documents(_messages("zh_CN")),
        "code": _documents(_code()),
    }
    print(
        "| tokenizer | texts | before any call | after 200 calls | their sum | after 50 of each |"
    )
    print("|---|---|---|---|---|---|")
    for name, count in _counters():
        everything = [one for some in texts.values() for one in _split(some)[0][: CALLS // 4]]
        mixed = _learnt(count, everything)
        for kind, some in texts.items():
            train, test = _split(some)
            own = _learnt(count, train)
            before = _error(count, test, estimate_tokens)
            after = _error(count, test, own)
            total = abs(sum(map(own, test)) / sum(map(count, test)) - 1)
            figures = (before, after, total, _error(count, test, mixed))
            print(f"| {name} | {kind} |", " | ".join(f"{one:.1%}" for one in figures), "|")


def _learnt(count: Count, prompts: Sequence[str]) -> Count:
    calls = [TokenSums.of_call(bytes_by_kind([one]), count(one)) for one in prompts]
    ratio = TokenRatio.fitted(TokenSums.total(calls))
    return lambda text: ratio.tokens([text])


def _error(count: Count, prompts: Sequence[str], estimate: Count) -> float:
    return sum(abs(estimate(one) / count(one) - 1) for one in prompts) / len(prompts)


def _split(prompts: list[str]) -> tuple[list[str], list[str]]:
    """Return the prompts to learn from, and others."""
    return prompts[:CALLS], prompts[CALLS : CALLS + 100]


def _documents(pieces: list[str]) -> list[str]:
    """Return prompts of 200 to 2,400 bytes, each of several pieces, in a fixed random order."""
    chance = random.Random(1)  # noqa: S311 - no secret
    chance.shuffle(pieces)
    made: list[str] = []
    some: list[str] = []
    most = chance.randint(200, 2_400)
    for piece in pieces:
        some.append(piece)
        if sum(len(one.encode()) for one in some) >= most:
            made.append(PROMPT + "\n".join(some))
            some, most = [], chance.randint(200, 2_400)
    if len(made) < CALLS * 1.2:
        raise SystemExit(f"too few texts: {len(made)}")
    return made[: CALLS + 100]


def _english() -> list[str]:
    if _REVIEWS.exists():
        lines = _REVIEWS.read_text().splitlines()
        return [line.rpartition("\t")[2] for line in lines if line.strip()] + _messages("de", 0)
    return [path.read_text() for path in sorted(_EXAMPLES.rglob("*.txt"))] + _messages("de", 0)


def _messages(language: str, at: int = 1) -> list[str]:
    """Return messages of programs in a language; with ``at`` 0, the English ones of which they are."""
    found: list[str] = []
    for name in _CATALOGUES:
        path = _LOCALE / language / "LC_MESSAGES" / f"{name}.mo"
        if path.exists():
            with path.open("rb") as file:
                pairs = vars(gettext.GNUTranslations(file))["_catalog"].items()
            found += [
                pair[at]
                for pair in pairs
                if isinstance(pair[0], str)
                and isinstance(pair[1], str)
                and pair[0] != pair[1] != ""
            ]
    return [one for one in found if len(one) >= _SHORTEST]


def _code() -> list[str]:
    folder = Path(sysconfig.get_path("stdlib"))
    found: list[str] = []
    for path in sorted(folder.glob("*.py")):
        lines = path.read_text(errors="replace").splitlines()
        found += ["\n".join(lines[at : at + 30]) for at in range(0, len(lines), 30)]
    return found


def _counters() -> Iterator[tuple[str, Count]]:
    litellm = find_spec("litellm")
    if litellm is not None and litellm.origin is not None:
        folder = Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"
        os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
        import tiktoken

        openai = tiktoken.get_encoding("o200k_base")
        yield (
            "OpenAI (o200k)",
            lambda text: AROUND + len(openai.encode(text, disallowed_special=())),
        )
        for name, file in (("DeepSeek", "deepseek"), ("Claude 2", "anthropic")):
            yield name, _counting(Tokenizer.from_file(str(folder / f"{file}_tokenizer.json")))
    for path in sorted(Path(load_settings().cache_dir, "models").glob("*.gguf"))[:1]:
        yield "SmolLM2 (local)", _counting(_of_gguf(path))


def _counting(tokenizer: Any) -> Count:
    return lambda text: AROUND + len(tokenizer.encode(text).ids)


def _of_gguf(path: Path) -> Tokenizer:
    """Return the tokenizer of the local model, from the tables in its file."""
    with path.open("rb") as file:
        file.read(8)
        _, count = struct.unpack("<QQ", file.read(16))
        tables = dict(_entry(file) for _ in range(count))
    merges = [tuple(one.split(" ")) for one in tables["tokenizer.ggml.merges"]]
    vocabulary = {token: at for at, token in enumerate(tables["tokenizer.ggml.tokens"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return made


def _entry(file: BinaryIO) -> tuple[str, Any]:
    name = _string(file)
    (kind,) = struct.unpack("<I", file.read(4))
    return name, _value(file, kind)


_STRING, _ARRAY = 8, 9
_FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        of, count = struct.unpack("<IQ", file.read(12))
        return [_value(file, of) for _ in range(count)]
    form = f"<{_FORMATS[kind]}"
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    (size,) = struct.unpack("<Q", file.read(8))
    return file.read(size).decode(errors="replace")


if __name__ == "__main__":
    main()
