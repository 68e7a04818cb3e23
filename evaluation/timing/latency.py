"""``overread-eval latency``: from files to report by stage, and from a candidate to its verdict.

For candidates a real edge and a real cloud run as processes. Candidates follow one another over
each link. With ``--against`` all steps of a study are compared with an earlier commit.
"""

import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud.describe import fetch_description
from edge.decide import ROI_SIDE, Situation, Thresholds, decide
from edge.escalation.client import Escalator
from edge.escalation.rois import RoiStates, cut_rois
from edge.job import Job
from edge.link.channel import open_link
from edge.link.estimate import Arrival
from edge.link.link import Link
from edge.merge import MergeWeights, merge
from edge.pipeline import Pipeline, read_and_report
from edge.reader import EdgeReader
from edge.report.model import Report
from edge.settings.core import EdgeSettings, load_settings
from evaluation.accuracy.detect import TIMES, Cloud, Serve, ledger_s, opened, stage_times
from evaluation.errors import MissingData, ServiceFailed
from evaluation.links.proxy import proxied, read_trace
from evaluation.phantoms import STUDIES, prepare, whole_chest
from evaluation.run import Bar, Result, Table, command, each, percentiles_ms
from evaluation.timing.against import TABLE as AGAINST
from evaluation.timing.against import compare
from evaluation.world import apart, running_cloud
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from models.runtime.detection import Candidate
from models.runtime.screener import open_screener
from protos.codec import encode_roi
from protos.deadline import Deadline

LIMIT_MS = 85.0
"""Required of the 95th percentile from a candidate to its verdict."""

REPEATS = 10
"""Readings of a study that count."""

LOOPBACK = "loopback"
LINKS = (LOOPBACK, "fibre")

Times = dict[str, Any]
"""The times of one candidate: ``total_s``, and ``parts_s`` by name."""


def bars(result: Result) -> Iterator[Bar]:
    """Yield the 95th percentile of candidates over each link."""
    if (share := result.get("decoder_share")) is not None:
        yield Bar("share of the decoder in reading JPEG-LS", share, 0.7, "{:.0%}", least=True)
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
    AGAINST,
    "{cpu}, {cores} cores",
    bars=bars,
)  # fmt: skip
def latency(
    study: Annotated[
        Path | None,
        typer.Argument(
            help="Folder or file that the edge can read; with --against, of lidc/ and ct/."
        ),
    ] = None,
    cloud: Cloud = None,
    serve: Serve = False,
    warm_up: Annotated[int, typer.Option(min=0, help="Uncounted repetitions at first.")] = 1,
    candidates: Annotated[
        int, typer.Option(min=0, help="Candidates over each link, in place of a study.")
    ] = 0,
    against: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Checkout of an earlier commit.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds that count with --against.")] = 30,
) -> dict[str, Any]:
    """Times from files to report, of candidates to verdicts, or against an earlier commit."""
    if (study is None) == (candidates == 0):
        raise typer.BadParameter("give either a STUDY or --candidates")
    if study and against:
        return {"candidates": 0, "links": [], **compare(against, study, rounds)}
    if study is None:
        return {"stages": [], **_escalate(candidates, warm_up)}
    with opened(cloud, serve) as (pipeline, folder):
        repeats = each(range(warm_up + REPEATS), "readings")
        reports = repeat_study(pipeline, study, folder, repeats)[warm_up:]
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
    """Read `study` once for each of `rounds` and return the reports."""
    reports = []
    for _ in rounds:
        report = read_and_report(line, Job(study, out)).report
        if report.rejection is not None:
            raise MissingData(study, f"{report.rejection.kind}: {report.rejection.reason}")
        reports.append(report)
    return reports


