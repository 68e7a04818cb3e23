"""The result of a command on stdout: for people a section of a page, for machines JSON."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console


def show_section(result: dict[str, Any], as_json: bool, section: str) -> None:
    """Prints the result as JSON, or its section in Markdown as it stands on the page."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        Console().print(section, markup=False, soft_wrap=True)
