"""The command ``overread-edge``: reads one study, or watches an inbox. Not a medical device."""

import os
import socket
import time
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge.access import UMASK, make_folder
from edge.assemble import open_pipeline
from edge.checks import Level
from edge.cli import models, studies
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
from edge.rules.explain import ExplainedStudy, as_values, explain
from edge.run import PARTS, run_agent
from edge.settings.core import EdgeSettings
from edge.status.users import NAMELESS_USER, Role, is_name, put_user
from edge.trail.records import records_after
from edge.trail.store import agent_of
from edge.trail.verify import verify as verify_trail
from process.command_line import PlainGroup
from process.text import printable, printable_line
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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of users, or a new one.")],
    user: Annotated[str, typer.Argument(metavar="NAME", help="User.")] = NAMELESS_USER,
    role: Annotated[
        Role | None, typer.Option(help="Role; by default that of before, else reader.")
    ] = None,
) -> None:
    """Ask for a user's password, and write name, role and hash for page.password_file."""
    if ":" in user or not is_name(user):
        raise typer.BadParameter("a name without colons and control characters is expected")
    text = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    if len(text) < LEAST_PASSWORD:
        raise typer.BadParameter(f"a password of at least {LEAST_PASSWORD} characters is expected")
    given = put_user(file.absolute(), user, role, text)
    typer.echo(printable(f'{user} is {given}: page.password_file = "{file.absolute()}"'))


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


audit = typer.Typer(cls=PlainGroup, help="Check and export the audit trail.", no_args_is_help=True)
app.add_typer(audit, name="audit")


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
    as_json: Json = False,
) -> None:
    """Check the chain of the audit trail, and name the first record that is broken."""
    site = load(config)
    found = verify_trail(folder or site.folders.trail, None if folder else site.database)
    if as_json:
        show(asdict(found), as_json)
    else:
        typer.echo(printable(found.text))  # one line, whatever the width of the terminal
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
    # no other command, and not the agent, needs the table of DICOM's codes: 18 MB
    from edge.trail.messages import AuditSource, message_of

    site = load(config)
    source = AuditSource(agent_of(site.folders.trail), site.settings.site, socket.gethostname())
    for record in records_after(site.folders.trail, 0):
        is_meant = since is None or record.time >= since.isoformat()
        if is_meant and (message := message_of(record, source)):
            typer.echo(message)


rules = typer.Typer(
    cls=PlainGroup, help="Rules that choose the series to read.", no_args_is_help=True
)
app.add_typer(rules, name="rules")


@rules.callback()
def _rules() -> None:
    """Rules that choose the series to read."""


@rules.command(name="test")
def show_choice(
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
    as_json: Json = False,
) -> None:
    """Show the rule that takes each series, and which series of each study would be read."""
    settings = load(config, rules=rules).settings
    require_readable(path)
    found = explain(path.resolve(), settings, calling_ae, called_ae)
    values = {"studies": [as_values(study) for study in found]}
    show(values, as_json, *(series_table(study) for study in found))


app.add_typer(models.app, name="models")


def exit_status(report: Report) -> ExitStatus:
    """Return the exit status for the report of one study."""
    if report.rejection is not None:
        return ExitStatus.FAILED if report.rejection.internal else ExitStatus.REFUSED
    if report.status is Status.IGNORED:
        return ExitStatus.IGNORED
    incomplete = report.status is Status.PROVISIONAL
    return ExitStatus.NO_SECOND_READING if incomplete else ExitStatus.DONE


def series_table(study: ExplainedStudy) -> Table:
    """Return the table of one study for people."""
    ends = study.reason or "the marked series would be read"
    table = Table(title=escape(printable_line(study.path.name)), caption=escape(ends))
    table.add_column("read", no_wrap=True)
    for heading in ("series", "attributes", "rule"):
        table.add_column(heading, overflow="fold")
    for values in as_values(study)["series"]:
        name = f"{values['description'] or values['series_uid']}\n{values['images']} images"
        thickness = values["slice_thickness_mm"]
        facts = {
            "modality": values["modality"],
            "kernel": "\\".join(values["kernel"]),
            "slice thickness": "" if thickness is None else f"{thickness:g} mm",
            "body part": values["body_part"],
            "manufacturer": values["manufacturer"],
            "image type": "\\".join(values["image_type"]),
            "calling AE": values["calling_ae"],
            "called AE": values["called_ae"],
            "cannot be read": values["unfit"],
        }
        told = "\n".join(f"{key}: {printable_line(str(v))}" for key, v in facts.items() if v)
        marks = [values["action"], values["priority"], *["screening"] * values["screening"]]
        rule = f"{values['rule']}\n{', '.join(marks if values['action'] == 'read' else marks[:1])}"
        cells = ("yes" if values["read"] else "", name, told, rule)
        table.add_row(*(escape(cell) for cell in cells))
    return table


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
