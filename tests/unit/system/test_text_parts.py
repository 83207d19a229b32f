"""Texts in parts."""

from __future__ import annotations

import pytest

from fanout.system.text_parts import long_parts


@pytest.mark.parametrize("count", [0, 1, 999, 64_000, 64_001, 200_000])
def test_short_parts_become_long_ones(count):
    text = "ab" * count
    parts = list(long_parts(text))
    assert "".join(parts) == text
    assert all(len(part) >= 64_000 for part in parts[:-1])
    assert len(parts) <= len(text) // 64_000 + 1


def test_a_part_is_given_as_soon_as_it_is_long():
    taken = []
    parts = long_parts(taken.append(at) or "a" * 64_000 for at in range(3))
    next(parts)
    assert taken == [0]
