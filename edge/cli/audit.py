"""The commands ``overread-edge audit``: check and export the audit trail."""

import socket
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from edge.cli.output import Config, ExitStatus, Json, load, show
from edge.trail.records import records_after
from edge.trail.store import agent_of
from edge.trail.verify import verify as verify_trail
from process.text import printable

app = typer.Typer(help="Check and export the audit trail.", no_args_is_help=True)


@app.command(
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


@app.command()
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
