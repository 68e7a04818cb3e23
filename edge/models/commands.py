"""The commands ``overread-edge models``: show, fetch, promote and roll back models."""

import json
import os
import sqlite3
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from edge.access import user_name
from edge.errors import EdgeError
from edge.models.choose import ModelsState, models_state, promote, roll_back
from edge.models.fetch import fetch
from edge.models.store import SHIPPED
from edge.settings.core import EdgeSettings
from edge.site import Site
from models.runtime.errors import ModelError
from process.command_line import PlainGroup
from process.text import Printable, printable, printable_json

ERRORS = (EdgeError, ModelError, OSError, sqlite3.Error)

Config = Annotated[
    Path | None, typer.Option(help="TOML file; OVERREAD_EDGE_* variables override it.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


def models_commands(
    load: Callable[[Path | None], EdgeSettings],
    failed: Callable[[Exception], typer.Exit],
    site_of: Callable[[EdgeSettings], Site],
) -> typer.Typer:
    """Return the commands; ``load`` reads the settings, ``failed`` says what went wrong."""
    app = typer.Typer(
        cls=PlainGroup, help="Models: show, fetch, promote, roll back.", no_args_is_help=True
    )

    @app.command(name="list")
    def show(config: Config = None, as_json: Json = False) -> None:
        """Show the active, the previous and the new model, and how far they agree."""
        settings = load(config)
        try:
            state = models_state(site_of(settings))
        except ERRORS as error:
            raise failed(error) from error
        if as_json:
            typer.echo(printable_json(json.dumps(as_values(state, settings), indent=2)))
        else:
            Console().print(Printable(*rendered(state, settings)))

    @app.command(
        name="fetch",
        epilog="Exit status: 0: it is here, or nothing new is offered. 1: it did not come whole, "
        "or was refused. A fetch that broke off is continued by the next.",
    )
    def fetch_command(
        config: Config = None,
        again: Annotated[
            bool, typer.Option("--again", help="Put a model in shadow that was rolled back.")
        ] = False,
    ) -> None:
        """Fetch the model that the cloud offers, check it, and put it in shadow."""
        settings = load(config)

        def on_step(step: Enum, durable: bool) -> None:
            if durable:
                typer.echo(f"step done: {step.value}", err=True)

        try:
            found = fetch(site_of(settings), user=_user(), again=again, on_step=on_step)
        except ERRORS as error:
            raise failed(error) from error
        what = f"in shadow: {found.version}" if found.new else f"nothing new: {found.version}"
        typer.echo(printable(f"{what}, {found.bytes} bytes came"))

    @app.command(name="promote")
    def promote_command(
        version: Annotated[
            str | None, typer.Argument(help="Version; by default that in shadow.")
        ] = None,
        force: Annotated[
            bool, typer.Option("--force", help="Although too little speaks for it; audited.")
        ] = False,
        config: Config = None,
    ) -> None:
        """Make the model in shadow the active one, from the next study on; the agent may run."""
        settings = load(config)
        try:
            active = promote(site_of(settings), user=_user(), version=version, force=force)
        except ERRORS as error:
            raise failed(error) from error
        typer.echo(printable(f"active: {active}"))

    @app.command(name="rollback")
    def rollback_command(config: Config = None) -> None:
        """Make the previous model the active one again, from the next study on."""
        settings = load(config)
        try:
            active = roll_back(site_of(settings), user=_user())
        except ERRORS as error:
            raise failed(error) from error
        typer.echo(printable(f"active: {active or settings.screening_model}"))

    return app


def as_values(state: ModelsState, settings: EdgeSettings) -> dict[str, Any]:
    """Return the state as JSON values; the shipped model has the name of the setting."""
    choice, shadow = state.choice, state.shadow

    def named(version: str | None) -> str | None:
        return settings.screening_model if version == SHIPPED else version

    return {
        "active": named(choice.active),
        "previous": named(choice.previous),
        "shadow": choice.shadow,
        "changed": choice.changed,
        "changed_by": choice.changed_by,
        "packages": [asdict(one) for one in state.packages],
        "agreement": asdict(shadow.agreement) if shadow else None,
        "against_promotion": list(shadow.problems) if shadow else [],
    }


def rendered(state: ModelsState, settings: EdgeSettings) -> list[Any]:
    """Return the state for people."""
    values = as_values(state, settings)
    table = Table(title="Models")
    table.add_column("use", no_wrap=True)
    table.add_column("version", overflow="fold")
    for use in ("active", "previous", "shadow"):
        table.add_row(use, values[use] or "none")
    if state.shadow is None:
        return [table]
    seen = state.shadow.agreement
    facts = Table(title=f"In shadow: {state.shadow.version}")
    facts.add_column("compared with the active model")
    facts.add_column("value", justify="right")
    rows = {
        "studies": f"{seen.studies} of {settings.models.shadow_studies}",
        "findings that it puts forward too": f"{seen.kept} of {seen.findings}",
        "findings of its own, a study": f"{seen.added:.2f}",
        "regions to the cloud, a study": f"{seen.regions_after:.1f}, before"
        f" {seen.regions_before:.1f}",
        "difference of logits, median": _figure(seen.logit_median),
        "difference of logits, 95 %": _figure(seen.logit_p95),
        "time, as a part of that of the active one": _figure(seen.time_ratio),
    }
    for name, value in rows.items():
        facts.add_row(name, value)
    against = "; ".join(state.shadow.problems) or "nothing: overread-edge models promote"
    return [table, facts, f"against promotion: {against}"]


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _user() -> str:
    return user_name(os.geteuid())
