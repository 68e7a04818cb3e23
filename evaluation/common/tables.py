"""Tables that more than one command prints; JSON has the same figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from models.markdown import Rows


def columns_table(
    columns: Mapping[str, tuple[str, str]], rows: Sequence[Mapping[str, Any]], title: str
) -> Rows:
    """Return the values of ``rows`` under ``columns``: key to head and format; a dash for None."""
    cells = [
        ["-" if row[key] is None else form.format(row[key]) for key, (_, form) in columns.items()]
        for row in rows
    ]
    return Rows([head for head, _ in columns.values()], cells, title)
