"""What is in `models/weights`, for people and as JSON."""

from __future__ import annotations

import json
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
    names = (Column(head, no_wrap=True) for head in ("artifact", "version"))
    table = Table(*names, "kind", "precision", "made from", "size", "figures")
    for name, artifact in artifacts.items():
        size = (
            f"{artifact.path.stat().st_size / 1e6:.2f} MB" if artifact.path.exists() else "missing"
        )
        figures = "\n".join(f"{key} {_short(value)}" for key, value in artifact.metrics.items())
        table.add_row(
            name,
            artifact.version,
            artifact.kind,
            artifact.precision,
            artifact.parent,
            size,
            figures,
        )
    console.print(table)
    for text in sorted({f"{a.licence}. {a.attribution}" for a in artifacts.values()}):
        console.print(text, style="dim")


def _entry(artifact: Artifact) -> dict[str, Any]:
    fields = ("version", "kind", "precision", "parent", "sha256", "licence", "attribution")
    return {
        **{name: getattr(artifact, name) for name in fields},
        "file": str(artifact.path),
        "settings": artifact.settings,
        "metrics": artifact.metrics,
    }


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
