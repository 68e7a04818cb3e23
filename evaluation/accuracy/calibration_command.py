"""``overread-eval calibration``: probabilities, the choice of the thresholds, and the guarantee."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cloud.settings import load_settings as load_cloud_settings
from edge.settings.core import load_settings
from evaluation.accuracy.calibration import (
    Settings,
    changed,
    curve,
    kept_by_sets,
    listed,
    missed,
    reliability,
)
from evaluation.accuracy.nodules import save_chart
from evaluation.common import cli
from models.calibration.cases import Cases, Readers, candidates_of, donors_of, inserted, read_scans
from models.calibration.guarantee import (
    FITTED_ON,
    PLACEMENTS,
    SEED,
    UNTRAINED,
    losses,
    uncalibrated_readers,
)
from models.charts import new_figure
from models.markdown import Rows, interval, percent
from models.patients import CALIBRATION
from models.runtime.artifacts import find
from process.extras import require

FITTED, UNSEEN = "fitted on", "test"
READERS = ("edge", "edge and cloud")


def calibration_command(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with nodules/, lidc/ and ct/.")],
    model: cli.Model = None,
    cloud_model: cli.CloudModel = None,
    plot: cli.Plot = None,
    as_json: cli.Json = False,
) -> None:
    """Probabilities against shares of nodules, the choice of thresholds, and the guarantee."""
    require("torch")
    from models.training.data import load_cubes

    screening = model or load_settings().screening_model
    hybrid = cloud_model or load_cloud_settings().model
    settings = Settings(find(screening).settings, find(hybrid).settings)
    readers = uncalibrated_readers(screening, hybrid)
    read = {}
    parts = {"val": FITTED_ON, CALIBRATION: UNTRAINED, "test": ("test",)}
    for split, roles in cli.each(parts.items(), "splits", len(parts)):
        donors = donors_of(load_cubes(data / "nodules", split))
        read[split] = _read(data, roles, donors, readers)
    result = as_dict(read, settings)
    if plot is not None:
        save_chart(draw_choice(result), plot)
    cli.show(result, as_json, *tables(result))


def _read(data: Path, roles: tuple[str, ...], donors: Any, readers: Readers) -> dict[str, Cases]:
    """Return the inserted nodules of a split, and the candidates of the scans of each role."""
    scans = {role: read_scans(data, (role,), readers) for role in roles}
    every = [one for of in scans.values() for one in of]
    nodules = inserted(every, donors, readers, placements=PLACEMENTS, seed=SEED)
    return {"nodules": nodules, **{role: candidates_of(of, readers) for role, of in scans.items()}}


def as_dict(read: Mapping[str, Mapping[str, Cases]], settings: Settings) -> dict[str, Any]:
    """Return all figures; ``read`` has the nodules and the scans of each split."""
    limits, terms = settings.limits, settings.edge["guarantee"]
    fitted, unseen = (sum_of(read[split]) for split in ("val", "test"))
    rng = np.random.default_rng(SEED)
    held_out = read[CALIBRATION]["nodules"]
    by_list = losses(held_out, settings.edge, settings.cloud)
    return {
        "thresholds": dict(limits),
        "merge": settings.edge["merge"],
        "splits": {
            name: {
                "readers": {
                    reader: {"reliability": reliability(score, cases)}
                    for reader, score in settings.scores(cases).items()
                },
                "at": {
                    reader: {
                        what: listed(settings.scores(cases)[reader], cases, settings, limits[what])
                        for what in ("finding", "possible")
                    }
                    for reader in READERS
                },
                "curve": {
                    reader: curve(settings.scores(cases)[reader], cases, settings)
                    for reader in READERS
                },
                "changed": changed(cases, settings),
            }
            for name, cases in ((FITTED, fitted), (UNSEEN, unseen))
        },
        "false_findings": {
            f"{role}, {reader}": listed(
                settings.scores(cases)[reader], cases, settings, limits["finding"]
            )["false_per_scan"]
            | {"scans": cases.scans}
            for role, cases in {**read["val"], **read["test"]}.items()
            if role != "nodules"
            for reader in READERS
        },
        "guarantee": {
            "terms": dict(terms),
            "calibration": missed(held_out, settings),
            "test": missed(read["test"]["nodules"], settings),
            "kept_by_sets": {
                name: kept_by_sets(shares, terms["delta"] / 2, rng)
                for name, shares in zip(("findings", "listed"), by_list, strict=True)
            },
        },
    }


def sum_of(parts: Mapping[str, Cases]) -> Cases:
    """Return nodules and scans of a split together."""
    first, *rest = parts.values()
    for one in rest:
        first = first + one
    return first


def draw_choice(result: Mapping[str, Any]) -> Any:
    """Draw nodules kept against false findings a scan, with the threshold; return the figure."""
    figure = new_figure(9.0, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, split) in zip(panels, result["splits"].items(), strict=True):
        for reader, colour in zip(READERS, ("tab:gray", "tab:blue"), strict=True):
            line = split["curve"][reader]
            axes.plot(line["false_per_scan"], line["sensitivity"], color=colour, label=reader)
            for what, mark in (("finding", "o"), ("possible", "s")):
                at = split["at"][reader][what]
                place = (at["false_per_scan"]["value"], at["sensitivity"])
                axes.plot(*place, mark, color=colour, label=f"{reader}: {what}")
        axes.set(xlabel="false candidates a scan", title=f"{name} scans and nodules", ylim=(0.6, 1))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("nodules kept")
    panels[1].legend(fontsize="small", loc="lower right")
    return figure


def tables(result: Mapping[str, Any]) -> list[Rows | str]:
    """Return the tables of the result."""
    shown: list[Rows | str] = []
    for name, split in result["splits"].items():
        cells = [
            [reader, f"{row['from']:g} to {row['to']:g}", f"{row['mean']:.3f}",
             f"{row['share']:.3f}", row["nodules"], row["false"]]
            for reader, of in split["readers"].items()
            for row in of["reliability"]
        ]  # fmt: skip
        heads = ["reader", "probability", "mean", "share of nodules", "nodules", "false"]
        shown.append(Rows(heads, cells, f"Probabilities, {name}"))
        cells = [
            [reader, what, f"{at['threshold']:.4f}", f"{at['found']} of {at['nodules']}",
             percent(at["sensitivity"]), interval(at["false_per_scan"], 2)]
            for reader, of in split["at"].items()
            for what, at in of.items()
        ]  # fmt: skip
        heads = ["reader", "threshold", "probability", "nodules", "kept", "false a scan"]
        shown.append(Rows(heads, cells, f"Thresholds, {name}"))
        moved = ", ".join(f"{key.replace('_', ' ')} {n}" for key, n in split["changed"].items())
        shown.append(f"By verdicts: {moved}.")
    rates = [[name, one["scans"], interval(one, 2)]
             for name, one in result["false_findings"].items()]  # fmt: skip
    shown.append(Rows(["scans", "number", "false findings a scan"], rates))
    given, rows = result["guarantee"], []
    for split in ("calibration", "test"):
        for name in ("findings", "listed"):
            one = given[split][name]
            rows.append(
                [f"{split}, {given[split]['patients']} patients", name, percent(one["miss_rate"]),
                 percent(one["at_most"]), percent(one["guaranteed"]),
                 "yes" if one["within"] else "no"]
            )  # fmt: skip
    heads = ["patients", "list", "missed", "at most", "guaranteed", "within"]
    sets = ", ".join(f"{name} {percent(share)}" for name, share in given["kept_by_sets"].items())
    return [*shown, Rows(heads, rows), f"The bound of drawn sets holds: {sets}."]
