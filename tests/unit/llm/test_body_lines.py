"""Bodies by lines: parts of any size, lines that are too long, and bodies that trickle."""

from __future__ import annotations

import asyncio

import pytest

from fanout.core.records import ErrorKind
from fanout.llm.body_lines import Line, TooSlowError, lines_of


class Body:
    """Parts of a body, each with the seconds after which it arrives."""

    def __init__(self, parts):
        self._parts = iter(parts)
        self.now = 0.0

    async def read(self):
        wait_s, part = next(self._parts, (0.0, b""))
        self.now += wait_s
        return part

    async def lines(self, taken_s=0.0):
        lines = []
        async for line in lines_of(self.read, most_bytes=10, slow_s=120, clock=lambda: self.now):
            lines.append(line)
            self.now += taken_s
        return lines


def test_lines_do_not_depend_on_the_parts_of_a_body():
    text = b"one\n\ntwo\n" + b"x" * 11 + b"\nend"
    lines = [Line(b"one"), Line(b""), Line(b"two"), Line(b"x" * 11, is_too_long=True), Line(b"end")]
    for size in (1, 4, len(text)):
        parts = [(0.0, text[start : start + size]) for start in range(0, len(text), size)]
        assert asyncio.run(Body(parts).lines()) == lines


@pytest.mark.parametrize(
    ("parts", "is_slow"),
    [
        ([(1.0, b"\n")] * 119, False),
        ([(1.0, b"\n")] * 121, True),
        # Fast first: each span counts by itself.
        ([(1.0, b"123456\n" * 100_000), (120.0, b"\n"), *[(1.0, b"\n")] * 120], True),
        ([(1.0, b"123456\n" * 200)] * 300, False),
        ([(100.0, b"123456\n" * 20_000)] * 5, False),
    ],
)
def test_a_body_that_trickles_is_given_up(parts, is_slow):
    # The time that the caller takes is not the provider's.
    step = Body(parts).lines(taken_s=1_000.0)
    if not is_slow:
        assert len(asyncio.run(step)) == sum(part.count(b"\n") for _, part in parts)
        return
    with pytest.raises(TooSlowError) as caught:
        asyncio.run(step)
    assert caught.value.kind is ErrorKind.TIMEOUT
