"""What is in `models/weights`, for people and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from models.runtime.artifacts import Artifact, every


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The artifacts with version, size, figures, licence and attribution."""
    artifacts = every()
    if as_json:
        print(
            json.dumps({name: _entry(artifact) for name, artifact in artifacts.items()}, indent=2)
        )
        return
    console = Console()
    table = Table(Column("artifact", no_wrap=True), Column("made as", no_wrap=True), "figures")
    for name, artifact in artifacts.items():
        table.add_row(f"{name}\n{artifact.version}", _made(artifact), _figures(artifact))
        table.add_section()
    console.print(table)
    for text in sorted({f"{a.licence}. {a.attribution}" for a in artifacts.values()}):
        console.print(text, style="dim")


def _made(artifact: Artifact) -> str:
    there = artifact.path.exists()
    size = f"{artifact.path.stat().st_size / 1e6:.2f} MB" if there else "missing"
    source = f"\nfrom {artifact.parent}" if artifact.parent else ""
    method = f"\n{textwrap.fill(artifact.method, 30)}" if artifact.method else ""
    return f"{artifact.precision}, {size}{source}{method}"


def _figures(artifact: Artifact) -> str:
    return "\n".join(f"{key} {_short(value)}" for key, value in artifact.metrics.items())


def _entry(artifact: Artifact) -> dict[str, Any]:
    fields = (
        "version",
        "kind",
        "precision",
        "parent",
        "method",
        "sha256",
        "licence",
        "attribution",
    )
    return {
        **{name: getattr(artifact, name) for name in fields},
        "file": str(artifact.path),
        "settings": artifact.settings,
        "metrics": artifact.metrics,
    }


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{value['value']:.3f} ({value['low']:.2f}-{value['high']:.2f})"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
