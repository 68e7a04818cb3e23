"""``overread-eval guarantee``: thresholds by conformal risk control, and whether they hold."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cloud.settings import load_settings as load_cloud_settings
from edge.decide import Thresholds
from edge.settings import load_settings
from evaluation.accuracy.data import read_cubes
from evaluation.accuracy.guarantee import GuaranteeSpec, carried, examine, served
from evaluation.accuracy.scores import Fitted, Scores, joined, read_scores, score_cubes
from evaluation.common import cli
from evaluation.common.readers import open_screening, open_second
from evaluation.errors import MissingData
from models.calibration.guarantee import Target, guaranteed_settings
from models.calibration.risk_control import ALPHA, DELTA, Bound, quantile_path, straight_path
from models.markdown import Rows, percent
from models.patients import CALIBRATION
from models.runtime.artifacts import find


def share_option(meaning: str) -> Any:
    """Return the option of a share above 0 and below 1; ``meaning`` is its help text."""
    return typer.Option(min=1e-6, max=0.999999, help=meaning)


def guarantee_command(
    cases: Annotated[
        list[Path] | None,
        typer.Option("--cases", metavar="FILE", help="NPZ or JSON file of cases; may be repeated."),
    ] = None,
    test: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Cases not in the calibration.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Cubes instead of cases: NAME.npz and index.csv."),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="Splits of --data for the calibration.")
    ] = CALIBRATION,
    test_split: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="Splits of --data for the test.")
    ] = "test",
    path_from: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Other cases from which the path of thresholds is made."),
    ] = None,
    alpha: Annotated[float, share_option("Largest share of missed nodules.")] = ALPHA,
    delta: Annotated[float, share_option("Probability that more are missed.")] = DELTA,
    bound: Annotated[Bound, typer.Option(help="Bound on the miss rate.")] = Bound.HOEFFDING_BENTKUS,
    resamples: Annotated[
        int, typer.Option(min=1, help="Number of calibration sets to draw.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    model: cli.Model = None,
    cloud_model: cli.CloudModel = None,
    as_json: cli.Json = False,
) -> None:
    """Thresholds by conformal risk control: their guarantee, and how often it holds."""
    if bool(cases) == (data is not None):
        raise typer.BadParameter("expected either --cases or --data")
    screening = model or load_settings().screening_model
    hybrid = cloud_model or load_cloud_settings().model
    if bound is Bound.BETTING:
        raise typer.BadParameter("sets of patients are resampled with one of the other bounds")
    settings = find(screening).settings
    fitted = Fitted.of(settings, find(hybrid).settings)
    held_out: Scores | None = None
    if data is not None:
        screener, second = open_screening(screening), open_second(hybrid)
        names = (tuple(split.split(",")), tuple(test_split.split(",")))
        if shared := set(names[0]) & set(names[1]):
            raise MissingData(data, f"splits for both calibration and test: {sorted(shared)}")
        known, held_out = (
            score_cubes(
                cli.each(read_cubes(data, one), ", ".join(one)), screener, second, fitted.weights
            )
            for one in names
        )
    else:
        known = joined(read_scores(file, fitted) for file in cases or ())
        held_out = joined(read_scores(file, fitted) for file in test) if test else None
    thresholds = Thresholds.from_manifest(settings)
    path = straight_path(thresholds.dismiss)
    if path_from is not None:
        path = quantile_path(read_scores(path_from, fitted).nodules)
    spec = GuaranteeSpec(path, thresholds.report, alpha, delta, bound)
    terms = guaranteed_settings(
        known.nodules, asdict(thresholds), Target(alpha, delta), settings["merge"]
    )
    rng = np.random.default_rng(seed)
    result = {
        **examine(known, held_out, spec, resamples=resamples, seed=seed),
        "carried": carried(known.nodules, spec, resamples, rng),
        "served": served(known, held_out, spec, terms, resamples, rng),
    }
    cli.show(result, as_json, *_shown(result))


_percent = partial(percent, digits=2)


def _shown(result: dict[str, Any]) -> list[Rows | str]:
    at, served = result["thresholds"], result["served"]
    path = f"dismiss below {at['dismiss']:.4f}, possible from {at['possible']:.4f}"
    heads = ("patients", "nodules", "lost", "miss rate", "at most", "pooled over nodules")
    levels = [
        [f"{one['patients']} of {name}", one["nodules"], one["lost"],
         *(_percent(one[key]) for key in ("miss_rate", "miss_rate_upper", "pooled"))]
        for name in ("calibration", "test")
        if (one := result[name]) is not None
    ]  # fmt: skip
    shown: list[Rows | str] = [result["guarantee"], path, _experiments(result), Rows(heads, levels)]
    shown.append(_served(served))
    if served["cost"] is not None:
        shown.append(", ".join(f"{key}: {value:.2f}" for key, value in served["cost"].items()))
    if not result["patients_known"]:
        shown.append("The cases do not name patients: every nodule counts as a patient.")
    return shown


def _experiments(result: dict[str, Any]) -> Rows:
    heads = ("sets", "alpha", "kept", "gave a guarantee", "mean miss rate",
             "90th percentile", "worst possible", "can fail")  # fmt: skip
    cells = []
    parts = {"requested": result, "carried": result["carried"], "as served": result["served"]}
    for words, part in parts.items():
        for name in ("splits", "draws"):
            one = part[name]
            alpha = one.get("alpha_mean", part.get("alpha"))
            figures = (one["kept"], one.get("guaranteed", 1.0))
            rates = (one["miss_rate_mean"], one["miss_rate_p90"], one["worst"])
            label = f"{one['resamples']} {name}, {words}"
            able = "yes" if one["can_fail"] else "no"
            cells.append([label, *map(_percent, (alpha, *figures, *rates)), able])
    return Rows(heads, cells)


def _served(served: dict[str, Any]) -> str:
    terms, at, test = served["guarantee"], served["thresholds"], served["test"]
    confidence = _percent(1 - terms["delta"])
    words = f"served: dismiss below {at['dismiss']:.4f}, possible from {at['possible']:.4f}: "
    words += f"at most {_percent(terms['alpha'])} missed with {confidence} confidence, "
    words += f"{_percent(terms['average'])} on average"
    if test is None:
        return words
    holds = "holds" if test["kept"] else "does not hold"
    return f"{words}; {_percent(test['miss_rate'])} of test, where it {holds}"
