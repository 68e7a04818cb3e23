"""The command ``overread-edge``: reads one study, or watches an inbox. Not a medical device."""

import json
import os
import socket
import sys
import time
from dataclasses import asdict, replace
from datetime import datetime
from enum import IntEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edge.access import UMASK, make_folder, whose
from edge.assemble import open_pipeline
from edge.atomic_files import write_atomically
from edge.checks import Level
from edge.dicom_out.errors import NotExportable
from edge.dicom_out.overview import overview, resend
from edge.dicom_out.overview import render as render_targets
from edge.doctor import examine
from edge.errors import EdgeError, MissingPath, UnfitFolder
from edge.folders import DATABASE, AgentFolders, is_running, other_user
from edge.job import Job
from edge.models.commands import models_commands
from edge.pipeline import read_and_report
from edge.queue import queued, render, requeue
from edge.report.model import Report, Status
from edge.report.overwrite import admission, require_readable, require_separate
from edge.report.serialize import report_to_dict
from edge.report.terminal import Progress, render_report
from edge.rules.explain import as_values, explain, shown
from edge.run import PARTS, run_agent, site_of
from edge.settings.core import EdgeSettings, load_settings
from edge.status.login import Password
from edge.trail.files import records_after
from edge.trail.messages import AuditSource, message_of
from edge.trail.store import agent_of
from edge.trail.verify import verify as verify_trail
from edge.trial_certificates import make_certificates, settings_for
from imaging.errors import StudyError
from models.runtime.errors import ModelError
from process.command_line import PlainGroup
from process.logs import configure_logging
from process.text import Printable, printable, printable_json
from process.tracing import exporting, record_study

