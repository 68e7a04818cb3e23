"""What commands share that are not on the harness of `evaluation.run` yet."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from evaluation.run import STUDIES, Cache, CloudModel, Deadline, Phantoms, Reserve, counting, each
from models.markdown import Rows
from process.text import Printable

__all__ = (
    "STUDIES", "Cache", "CloudModel", "Deadline", "Json", "Phantoms", "Reserve", "counting", "each",
    "show",
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Output as JSON.")]


def show(result: dict[str, Any], as_json: bool, *shown: Rows | str) -> None:
    """Print the result as JSON, or what is shown of it to people."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        Console().print(Printable(*shown))