def _escalate(candidates: int, warm_up: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="overread-latency-") as folder:
        log = Path(folder, "edge.log")
        with running_cloud() as service, apart(Candidates, log) as edge:
            served = fetch_description(service.address)
            rows = []
            for name in LINKS:
                with ExitStack() as held:
                    address = service.address
                    if name != LOOPBACK:
                        address = held.enter_context(proxied(address, read_trace(name))).address
                    edge.open(address)
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
    """Return the times of these candidates, without the first ``warm_up``."""
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


@dataclass(frozen=True, eq=False)
class Case:
    """A lung box and its candidates, all of them uncertain under these thresholds."""

    box: Preprocessed
    candidates: Sequence[Candidate]
    thresholds: Thresholds
    weights: MergeWeights


class RecordingLink(Link):
    """A link that also remembers the last verdict."""

    last: Arrival | None = None

    def succeeded(self, arrivals: Sequence[Arrival], response_s: float = 0.0) -> None:
        """See `edge.link.link.Link.succeeded`."""
        self.last = arrivals[-1] if arrivals else None
        super().succeeded(arrivals, response_s)


def read_case(folder: Path, settings: EdgeSettings) -> Case:
    """Read and screen the study in that folder."""
    screener = open_screener(settings.screening_model, engine=settings.engine)
    reader = EdgeReader.of(screener)
    box = preprocess(read_study(folder).volume, folder)
    uncertain = replace(reader.thresholds, dismiss=0.0, report=1.01)
    return Case(box, reader.screen(box), uncertain, reader.weights)


def escalate(
    case: Case, number: int, second: Escalator, link: RecordingLink, settings: EdgeSettings
) -> dict[str, Any]:
    """Take one candidate to its final verdict; the seconds in all and of each part."""
    candidate = case.candidates[number % len(case.candidates)]
    times_s = [time.monotonic()]
    situation = Situation(
        (candidate,), case.thresholds, link.estimate(),
        settings.deadline_s, ROI_SIDE**3, settings.cloud.max_rois,
    )  # fmt: skip
    plan = decide(situation)
    times_s.append(time.monotonic())
    rois = cut_rois(plan, case.box)
    times_s.append(time.monotonic())
    answers = second.read_rois(rois, Deadline.after(settings.deadline_s), uuid.uuid4().hex)
    times_s.append(time.monotonic())
    merge(plan, answers, case.thresholds, case.weights, case.box.geometry)
    times_s.append(time.monotonic())
    if (last := link.last) is None or not answers.verdicts:
        return {"reason": answers.reason or "no verdict"}
    decide_s, cut_s, stream_s, merge_s = (b - a for a, b in pairwise(times_s))
    began_s = time.monotonic()  # encode once more, to learn how long that takes
    for roi in RoiStates(rois).open.values():
        encode_roi(roi)
    encode_s = time.monotonic() - began_s
    parts_s = {
        "decide": decide_s,
        "cut and encode": cut_s + encode_s,
        "link": last.transport_s - encode_s,
        "queue": last.queue_s,
        "compute": last.compute_s,
        "end of stream": stream_s - last.after_s,
        "merge": merge_s,
    }
    return {"total_s": times_s[-1] - times_s[0], "parts_s": parts_s}


class Candidates:
    """The candidates of one phantom, and a link to a cloud; for `evaluation.world.apart`.

    The candidates are those of the edge's own network. Whatever their scores, all are treated as
    uncertain.
    """

    def __init__(self) -> None:
        (prepared,) = prepare([whole_chest(0)], STUDIES)
        self._case = read_case(prepared.folder, load_settings())
        self._held = ExitStack()

    def open(self, address: str) -> None:
        """Connect to a cloud, and wait until the link is known."""
        self._held.close()
        self._settings, self._link = load_settings(cloud__address=address), RecordingLink()
        channel = open_link(address, self._link, self._settings, self._held)
        self._second = Escalator(channel, self._link, self._settings)
        self._link.wait_until_known()

    def escalate(self, number: int) -> dict[str, Any]:
        """Have one candidate read again; see `escalate`."""
        return escalate(self._case, number, self._second, self._link, self._settings)
