"""The commands on an installation: ``overread-edge run``, ``doctor``, ``password``, ``certs``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from edge.checks import Level
from edge.cli.output import Config, ExitStatus, Json, failed, load, show
from edge.cli.trial_certificates import make_certificates, settings_for
from edge.doctor import examine
from edge.run import PARTS, run_agent
from edge.settings.core import EdgeSettings
from edge.status.users import NAMELESS_USER, Role, is_name, put_user
from process.text import printable

MIN_PASSWORD = 8

app = typer.Typer()


@app.command()
def run(config: Config = None) -> None:
    """Watch an inbox and report every study that arrives, until SIGTERM."""
    settings = load(config).settings
    try:
        run_agent(settings)
    except OSError as error:
        raise failed(error, _setting_of(error, settings)) from error


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
    if len(text) < MIN_PASSWORD:
        raise typer.BadParameter(f"a password of at least {MIN_PASSWORD} characters is expected")
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


def _setting_of(error: OSError, settings: EdgeSettings) -> str:
    """Return which folder of the settings a file error is about; empty for none."""
    if error.filename:
        file = Path(os.fsdecode(error.filename)).absolute()
        for name in ("inbox", "outbox", "state_dir"):
            folder = getattr(settings, name).absolute()
            if file.is_relative_to(folder) or folder.is_relative_to(file):
                return f"{name} = {folder}: "
    return ""
