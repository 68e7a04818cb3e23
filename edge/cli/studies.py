"""The commands on studies: the queue, the targets, and the way back of both."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from edge.cli.output import Config, ExitStatus, Json, load, show
from edge.dicom_out.overview import EVERY, LATEST, DeadLetter, TargetState, overview, resend
from edge.folders import is_running, other_user
from edge.job import KEY_CHARACTERS
from edge.queue import Queued, queued, requeue
from edge.status.wording import age
from process.text import printable, printable_line

app = typer.Typer()


@app.command(name="queue")
def show_queue(
    config: Config = None,
    everything: Annotated[
        bool, typer.Option("--all", help="With the studies that are done.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the studies that arrive, wait, are read, are pending or were refused, with reasons."""
    site = load(config)
    studies, runs = queued(site, everything=everything), is_running(site.folders)
    if note := other_user(site.folders):
        typer.echo(printable(f"note: {note}"), err=True)
    values = {"running": runs, "studies": [asdict(one) for one in studies]}
    show(values, as_json, queue_table(studies, runs=runs))


@app.command(name="requeue")
def put_back(
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
    names = requeue(study, load(config))
    typer.echo("\n".join(f"back in the inbox: {printable(name)}" for name in names) or "none")


@app.command(
    name="targets",
    epilog="Exit status: 0: every target answers. 1: one does not, or a setting is wrong.",
)
def show_targets(config: Config = None, as_json: Json = False) -> None:
    """Ask each target whether it answers, and show what it lacks and its dead letters."""
    states, unmade = overview(load(config))
    values = {
        "targets": [asdict(one) for one in states],
        "without_objects": [asdict(one) for one in unmade],
    }
    show(values, as_json, *target_tables(states, unmade))
    silent = any(one.problem for one in states if one.address)
    raise typer.Exit(ExitStatus.FAILED if silent else ExitStatus.DONE)


@app.command(name="resend")
def send_again(
    study: Annotated[
        str | None, typer.Argument(help="Key of a study, or name of its report.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Target; by default each one.")
    ] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All that is given up.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="All versions in order, not the latest alone.")
    ] = False,
    config: Config = None,
) -> None:
    """Send the objects of a study again, by default of the latest version; the agent may run."""
    if (study is None) != dead:
        raise typer.BadParameter("name one study, or give --dead")
    done = resend(study, to, load(config), version=EVERY if every else LATEST)
    typer.echo("\n".join(f"due again: {printable(one)}" for one in done) or "none")


def queue_table(studies: list[Queued], *, runs: bool) -> Table:
    """Return the queue for people."""
    title = "The agent runs" if runs else "The agent does not run"
    table = Table(title=title)
    # a key fits on its line, to be copied; names and reasons may take several lines
    table.add_column("study, key", width=KEY_CHARACTERS, overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("age", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for one in studies:
        study = f"{printable_line(one.name)}\n{one.study_key}".strip()
        attempts = f"{one.attempts} attempts" if one.attempts > 1 else ""
        reason = "; ".join(filter(None, (attempts, printable_line(one.reason))))
        table.add_row(escape(study), one.state, age(one.age_s), escape(reason))
    return table


def target_tables(
    states: Sequence[TargetState], unmade: Sequence[DeadLetter]
) -> list[RenderableType]:
    """Return the targets, their dead letters and the reports without objects for people."""
    table = _table("Targets", "target", "state")
    for state in states:
        lines = (
            state.problem or "answers",
            f"{state.waiting} waiting, the oldest {age(state.oldest_s)}" if state.waiting else "",
            f"last failure: {state.last_reason}" if state.last_reason else "",
            f"dead letters: {len(state.dead)}" if state.dead else "",
            *(f"does not take {found.name}" for found in state.not_taken),
        )
        way = state.encryption and f"encryption: {state.encryption}"
        _add(table, (state.name, state.address, way), lines)
    tables: list[RenderableType] = [table]
    dead = [letter for one in states for letter in one.dead]
    for title, letters in (("Dead letters", dead), ("Reports without objects", unmade)):
        if letters:
            tables.append(_letters(title, letters))
    return tables


def _letters(title: str, letters: Iterable[DeadLetter]) -> Table:
    table = _table(title, "report, key", "reason")
    for letter in letters:
        to = f"version {letter.version}" + (f" to {letter.target}" if letter.target else "")
        attempts = f"after {letter.attempts} attempts" if letter.attempts > 1 else ""
        _add(table, (letter.report, letter.study_key, to), (letter.reason, attempts))
    return table


def _table(title: str, *columns: str) -> Table:
    """Return a table that keeps all of its text in 80 columns; a key fits on its line."""
    table = Table(title=title, show_lines=True)
    for name in columns:
        table.add_column(name, overflow="fold", min_width=KEY_CHARACTERS)
    return table


def _add(table: Table, *cells: Iterable[str]) -> None:
    table.add_row(*("\n".join(escape(printable_line(x)) for x in cell if x) for cell in cells))
