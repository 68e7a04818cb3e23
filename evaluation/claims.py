"""Measure every claim of the pages again, and render the pages: `make evaluate`.

Each claim is a command line of `docs/claims.toml`, which prints JSON with ``--json``. The figures
are kept in `docs/results`, so that the pages can be written without measuring (``--page-only``).
What a command has below ``raw`` is left out: rows of single studies and candidates.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.pages import write_pages
from models.export.manifest import amend

DOCS = Path(__file__).resolve().parents[1] / "docs"
CLAIMS = DOCS / "claims.toml"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def claims(data: str) -> dict[str, str]:
    """Return every command line by name; ``data`` has ``nodules``, ``lidc``, ``ct``, ``luna16``."""
    lines = tomllib.loads(CLAIMS.read_text()).items()
    return {name: line.format(data=shlex.quote(data)) for name, line in lines}


def measure(line: str) -> dict[str, Any]:
    """Run a command line and return the JSON of its last command, with the line in it."""
    # the programs are those of this interpreter; a last word in quotes is a command for sh
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    done = subprocess.run(
        re.sub("'?$", r" --json\g<0>", line, count=1),
        shell=True, check=True, stdout=subprocess.PIPE, cwd=DOCS.parent,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout)
    result.pop("raw", None)
    return {"command": line, **rounded(result)}


def rounded(value: Any) -> Any:
    """Return the same figures with six digits, which is more than any page shows."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def in_rows(result: Mapping[str, Any]) -> str:
    """Return a result as JSON; what holds no further list or object is a row, one line."""
    text = json.dumps(result, indent=1)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda row: re.sub(r"\n *", " ", row[0]), text) + "\n"


def lacking(line: str) -> str:
    """Return what a command needs that is not here: weights, or the right to mount; else ''."""
    for word in re.findall(r"runs/\S+\.\w+", line):
        if not (DOCS.parent / word).exists():
            return f"{word} is not here, docs/models.md says how it is made"
    tried = "unshare -rm mount -t tmpfs none /mnt"
    if "unshare" in line and subprocess.run(tried, shell=True, capture_output=True).returncode:
        return "unshare and mount are not permitted here"
    return ""


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def main(
    data: Annotated[
        str, typer.Option(help="Folder with nodules/, lidc/, ct/ and luna16/.")
    ] = "../shared/data",
    only: Annotated[
        list[str] | None, typer.Option(help="Names of the only claims to measure.")
    ] = None,
    page_only: Annotated[
        bool, typer.Option("--page-only", help="Pages from the results as they are.")
    ] = False,
) -> None:
    """Measure the claims, and render the pages of docs that have a template."""
    if unknown := set(only or ()) - set(claims(data)):
        known = ", ".join(claims(data))
        raise typer.BadParameter(f"no claim {', '.join(unknown)}; there are: {known}")
    results = DOCS / "results"
    for folder in (results, DOCS.parent / "runs"):  # the latter for output that no page shows
        folder.mkdir(exist_ok=True)
    for name, line in () if page_only else claims(data).items():
        if only and name not in only:
            continue
        if reason := lacking(line):
            typer.echo(f"leaving out {name}: {reason}", err=True)
            continue
        typer.echo(f"measuring {name}", err=True)
        (results / f"{name}.json").write_text(in_rows(measure(line)))
    for name, figures in read_figures(results).items():
        amend(name, "metrics", figures)
    typer.echo(", ".join(map(str, write_pages(DOCS))))


def read_figures(results: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of each artifact for the manifest, with their intervals."""
    figures: dict[str, dict[str, Any]] = {}
    for engine in ("fp32", "int8"):
        path = results / f"nodules_{engine}.json"
        if not path.exists():
            continue
        for artifact, row in zip(
            ("screening", "hybrid"), json.loads(path.read_text())["curves"], strict=True
        ):
            found = figures[f"{artifact}-{engine}"] = {"cpm": row["cpm"]}
            for point in row["sensitivity"]:
                if (rate := point["false_positives_per_scan"]) in (2, 8):
                    interval = {key: point[key] for key in ("value", "low", "high")}
                    found[f"sensitivity_at_{rate:g}"] = interval
    return figures


if __name__ == "__main__":
    app()
