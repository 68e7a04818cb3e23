"""What all commands share: options, output as a table or JSON, and errors to exit statuses."""

import json
import os
import sqlite3
import sys
from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from edge.access import whose
from edge.atomic_files import is_transient
from edge.errors import EdgeError, MissingPath, UnfitFolder
from edge.settings.core import EdgeSettings, load_settings
from edge.site import Site
from imaging.errors import StudyError
from models.runtime.errors import ModelError
from process.logs import configure_logging
from process.text import Printable, printable, printable_json

ERRORS = (EdgeError, ModelError, OSError, MemoryError, sqlite3.Error)
"""What ends a command with a sentence; anything else is a fault of the program."""

Config = Annotated[
    Path | None, typer.Option(help="TOML file; OVERREAD_EDGE_* variables override it.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


class ExitStatus(IntEnum):
    """The exit status of ``overread-edge screen``; 2 is also that of a wrong option."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_SECOND_READING = 3
    REFUSED = 4
    MISSING_PATH = 5
    IGNORED = 6


def configured(config: Path | None, **overrides: object) -> EdgeSettings:
    """Return the settings, and log as they say.

    Raises:
        BadSettings: the file cannot be read, or a setting is wrong.
    """
    settings = load_settings(config, **overrides)
    configure_logging(settings.log_format, sys.stderr)
    return settings


def load(config: Path | None, **overrides: object) -> Site:
    """Return the site of the settings; see `configured`."""
    from edge.run import site_of  # it knows all parts, and loads their libraries

    return site_of(configured(config, **overrides))


def show(values: object, as_json: bool, *tables: RenderableType) -> None:
    """Print values as JSON, or as tables for people."""
    if as_json:
        typer.echo(printable_json(json.dumps(values, indent=2, ensure_ascii=False)))
    else:
        Console().print(Printable(*tables))


def failed(error: Exception, setting: str = "") -> typer.Exit:
    """Print what went wrong, after the ``setting`` that it is about; return the exit."""
    typer.echo(printable(f"{type(error).__name__}: {setting}{error}"), err=True)
    if isinstance(error, PermissionError) and error.filename:
        typer.echo(printable(whose(Path(os.fsdecode(error.filename)))), err=True)
    if isinstance(error, sqlite3.OperationalError) and is_transient(error):
        typer.echo("The database in state_dir is in use, or its disk is full: try again.", err=True)
    if isinstance(error.__context__, StudyError):  # a refusal that could not be written
        typer.echo(printable(f"{error.__context__.kind}: {error.__context__}"), err=True)
    match error:
        case UnfitFolder():
            return typer.Exit(ExitStatus.USAGE)
        case MissingPath():
            return typer.Exit(ExitStatus.MISSING_PATH)
        case _:
            return typer.Exit(ExitStatus.FAILED)
