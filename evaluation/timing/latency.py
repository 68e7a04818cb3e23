"""``overread-eval latency``: from files to report by stage, and from a candidate to its verdict.

For candidates a real edge and a real cloud run as processes. Candidates follow one another over
each link.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud.describe import fetch_description
from edge.job import Job
from edge.pipeline import Pipeline, read_and_report
from edge.report.model import Report
from evaluation.accuracy.detect import TIMES, Cloud, Serve, ledger_s, opened, stage_times
from evaluation.errors import MissingData, ServiceFailed
from evaluation.links.proxy import proxied
from evaluation.links.trace import find_trace
from evaluation.result import Bar, Result, Table, percentiles_ms
from evaluation.run import STUDIES, Cache, Deadline, Model, Seed, command, each
from evaluation.timing.candidate_worker import Candidates
from evaluation.world import apart, running_cloud

LIMIT_MS = 85.0
"""Required of the 95th percentile from a candidate to its verdict."""

LOOPBACK = "loopback"

Times = dict[str, Any]
"""The times of one candidate: ``total_s``, and ``parts_s`` by name."""


def bars(result: Result) -> Iterator[Bar]:
    """Yield the 95th percentile of candidates over each link."""
    for one in result["links"]:
        if one["part"] == "all":
            what = f"from candidate to verdict, {one['link']}, p95"
            yield Bar(what, one["p95_ms"], LIMIT_MS, "{:.0f} ms")


@command(
    TIMES,
    Table("links", {
        "link": "link", "part": "part", "p50_ms": ("median ms", "{:.1f}"),
        "p95_ms": ("p95 ms", "{:.1f}"), "p99_ms": ("p99 ms", "{:.1f}"),
        "longest_ms": ("longest ms", "{:.1f}"),
    }, title="From a candidate to its verdict, {candidates} candidates"),
    "{cpu}, {cores} cores",
    bars=bars,
)  # fmt: skip
def latency(
    study: Annotated[
        Path | None, typer.Argument(help="Folder or file that the edge can read.")
    ] = None,
    cloud: Cloud = None,
    serve: Serve = False,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions that count.")] = 10,
    warm_up: Annotated[int, typer.Option(min=0, help="Uncounted ones before them.")] = 1,
    candidates: Annotated[
        int, typer.Option(min=0, help="Candidates over each link, in place of a study.")
    ] = 0,
    link: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|CSV|loopback", help="Link of candidates; may be repeated."),
    ] = None,
    model: Model = None,
    deadline: Deadline = None,
    cache: Cache = STUDIES,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Time from files to report, stage by stage, or of candidates to their verdicts."""
    if (study is None) == (candidates == 0):
        raise typer.BadParameter("give either a STUDY or --candidates")
    if study is None:
        names = link or [LOOPBACK, "fibre"]
        return {"stages": [], **_escalate(names, candidates, warm_up, cache, seed)}
    with opened(cloud, serve, model, deadline) as (pipeline, folder):
        rounds = each(range(warm_up + repeat), "readings")
        reports = repeat_study(pipeline, study, folder, rounds)[warm_up:]
    last = reports[-1]
    return {
        "study": str(study),
        "repeats": len(reports),
        "models": last.models,
        "second_reading": sorted({report.second_reading.value for report in reports}),
        "screened": len(last.decisions),
        "findings": len(last.findings),
        "stages": stage_times([ledger_s(report) for report in reports]),
        "candidates": 0,
        "links": [],
    }


def repeat_study(line: Pipeline, study: Path, out: Path, rounds: Iterable[int]) -> list[Report]:
    """Read `study` once for each of `rounds` and return the reports.

    Raises:
        MissingData: the study cannot be read; there is nothing to time.
    """
    reports = []
    for _ in rounds:
        report = read_and_report(line, Job(study, out)).report
        if report.rejection is not None:
            raise MissingData(study, f"{report.rejection.kind}: {report.rejection.reason}")
        reports.append(report)
    return reports


def _escalate(
    names: Sequence[str], candidates: int, warm_up: int, cache: Path, seed: int
) -> dict[str, Any]:
    """Send the candidates of one phantom over each link, one after another."""
    with tempfile.TemporaryDirectory(prefix="overread-latency-") as folder:
        log = Path(folder, "edge.log")
        with running_cloud() as service, apart(partial(Candidates, seed, cache), log) as edge:
            address = service.address
            served = fetch_description(address)
            rows = []
            for name in names:
                with ExitStack() as held:
                    cloud = address
                    if name != LOOPBACK:
                        link_to = proxied(address, find_trace(name), seed=seed)
                        cloud = held.enter_context(link_to).address
                    edge.open(cloud)
                    numbers = each(range(warm_up + candidates), name)
                    rows += link_rows(name, escalate_all(edge.escalate, numbers, warm_up))
    return {
        "models": served.models,
        "engine": served.engine,
        "candidates": candidates,
        "links": rows,
    }


def escalate_all(
    escalate: Callable[[int], Times], numbers: Iterable[int], warm_up: int
) -> list[Times]:
    """Return the times of these candidates, without the first ``warm_up``.

    Raises:
        ServiceFailed: the cloud did not answer for one of them.
    """
    times = [escalate(number) for number in numbers]
    for one in times:
        if "reason" in one:
            raise ServiceFailed(f"the cloud did not answer: {one['reason']}")
    return times[warm_up:]


def link_rows(link: str, times: Sequence[Times]) -> list[dict[str, Any]]:
    """Return the percentiles of one link: of all parts together, and of each."""
    parts_s = {"all": [one["total_s"] for one in times]}
    parts_s |= {name: [one["parts_s"][name] for one in times] for name in times[0]["parts_s"]}
    return [
        {"link": link, "part": name, **percentiles_ms(part_s), "longest_ms": 1000 * max(part_s)}
        for name, part_s in parts_s.items()
    ]
