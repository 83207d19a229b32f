"""The fields of a job that say how to read its input: each needs an effect on this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.core.errors import SpecError
from fanout.core.field_effects import READING
from fanout.core.retrieval import is_retrieval_function
from fanout.inputs.documents import STDIN
from fanout.inputs.documents.files import RUN
from fanout.inputs.documents.urls import is_relative
from fanout.inputs.selection import WHERE_NAMES
from fanout.inputs.sources import text_columns_of

if TYPE_CHECKING:
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents import FileSource
    from fanout.inputs.selection import Selection
    from fanout.inputs.sources import ItemSource

__all__ = ["require_used"]


def require_used(
    spec: RunSpec, documents: Any, source: FileSource | ItemSource, selection: Selection
) -> None:
    """Check that the fields that say how to read an input have an effect on this one.

    Raises:
        SpecError: One has none.
    """
    given = {name for name in READING & spec.model_fields_set if getattr(spec, name) is not None}
    if "base_dir" in given and not _has_relative(spec, documents):
        raise SpecError(
            "has no effect: no input is a relative path; leave it out", field="base_dir"
        )
    if "delimiter" in given and not source.uses("delimiter"):
        raise SpecError("has no effect: no input is a .csv or .tsv file; leave it out",
                        field="delimiter")  # fmt: skip
    if "sheet" in given and not source.uses("sheet"):
        raise SpecError("has no effect: no input is an .xlsx file; leave it out", field="sheet")
    for field in ("text_column", "id_column"):
        if field in given and not source.uses("text_column"):
            raise SpecError("has no effect: no input has rows; leave it out", field=field)
    if "where" in given and selection.needs_rows and not source.uses("text_column"):
        raise SpecError(
            "has no effect: no input has rows, and so no columns; it may name "
            f"{', '.join(WHERE_NAMES)}",
            field="where",
        )
    if spec.id_column is not None and spec.id_column in text_columns_of(spec):
        raise SpecError(
            f"{spec.id_column!r} is the column of the text; name another", field="id_column"
        )
    if "encoding" in given and not source.uses("encoding"):
        raise SpecError("has no effect: no input is text or a table of text; leave it out",
                        field="encoding")  # fmt: skip
    if "parse_timeout_s" in given and not source.uses("parse_timeout_s"):
        raise SpecError("has no effect: no input is a document that is parsed, such as a PDF, "
                        "or a workbook or database; leave it out", field="parse_timeout_s")  # fmt: skip


def _has_relative(spec: RunSpec, documents: Any) -> bool:
    files = [one for one in spec.retrieval_sources if not is_retrieval_function(one)]
    paths = (*(() if documents is not None else spec.inputs), *files)
    return any(one != STDIN and not one.startswith(RUN) and is_relative(one) for one in paths)
