"""The commands ``overread-edge models``: show, fetch, promote and roll back models."""

from dataclasses import asdict
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table

from edge.audit import Person
from edge.cli.output import Config, Json, load, show
from edge.models.agreement import MIN_STUDIES
from edge.models.fetch import fetch
from edge.models.store import SHIPPED, ModelsState, models_state, promote, roll_back
from edge.settings.core import EdgeSettings
from process.text import printable

app = typer.Typer(help="Models: show, fetch, promote, roll back.", no_args_is_help=True)


@app.command(name="list")
def show_models(config: Config = None, as_json: Json = False) -> None:
    """Show the active, the previous and the new model, and how far they agree."""
    site = load(config)
    state = models_state(site)
    show(as_values(state, site.settings), as_json, *tables(state, site.settings))


@app.command(
    name="fetch",
    epilog="Exit status: 0: it is here, or nothing new is offered. 1: it did not come whole, "
    "or was refused. A fetch that broke off is continued by the next.",
)
def fetch_model(
    config: Config = None,
    again: Annotated[
        bool, typer.Option("--again", help="Put a model in shadow that was rolled back.")
    ] = False,
) -> None:
    """Fetch the model that the cloud offers, check it, and put it in shadow."""

    def on_step(step: Enum, durable: bool) -> None:
        if durable:
            typer.echo(f"step done: {step.value}", err=True)

    found = fetch(load(config), user=Person.here().user, again=again, on_step=on_step)
    what = f"in shadow: {found.version}" if found.new else f"nothing new: {found.version}"
    typer.echo(printable(f"{what}, {found.bytes} bytes came"))


@app.command(name="promote")
def promote_model(
    version: Annotated[
        str | None, typer.Argument(help="Version; by default that in shadow.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Although too little speaks for it; audited.")
    ] = False,
    config: Config = None,
) -> None:
    """Make the model in shadow the active one, from the next study on; the agent may run."""
    active = promote(load(config), user=Person.here().user, version=version, force=force)
    typer.echo(printable(f"active: {active}"))


@app.command(name="rollback")
def roll_model_back(config: Config = None) -> None:
    """Make the previous model the active one again, from the next study on."""
    site = load(config)
    active = roll_back(site, user=Person.here().user)
    typer.echo(printable(f"active: {active or site.settings.screening_model}"))


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


def tables(state: ModelsState, settings: EdgeSettings) -> list[RenderableType]:
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
        "studies": f"{seen.studies} of {MIN_STUDIES}",
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
