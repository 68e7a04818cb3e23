"""``overread-eval policies``: reads the cases once, simulates the policies, and shows the rows."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud.settings import load_settings as load_cloud_settings
from edge.assemble import open_pipeline
from edge.settings.core import CLOUD_OFF, EdgeSettings, load_settings
from evaluation.accuracy.readers import open_second
from evaluation.common.cli import (
    CloudModel,
    Deadline,
    Json,
    Limit,
    Marks,
    Model,
    MoreScans,
    Plots,
    Reserve,
    Scans,
    known_scans,
    show,
)
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
from evaluation.policies.compare import ENTROPY, FIXED, OURS, PAIR, TUNED, VERDICTS, compare
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
    "hindsight": "(b) in hindsight",
}
"""By the keys of `evaluation.policies.compare.OPPONENTS`."""

KINDS_OF_SCAN = {"real": "real", "semi_synthetic": "semi-synthetic"}

SIDES = {"verdicts": VERDICTS, "characterized": OURS}


def policies_command(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Cubes: NAME.npz and index.csv.")],
    scans: Scans,
    truth: Marks,
    more_scans: MoreScans = None,
    cache: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the readings.")] = Path(
        "runs/policies"
    ),
    trace: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|CSV", help="Link; may be repeated. Default: all shipped."),
    ] = None,
    together: Annotated[int, typer.Option(min=1, help="Nodules inserted into one scan.")] = 4,
    limit: Limit = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions of each test study.")] = 3,
    every: Annotated[float, typer.Option(min=0.1, help="Mean seconds between studies.")] = 20.0,
    deadline: Deadline = None,
    reserve: Reserve = None,
    propose: Annotated[
        float, typer.Option(min=0, max=1, help="Ignore candidates below this score.")
    ] = 0.002,
    remeasure: Annotated[
        bool, typer.Option("--remeasure-times", help="Measure the times again, not the scores.")
    ] = False,
    model: Model = None,
    cloud_model: CloudModel = None,
    plots: Plots = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of insertions, arrivals, jitter.")] = 0,
    as_json: Json = False,
) -> None:
    """Escalation policies on whole scans: ours, fixed thresholds, everything, nothing, an oracle.

    Thresholds are chosen on scans of role val, figures are those of role test. Nodules of the same
    split are inserted into copies of the scans. Readings are cached: a run that was ended goes on.
    """
    given: dict[str, Any] = {
        "screening_model": model, "deadline_s": deadline, "reserve_s": reserve
    }  # fmt: skip
    settings = load_settings(cloud=CLOUD_OFF, **given)
    links = [find_trace(name) for name in trace or shipped_names()]
    folders, known = known_scans(scans, more_scans, truth)
    sources = Sources(tuple(folders), known, data, together, limit, seed)
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
        paths=[str(path.resolve()) for path in (sources.cubes, *sources.scans)],
        known={name: asdict(truth) for name, truth in sources.known.items()},
        inserted=[sources.together, sources.limit, sources.seed],
        proposed=propose,
    )
    path = cache / f"cases-{key}.json"
    cases = load(path) if path.is_file() else None
    if cases is not None and cases.complete and not remeasure:
        return cases
    with open_pipeline(settings) as pipeline:
        second = open_second(cloud_model)
        label = f"{second.name} {second.version} ({second.engine})"
        readers = Readers(pipeline, second, label, propose)
        if cases is None or not cases.complete:
            return read_cases(sources, readers, partial(save, path=path), cases)
        again = remeasured(cases, sources, readers)
    save(again, path)
    return again


def _tables(result: dict[str, Any]) -> list[Rows | str]:
    shown: list[Rows | str] = []
    for one in result["traces"]:
        title = f"{one['trace']}: {result['studies']} studies, deadline {result['deadline_s']:g} s"
        shown.append(columns_table(COLUMNS, one["policies"], title))
    for split, one in result["sets"].items():
        shown += [
            f"{split}, {kind} scans: {_changes(one[key])}" for key, kind in KINDS_OF_SCAN.items()
        ]
    ratio = result["escalation_ratio"]
    for side, name in SIDES.items():
        by_kind = ratio[side][ratio["trace"]]
        gain = result["more_than_edge"][name]
        cloud = by_kind["cloud"]
        shown += [
            f"{name} over {ratio['trace']} finds "
            f"{'at least as much as' if cloud['at_least'] else 'less than'} cloud only, with "
            f"{number(cloud['bytes'], 2)} of its bytes; {gain['value']:+.1%} "
            f"({gain['low']:+.1%} to {gain['high']:+.1%}) against the edge's score alone at equal "
            "false positives",
            f"ratio of {name} to others: "
            + "; ".join(f"{kind}: {_ratio(by_kind[key])}" for key, kind in KINDS.items()),
        ]
    pairs = result["fixed_pairs"]
    shown.append(
        f"{pairs['better']} of {pairs['tried']} fixed pairs do as well as ours on the test studies"
        " with fewer ROIs"
    )
    return shown


def _changes(one: Mapping[str, Any]) -> str:
    """Return how much is uncertain, and what verdicts change."""
    return (
        f"{number(one['uncertain_per_scan'], 1)} uncertain candidates a scan; verdicts change"
        f" {one['changed']} decisions, {one['right']} of them rightly"
    )


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