app = typer.Typer(
    cls=PlainGroup,
    help="Reads chest CT for lung nodules beside the scanner. Not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
audit = typer.Typer(cls=PlainGroup, help="Check and export the audit trail.", no_args_is_help=True)
app.add_typer(audit, name="audit")
rules_app = typer.Typer(
    cls=PlainGroup, help="Rules that choose the series to read.", no_args_is_help=True
)
app.add_typer(rules_app, name="rules")
LEAST_PASSWORD = 8
SETUP_ERRORS = (EdgeError, ModelError, OSError, MemoryError)
Config = Annotated[
    Path | None, typer.Option(help="TOML file; OVERREAD_EDGE_* variables override it.")
]


class ExitStatus(IntEnum):
    """The exit status of ``overread-edge screen``; 2 is also that of a wrong option."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_SECOND_READING = 3
    REFUSED = 4
    MISSING_PATH = 5
    IGNORED = 6


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
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Read one study, print its findings, and write report.json, report.html and pictures."""
    progress = Progress(Console(stderr=True))
    try:
        require_readable(path)
        require_separate(out, path)
        given = {
            "cloud__address": cloud,
            "series": series,
            "deadline_s": deadline,
            "cloud__insecure": insecure or None,
        }
        settings = _settings(config, **given)
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
    except SETUP_ERRORS as error:
        raise _failed(error) from error
    if as_json:
        text = json.dumps(report_to_dict(result.report), indent=2, ensure_ascii=False)
        typer.echo(printable_json(text))
    else:
        Console().print(Printable(render_report(result.report, result.paths)))
    raise typer.Exit(exit_status(result.report))


@app.command()
def run(config: Config = None) -> None:
    """Watch an inbox and report every study that arrives, until SIGTERM."""
    settings = _settings(config)
    try:
        run_agent(settings)
    except SETUP_ERRORS as error:
        raise _failed(error, _setting_of(error, settings)) from error


@app.command()
def queue(
    config: Config = None,
    everything: Annotated[
        bool, typer.Option("--all", help="With the studies that are done.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Show the studies that arrive, wait, are read, are pending or were refused, with reasons."""
    site = site_of(_settings(config))
    folders = site.folders
    try:
        studies = queued(site, everything=everything)
        note = other_user(folders)
    except SETUP_ERRORS as error:
        raise _failed(error) from error
    if note:
        typer.echo(printable(f"note: {note}"), err=True)
    if as_json:
        values = {"running": is_running(folders), "studies": [asdict(one) for one in studies]}
        typer.echo(printable_json(json.dumps(values, indent=2, ensure_ascii=False)))
    else:
        Console().print(Printable(render(studies, runs=is_running(folders))))


@app.command(name="requeue")
def requeue_command(
    study: Annotated[
        str | None, typer.Argument(help="Name or key of a study that is refused or done.")
    ] = None,
    all_failed: Annotated[
        bool, typer.Option("--all-failed", help="All studies that were refused.")
    ] = False,
    config: Config = None,
) -> None:
    """Move a study back into the inbox, to be read again as a new one; the agent may run."""
    if (study is None) != all_failed:
        raise typer.BadParameter("name one study, or give --all-failed")
    try:
        names = requeue(study, site_of(_settings(config)))
    except SETUP_ERRORS as error:
        raise _failed(error) from error
    typer.echo("\n".join(f"back in the inbox: {printable(name)}" for name in names) or "none")


@app.command(epilog="Exit status: 0: every target answers. 1: one does not, or a setting is wrong.")
def targets(
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Ask each target whether it answers, and show what it lacks and its dead letters."""
    settings = _settings(config)
    try:
        states, unmade = overview(site_of(settings))
    except SETUP_ERRORS as error:
        raise _failed(error) from error
    if as_json:
        values = {
            "targets": [asdict(one) for one in states],
            "without_objects": [asdict(one) for one in unmade],
        }
        typer.echo(printable_json(json.dumps(values, indent=2, ensure_ascii=False)))
    else:
        Console().print(Printable(render_targets(states, unmade)))
    silent = any(one.problem for one in states if one.address)
    raise typer.Exit(ExitStatus.FAILED if silent else ExitStatus.DONE)


@app.command(name="resend")
def resend_command(
    study: Annotated[
        str | None, typer.Argument(help="Key of a study, or name of its report.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Target; by default each one.")
    ] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All dead letters.")] = False,
    config: Config = None,
) -> None:
    """Send the objects of a study again, all versions in order; the agent may run."""
    if (study is None) != dead:
        raise typer.BadParameter("name one study, or give --dead")
    settings = _settings(config)
    try:
        done = resend(study, to, site_of(settings))
    except SETUP_ERRORS as error:
        raise _failed(error) from error
    typer.echo("\n".join(f"due again: {printable(one)}" for one in done) or "none")


@app.command(epilog="Exit status: 0: nothing is wrong. 1: something is, or a setting is.")
def doctor(
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Check folders, access, disk, database, model, cloud and targets, and say what to do."""
    found = examine(site_of(_settings(config)), PARTS)
    if as_json:
        values = [{"level": c.level.value, "what": c.what, "text": c.text} for c in found]
        typer.echo(printable_json(json.dumps(values, indent=2, ensure_ascii=False)))
    else:
        for check in found:
            typer.echo(printable(f"{check.level.value:6} {check.what:10} {check.text}"))
    wrong = any(check.level is Level.WRONG for check in found)
    raise typer.Exit(ExitStatus.FAILED if wrong else ExitStatus.DONE)


@audit.command(
    epilog="Exit status: 0: the trail is sound. 1: a record is broken or missing, or there is no "
    "trail. Without --config and FOLDER, the trail of the default settings is checked."
)
def verify(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of a copy; its end cannot be checked without its database."),
    ] = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Check the chain of the audit trail, and name the first record that is broken."""
    folders = AgentFolders.of(_settings(config))
    try:
        found = verify_trail(folder or folders.trail, None if folder else folders.state / DATABASE)
    except SETUP_ERRORS as error:
        raise _failed(error) from error
    if as_json:
        typer.echo(printable_json(json.dumps(asdict(found), indent=2, ensure_ascii=False)))
    else:
        typer.echo(printable(found.text))
    raise typer.Exit(ExitStatus.FAILED if found.broken else ExitStatus.DONE)


@audit.command()
def export(
    since: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            help="Only records of this time and later, UTC, such as 2026-11-27T08:00:00.",
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"],
        ),
    ] = None,
    config: Config = None,
) -> None:
    """Print the audit trail as DICOM audit messages (PS3.15), one XML document a line."""
    settings = _settings(config)
    folder = AgentFolders.of(settings).trail
    try:
        source = AuditSource(agent_of(folder), settings.site, socket.gethostname())
        for record in records_after(folder, 0):
            is_meant = since is None or record.time >= since.isoformat()
            if is_meant and (message := message_of(record, source)):
                typer.echo(message)
    except SETUP_ERRORS as error:
        raise _failed(error) from error


@app.command()
def password(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File for the hash; replaced.")],
) -> None:
    """Ask for the password of the status page, and write its hash for page.password_file."""
    text = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    if len(text) < LEAST_PASSWORD:
        raise typer.BadParameter(f"a password of at least {LEAST_PASSWORD} characters is expected")
    try:
        write_atomically(file.absolute(), f"{Password.of(text).line}\n".encode())
        file.chmod(0o600)
    except OSError as error:
        raise _failed(error) from error
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
    try:
        make_certificates(folder, host or (), days)
    except SETUP_ERRORS as error:
        raise _failed(error) from error
    text = f"For a trial, valid {days} days. For patients, use those of your own authority."
    typer.echo(printable(f"{text}\n{settings_for(folder.absolute())}"))


@rules_app.command(name="test")
def rules_test(
    path: Annotated[
        Path, typer.Argument(help="Folder of one study, or a folder with a folder for each.")
    ],
    rules: Annotated[
        Path | None, typer.Option(help="Rules to try, in place of those of the settings.")
    ] = None,
    calling_ae: Annotated[
        str | None, typer.Option(metavar="TITLE", help="AE title of the sender, as if received.")
    ] = None,
    called_ae: Annotated[
        str | None, typer.Option(metavar="TITLE", help="AE title of the receiver, as if received.")
    ] = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Show the rule that takes each series, and which series of each study would be read."""
    settings = _settings(config, rules=rules)
    try:
        require_readable(path)
        found = explain(path.resolve(), settings, calling_ae, called_ae)
    except SETUP_ERRORS as error:
        raise _failed(error) from error
    if as_json:
        values = {"studies": [as_values(study) for study in found]}
        typer.echo(printable_json(json.dumps(values, indent=2, ensure_ascii=False)))
    else:
        Console().print(Printable(*(shown(study) for study in found)))


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


def _settings(config: Path | None, **overrides: object) -> EdgeSettings:
    try:
        settings = load_settings(config, **overrides)
    except EdgeError as error:
        raise _failed(error) from error
    configure_logging(settings.log_format, sys.stderr)
    return settings


def _setting_of(error: Exception, settings: EdgeSettings) -> str:
    """Return which folder of the settings a file error is about; empty for none."""
    if isinstance(error, OSError) and error.filename:
        file = Path(os.fsdecode(error.filename)).absolute()
        for name in ("inbox", "outbox", "state_dir"):
            folder = getattr(settings, name).absolute()
            if file.is_relative_to(folder) or folder.is_relative_to(file):
                return f"{name} = {folder}: "
    return ""


def _failed(error: Exception, setting: str = "") -> typer.Exit:
    typer.echo(printable(f"{type(error).__name__}: {setting}{error}"), err=True)
    if isinstance(error, PermissionError) and error.filename:
        typer.echo(printable(whose(Path(os.fsdecode(error.filename)))), err=True)
    if isinstance(error.__context__, StudyError):  # a refusal that could not be written
        typer.echo(printable(f"{error.__context__.kind}: {error.__context__}"), err=True)
    match error:
        case UnfitFolder():
            return typer.Exit(ExitStatus.USAGE)
        case MissingPath():
            return typer.Exit(ExitStatus.MISSING_PATH)
        case _:
            return typer.Exit(ExitStatus.FAILED)


app.add_typer(models_commands(_settings, _failed, site_of), name="models")


def main() -> None:
    """Run the command ``overread-edge``."""
    os.umask(UMASK)
    app()


if __name__ == "__main__":
    main()
