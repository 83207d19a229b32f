"""Tables that scroll in their own box where they are wider than the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.report.markup import Markup, tag

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["folded", "table"]


def table(
    name: str,
    heads: Iterable[str],
    rows: Iterable[Iterable[str | None]],
    *,
    numbers: tuple[int, ...] = (),
) -> Markup:
    """Return a table.

    Args:
        name: What is in it, for who does not see it.
        heads: The heads of its columns.
        rows: Its cells.
        numbers: The columns that hold numbers.
    """

    def cell(element: str, column: int, content: str | None) -> Markup:
        scope = "col" if element == "th" else None
        class_ = "number" if column in numbers else None
        return tag(element, content, class_=class_, scope=scope)

    head = tag("tr", *(cell("th", number, text) for number, text in enumerate(heads)))
    body = [tag("tr", *(cell("td", n, text) for n, text in enumerate(row))) for row in rows]
    whole = tag("table", tag("thead", head), tag("tbody", *body))
    # What scrolls can be reached by keyboard, and has a name.
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=name)


def folded(summary: str, content: Markup) -> Markup:
    """Return something that opens when its line is clicked."""
    return tag("details", tag("summary", summary), content)
