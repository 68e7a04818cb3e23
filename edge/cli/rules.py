"""The commands ``overread-edge rules``: which series would be read."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edge.cli.output import Config, Json, load, show
from edge.report.folder import require_readable
from edge.rules.explain import ExplainedStudy, as_values, explain
from process.text import printable_line

app = typer.Typer(help="Rules that choose the series to read.", no_args_is_help=True)


@app.callback()
def _rules() -> None:
    """Rules that choose the series to read."""


@app.command(name="test")
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
