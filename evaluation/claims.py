"""Measure every claim of the pages again, and render the pages: `make evaluate`.

Each claim is a command of `overread-eval` with ``--json``, or one of `overread-models`;
`docs/claims.toml` lists them. The figures are kept in `docs/results`, so that the pages can be
written without measuring (``--page-only``). What a command has below ``raw`` is left out: rows of
single studies and candidates.
"""

import json
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.pages import write_pages
from models.export.manifest import amend
from process.command_line import PlainCommand

DOCS = Path(__file__).resolve().parents[1] / "docs"
CLAIMS = DOCS / "claims.toml"

SMALL_DISK = ("unshare", "-rm", "sh", "-c")
MOUNT = "mount -t tmpfs -o size=240m none /mnt"
"""Makes a small filesystem for one command, without privileges."""
FILLS_A_DISK = ("faults", "nothing_lost")
"""Claims whose command gets one."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


MODELS = "overread-models"
PROGRAMS = {"overread-eval": "evaluation", MODELS: "models"}
"""The programs whose commands measure, with their packages."""


@dataclass(frozen=True)
class Claim:
    """One measurement: its name, and the words after ``program``.

    With ``small_disk`` the command gets ``--at`` a separate small filesystem, which it may fill.
    ``before`` are commands of `MODELS` that make what it needs.
    """

    name: str
    command: tuple[str, ...]
    small_disk: bool = False
    program: str = "overread-eval"
    before: tuple[tuple[str, ...], ...] = ()


def claims(data: str) -> list[Claim]:
    """Return every measurement; ``data`` has ``nodules``, ``lidc``, ``ct`` and ``luna16``."""
    found = []
    for name, line in tomllib.loads(CLAIMS.read_text()).items():
        lines = [line] if isinstance(line, str) else line
        *before, command = (tuple(shlex.split(x.format(data=shlex.quote(data)))) for x in lines)
        if command[0] in PROGRAMS:
            made = tuple(words[1:] for words in before)
            found.append(Claim(name, command[1:], program=command[0], before=made))
        else:
            found.append(Claim(name, command, name in FILLS_A_DISK))
    return found


def measure(claim: Claim) -> dict[str, Any]:
    """Run the command and return its JSON, with the command in it as a person types it.

    The journal of an earlier run is removed: it belongs to another version of the program.
    """
    if "--journal" in claim.command:
        journal = claim.command[claim.command.index("--journal") + 1]
        (DOCS.parent / journal).unlink(missing_ok=True)
    for words in claim.before:
        run = [sys.executable, "-m", PROGRAMS[MODELS], *words]
        subprocess.run(run, check=True, stdout=sys.stderr, cwd=DOCS.parent)
    line = [sys.executable, "-m", PROGRAMS[claim.program], *claim.command, "--json"]
    typed = " ".join((claim.program, *claim.command))
    if claim.small_disk:
        line = [*SMALL_DISK, f"{MOUNT} && exec {shlex.join(line)} --at /mnt"]
        typed = f"{' '.join(SMALL_DISK)} '{MOUNT} && {typed} --at /mnt'"
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, cwd=DOCS.parent)
    result: dict[str, Any] = json.loads(done.stdout)
    result.pop("raw", None)
    return {"command": typed, **rounded(result)}


def rounded(value: Any) -> Any:
    """Return the same figures with six digits, which is more than any page shows."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def can_measure(claim: Claim) -> bool:
    """Return whether this machine can make the small filesystem, if the claim needs one."""
    if not claim.small_disk:
        return True
    try:
        return subprocess.run([*SMALL_DISK, MOUNT], capture_output=True).returncode == 0
    except OSError:
        return False


@app.command(cls=PlainCommand, context_settings={"help_option_names": ["-h", "--help"]})
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
    results = DOCS / "results"
    for folder in (results, DOCS.parent / "runs"):  # the latter for output that no page shows
        folder.mkdir(exist_ok=True)
    for claim in [] if page_only else claims(data):
        if only and claim.name not in only:
            continue
        if not can_measure(claim):
            typer.echo(
                f"leaving out {claim.name}: unshare and mount are not permitted here", err=True
            )
            continue
        typer.echo(f"measuring {claim.name}", err=True)
        found = measure(claim)
        (results / f"{claim.name}.json").write_text(json.dumps(found, indent=1) + "\n")
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
