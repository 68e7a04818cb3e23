"""``overread-eval policies``: reads the cases once, simulates the policies, and shows the rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud.settings import load_settings as load_cloud_settings
from edge.assemble import open_pipeline
from edge.settings import CLOUD_OFF, EdgeSettings, load_settings
from evaluation.accuracy.truth import marks_in, read_truth
from evaluation.common.cli import CloudModel, Deadline, Json, Model, Plots, Reserve, show
from evaluation.common.readers import open_second
from evaluation.common.tables import columns_table
from evaluation.links.trace import find_trace, shipped_names
from evaluation.policies.cases import (
    Cases,
    Readers,
    Sources,
    key_of,
    load,
    read_cases,
    remeasured,
    save,
)
from evaluation.policies.compare import ENTROPY, FIXED, PAIR, TUNED, compare
from evaluation.policies.plots import save_fronts
from evaluation.policies.simulate import World
from models.markdown import Rows, number
from models.runtime.artifacts import find

COLUMNS = {
    "policy": ("policy", "{}"),
    "sensitivity": ("found", "{:.1%}"),
    "sensitivity_amended": ("amended", "{:.1%}"),
    "false_positives_per_scan": ("false a scan", "{:.2f}"),
    "escalated_share": ("sent", "{:.1%}"),
    "rois_per_scan": ("ROIs a scan", "{:.2f}"),
    "bytes_per_scan": ("bytes a scan", "{:.0f}"),
    "p50_ms": ("p50 ms", "{:.0f}"),
    "p95_ms": ("p95 ms", "{:.0f}"),
    "p99_ms": ("p99 ms", "{:.0f}"),
    "missed": ("late", "{}"),
}

KINDS = {
    "single": f"(a) {FIXED}",
    "pair": f"(b) {PAIR}",
    "cut": f"(c) {TUNED}",
    "sedna": ENTROPY,
    "hindsight": "(a) in hindsight",
}
"""By the keys of `evaluation.policies.compare.OPPONENTS`."""

SIDES = {"verdicts": "verdicts only", "characterized": "with characterization"}


def policies_command(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Cubes: NAME.npz and index.csv.")],
    scans: Annotated[Path, typer.Option(metavar="DIR", help="Whole scans, one sub-folder each.")],
    truth: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Marks; marks.csv or scans.csv in DIR by default."),
    ] = None,
    cache: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the readings.")] = Path(
        "runs/policies"
    ),
    trace: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|CSV", help="Link; may be repeated. Default: all shipped."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions per test patient.")] = 3,
    every: Annotated[float, typer.Option(min=0.1, help="Mean seconds between studies.")] = 20.0,
    deadline: Deadline = None,
    reserve: Reserve = None,
    propose: Annotated[
        float, typer.Option(min=0, max=1, help="Ignore candidates below this score.")
    ] = 0.05,
    remeasure: Annotated[
        bool, typer.Option("--remeasure-times", help="Measure the times again, not the scores.")
    ] = False,
    model: Model = None,
    cloud_model: CloudModel = None,
    plots: Plots = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of studies, arrivals and jitter.")] = 0,
    as_json: Json = False,
) -> None:
    """Escalation policies: ours, fixed thresholds, filters, everything, nothing, an oracle."""
    given: dict[str, Any] = {
        "screening_model": model, "deadline_s": deadline, "reserve_s": reserve
    }  # fmt: skip
    settings = load_settings(cloud=CLOUD_OFF, **given)
    links = [find_trace(name) for name in trace or shipped_names()]
    sources = Sources(data, scans, truth or marks_in(scans))
    cases = _cases(sources, settings, cloud_model, propose, cache, remeasure=remeasure)
    world = World(cases, settings, load_cloud_settings(model=cloud_model), every, seed)
    result = compare(world, links, rounds)
    if plots is not None:
        save_fronts(result, plots)
    show(result, as_json, *_tables(result), result["caveat"])


def _cases(
    sources: Sources,
    settings: EdgeSettings,
    cloud_model: str | None,
    propose: float,
    cache: Path,
    *,
    remeasure: bool,
) -> Cases:
    """Return the cases from the cache, or read them: the key changes with models and data."""
    hybrid = find(cloud_model or load_cloud_settings().model)
    screening = find(settings.screening_model)
    key = key_of(
        models={one.name: [one.sha256, dict(one.settings)] for one in (screening, hybrid)},
        sources=[str(path.resolve()) for path in (sources.cubes, sources.scans, sources.truth)],
        known=str(read_truth(sources.truth)),
        proposed=propose,
    )
    path = cache / f"cases-{key}.json"
    kept = load(path) if path.is_file() else None
    if kept is not None and not remeasure:
        return kept
    with open_pipeline(settings) as pipeline:
        second = open_second(cloud_model)
        label = f"{second.name} {second.version} ({second.engine})"
        readers = Readers(pipeline, second, label, propose)
        cases = read_cases(sources, readers) if kept is None else remeasured(kept, sources, readers)
    save(cases, path)
    return cases


def _tables(result: dict[str, Any]) -> list[Rows | str]:
    shown: list[Rows | str] = []
    for one in result["traces"]:
        title = f"{one['trace']}: {result['studies']} studies, deadline {result['deadline_s']:g} s"
        shown.append(columns_table(COLUMNS, one["policies"], title))
    ratio = result["escalation_ratio"]
    for side, words in SIDES.items():
        by_kind = ratio[side][ratio["trace"]]
        ratios = "; ".join(f"{kind}: {_ratio(by_kind[key])}" for key, kind in KINDS.items())
        shown.append(f"ratio of ours, {words}, to others over {ratio['trace']}: {ratios}")
    return shown


def _ratio(one: Mapping[str, Any] | None) -> str:
    """Return the ratios of ROIs and bytes, or why there are none; a star: finds less than ours."""
    if one is None:
        return "not run"
    if not one["escalates"] and not one["ours_escalates"]:
        return "neither escalates"
    star = "" if one["as_good"] else " *"
    if not one["escalates"]:
        return f"sends nothing{star}"
    return f"{number(one['rois'], 2)}, {number(one['bytes'], 2)}{star}"
