"""The command ``overread-edge``: reads one study, or watches an inbox. Not a medical device."""

import os
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edge.access import UMASK, make_folder
from edge.assemble import open_pipeline
from edge.atomic_files import write_atomically
from edge.checks import Level
from edge.cli import audit, models, rules, studies
from edge.cli.output import Commands, Config, ExitStatus, Json, failed, load, show
from edge.cli.trial_certificates import make_certificates, settings_for
from edge.doctor import examine
from edge.errors import NotExportable
from edge.job import Job
from edge.pipeline import read_and_report
from edge.report.folder import admission, require_readable, require_separate
from edge.report.model import Report, Status
from edge.report.serialize import report_to_dict
from edge.report.terminal import Progress, render_report
from edge.run import PARTS, run_agent
from edge.settings.core import EdgeSettings
from edge.status.login import Password
from process.text import printable
from process.tracing import exporting, record_study

LEAST_PASSWORD = 8

app = typer.Typer(
    cls=Commands,
    help="Reads chest CT for lung nodules beside the scanner. Not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(given: bool) -> None:
    if given:
        print(f"overread-edge {version('overread')}")
        raise typer.Exit


@app.callback()
def _program(
    _version: Annotated[
        bool, typer.Option("--version", help="Version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Reads chest CT for lung nodules beside the scanner. Not a medical device."""


@app.command(
    epilog="Exit status: 0: the second reading is complete, or off. 1: an error of the settings or "
    "of the program. 2: a wrong option, or the folder for the report cannot be used. 3: a cloud is "
    "set up, but the second reading is missing or partial. 4: the study is refused; the report "
    "says why. 5: the path does not exist or must not be read. 6: a rule ignores the study. "
    "After 2 and 5 nothing is written."
)
def screen(
    path: Annotated[Path, typer.Argument(help="DICOM folder, NIfTI, NRRD or MHD file.")],
    cloud: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT|off", help="Address of the cloud; off: no second reading."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("report"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another study's report in that folder.")
    ] = False,
    series: Annotated[
        str | None,
        typer.Option(
            metavar="UID|NUMBER|NAME",
            help="Series to read, if several are there; a name may hold * and ?.",
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Time for one study; limits the wait for the cloud."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Send ROIs to another machine without TLS.")
    ] = False,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="Write DICOM objects too, into dicom/v1 of that folder.")
    ] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Read one study, print its findings, and write report.json, report.html and pictures."""
    progress = Progress(Console(stderr=True))
    require_readable(path)
    require_separate(out, path)
    settings = load(
        config,
        cloud__address=cloud,
        series=series,
        deadline_s=deadline,
        cloud__insecure=insecure or None,
    ).settings
    with (
        exporting("overread-edge", settings.traces),
        progress.shown(),
        open_pipeline(settings, on_stage=progress.on_stage) as pipeline,
    ):
        make_folder(out)  # an error here comes before the long work
        guarded = replace(pipeline, admit=admission(overwrite=overwrite))
        job, began_s = Job(path.resolve(), out), time.time()
        result = read_and_report(guarded, job)
        record_study(job.study_key, began_s, time.time(), status=result.report.status.value)
    if dicom:
        _write_objects(out)
    values = report_to_dict(result.report) if as_json else None
    show(values, as_json, render_report(result.report, result.paths))
    raise typer.Exit(exit_status(result.report))


@app.command()
def run(config: Config = None) -> None:
    """Watch an inbox and report every study that arrives, until SIGTERM."""
    settings = load(config).settings
    try:
        run_agent(settings)
    except OSError as error:
        raise failed(error, _setting_of(error, settings)) from error


studies.add_to(app)


@app.command(epilog="Exit status: 0: nothing is wrong. 1: something is, or a setting is.")
def doctor(config: Config = None, as_json: Json = False) -> None:
    """Check folders, access, disk, database, model, cloud and targets, and say what to do."""
    found = examine(load(config), PARTS)
    if as_json:
        show([{"level": c.level.value, "what": c.what, "text": c.text} for c in found], as_json)
    else:
        for check in found:
            typer.echo(printable(f"{check.level.value:6} {check.what:10} {check.text}"))
    wrong = any(check.level is Level.WRONG for check in found)
    raise typer.Exit(ExitStatus.FAILED if wrong else ExitStatus.DONE)


@app.command()
def password(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File for the hash; replaced.")],
) -> None:
    """Ask for the password of the status page, and write its hash for page.password_file."""
    text = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    if len(text) < LEAST_PASSWORD:
        raise typer.BadParameter(f"a password of at least {LEAST_PASSWORD} characters is expected")
    write_atomically(file.absolute(), f"{Password.of(text).line}\n".encode())
    file.chmod(0o600)
    typer.echo(printable(f'page.password_file = "{file.absolute()}"'))


@app.command()
def certs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the five files.")],
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Host name or IP address of the cloud; may be repeated."),
    ] = None,
    days: Annotated[int, typer.Option(min=30, max=90, help="Days until they expire.")] = 60,
) -> None:
    """Make certificates for a trial: an authority, and a pair each for cloud and edge."""
    make_certificates(folder, host or (), days)
    text = f"For a trial, valid {days} days. For patients, use those of your own authority."
    typer.echo(printable(f"{text}\n{settings_for(folder.absolute())}"))


app.add_typer(audit.app, name="audit")
app.add_typer(rules.app, name="rules")
app.add_typer(models.app, name="models")


def exit_status(report: Report) -> ExitStatus:
    """Return the exit status for the report of one study."""
    if report.rejection is not None:
        return ExitStatus.FAILED if report.rejection.internal else ExitStatus.REFUSED
    if report.status is Status.IGNORED:
        return ExitStatus.IGNORED
    incomplete = report.status is Status.PROVISIONAL
    return ExitStatus.NO_SECOND_READING if incomplete else ExitStatus.DONE


def _write_objects(out: Path) -> None:
    """Write the DICOM objects of the report in ``out``, and say which, and why others are missing.

    Raises:
        OSError: they cannot be written.
    """
    # imported here: it takes as long as all else together, and no other command needs it
    from edge.dicom_out.identity import Device
    from edge.dicom_out.objects import make_objects

    try:
        made = make_objects(out, Device.here())
    except NotExportable as error:
        typer.echo(printable(f"no DICOM objects: {error}"), err=True)
        return
    names = ", ".join(file.name for file in made.files)
    typer.echo(printable(f"DICOM objects in {made.folder}: {names}"), err=True)
    for kind, reason in made.skipped.items():
        typer.echo(printable(f"no {kind}: {reason}"), err=True)


def _setting_of(error: OSError, settings: EdgeSettings) -> str:
    """Return which folder of the settings a file error is about; empty for none."""
    if error.filename:
        file = Path(os.fsdecode(error.filename)).absolute()
        for name in ("inbox", "outbox", "state_dir"):
            folder = getattr(settings, name).absolute()
            if file.is_relative_to(folder) or folder.is_relative_to(file):
                return f"{name} = {folder}: "
    return ""


def main() -> None:
    """Run the command ``overread-edge``."""
    os.umask(UMASK)
    app()
