"""The result of a command on stdout, as tables or as JSON, and remarks on stderr."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType

from evaluation.truth import scan_name


def show(result: dict[str, Any], as_json: bool, *shown: RenderableType) -> None:
    """Prints the result for machines, or what is shown of it to people."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        Console().print(*shown, sep="\n")


def remark_unknown(folders: Sequence[Path], known: Collection[str]) -> None:
    """Names the folders of which nothing is known."""
    for folder in folders:
        if scan_name(folder) not in known:
            typer.echo(f"{folder}: the truth does not name it", err=True)
