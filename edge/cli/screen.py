"""The command ``overread-edge screen``: reads one study."""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edge.access import make_folder
from edge.assemble import open_pipeline
from edge.cli.output import Config, ExitStatus, Json, configured, show
from edge.errors import NotExportable
from edge.job import Job
from edge.pipeline import read_and_report
from edge.report.folder import admission, folder_of_its_own, require_readable, require_separate
from edge.report.model import Report, Status
from edge.report.serialize import report_to_dict
from edge.report.terminal import Progress, render_report
from process.text import printable, printable_line
from process.tracing import record_study

app = typer.Typer()


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
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the report; else one named like the study in report/."),
    ] = None,
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
    progress, top = Progress(Console(stderr=True)), out or Path("report")
    require_readable(path)
    require_separate(top, path)
    own = folder_of_its_own(path, overwrite=overwrite)
    settings = configured(
        config,
        cloud__address=cloud,
        series=series,
        deadline_s=deadline,
        cloud__insecure=insecure or None,
    )
    with ExitStack() as held:
        if settings.traces:  # by an extra
            from process.otel import exporting

            held.enter_context(exporting("overread-edge", settings.traces))
        held.enter_context(progress.shown())
        pipeline = held.enter_context(open_pipeline(settings, on_stage=progress.on_stage))
        admit = admission(overwrite=overwrite) if out else held.enter_context(own)
        make_folder(top)  # an error here comes before the long work
        guarded = replace(pipeline, admit=admit)
        job, began_s = Job(path.resolve(), top), time.time()
        result = read_and_report(guarded, job)
        record_study(job.study_key, began_s, time.time(), status=result.report.status.value)
    if dicom:
        _write_objects(result.paths.html.parent)
    values = report_to_dict(result.report) if as_json else None
    show(values, as_json, render_report(result.report))
    typer.echo(printable_line(f"report  {result.paths.html}"), err=as_json)  # whole, to be copied
    raise typer.Exit(exit_status(result.report))


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
