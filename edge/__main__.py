"""``overread-edge``: read one study, or watch an inbox. Not a medical device."""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edge.assemble import open_pipeline
from edge.daemon.agent import run_agent
from edge.errors import EdgeError
from edge.job import Job
from edge.pipeline import StudyResult, read_and_report
from edge.report.model import Report
from edge.report.terminal import Progress, render_report
from edge.report.write import report_to_dict
from edge.settings import EdgeSettings, load_settings
from edge.telemetry import configure_logging
from models.runtime.errors import ModelError

app = typer.Typer(
    help="Reads chest CT for lung nodules beside the scanner. Not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
SETUP_FAULTS = (EdgeError, ModelError, OSError)
Config = Annotated[
    Path | None, typer.Option(help="TOML file; OVERREAD_EDGE_* in the environment goes before it.")
]


class ExitStatus(IntEnum):
    """What the exit status of ``overread-edge screen`` tells."""

    DONE = 0
    FAILED = 1
    REFUSED = 2
    NO_SECOND_READING = 3


@app.command(
    epilog="Exit status: 0 the second reading is complete or off; 1 the program is "
    "not set up or failed; 2 the study was refused (a report that says why is written); 3 a "
    "cloud was asked, and its second reading is missing or partial."
)
def screen(
    path: Annotated[Path, typer.Argument(help="DICOM folder, NIfTI, NRRD or MHD file.")],
    cloud: Annotated[
        str | None, typer.Option(metavar="HOST:PORT|off", help="Who gives second readings.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("report"),
    deadline: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Budget; bounds the wait for the cloud.")
    ] = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Reads one study, prints the findings and leaves report.json, report.html and pictures."""
    settings = _settings(config, cloud=cloud, deadline_s=deadline)
    progress = Progress(Console(stderr=True))
    try:
        out.mkdir(parents=True, exist_ok=True)  # before minutes go into what cannot be written
        with progress.shown(), open_pipeline(settings, watch=progress.watch) as pipeline:
            reading = read_and_report(pipeline, Job(path, out))
    except SETUP_FAULTS as error:
        raise _failed(error) from error
    _print(reading, as_json=as_json)
    raise typer.Exit(exit_status(reading.report))


@app.command()
def run(config: Config = None) -> None:
    """Watches an inbox and reports every study that arrives, until SIGTERM."""
    settings = _settings(config)
    try:
        run_agent(settings)
    except SETUP_FAULTS as error:
        raise _failed(error) from error


def exit_status(report: Report) -> ExitStatus:
    """The exit status that tells what became of one study."""
    if report.rejection is not None:
        return ExitStatus.FAILED if report.rejection.internal else ExitStatus.REFUSED
    return ExitStatus.NO_SECOND_READING if report.awaits_second_reading else ExitStatus.DONE


def _settings(config: Path | None, **overrides: object) -> EdgeSettings:
    try:
        settings = load_settings(config, **overrides)
    except EdgeError as error:
        raise _failed(error) from error
    configure_logging(settings.log_format, sys.stderr)
    return settings


def _failed(error: Exception) -> typer.Exit:
    typer.echo(f"{type(error).__name__}: {error}", err=True)
    return typer.Exit(ExitStatus.FAILED)


def _print(reading: StudyResult, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report_to_dict(reading.report), indent=2, ensure_ascii=False))
    else:
        Console().print(render_report(reading.report, reading.paths))


def main() -> None:
    """The command ``overread-edge``."""
    app()


if __name__ == "__main__":
    main()
