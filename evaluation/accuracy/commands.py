"""``overread-eval detect``, ``phantoms``, ``latency``: studies through the agent's whole line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from edge.assemble import open_pipeline
from edge.pipeline import Pipeline
from edge.settings import load_settings
from evaluation.accuracy import nodules
from evaluation.accuracy import reports as detect
from evaluation.accuracy import reports as findings
from evaluation.accuracy import reports as phantoms
from evaluation.accuracy.bootstrap import RESAMPLES, figures, froc_table
from evaluation.accuracy.data import read_truth
from evaluation.accuracy.froc import RATES, challenge
from evaluation.accuracy.reports import rates_table, studies_table
from evaluation.common.cli import (
    Csv,
    Deadline,
    Json,
    Model,
    Resamples,
    Seed,
    counting,
    each,
    remark_unknown,
    show,
)
from evaluation.common.processes import cloud_service
from evaluation.common.tables import times_table
from evaluation.timing import latency
from imaging.phantom.phantom import TRAINING_SEED, PhantomSpec
from models.markdown import Rows

Cloud = Annotated[str | None, typer.Option(metavar="HOST:PORT|off", help="Who reads again.")]


Serve = Annotated[bool, typer.Option("--serve", help="Start a cloud on loopback for the run.")]


Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the reports here.")]


def detect_command(
    studies: Annotated[Path, typer.Option(metavar="DIR", help="A sub-folder for each study.")],
    truth: Csv,
    cloud: Cloud = None,
    serve: Serve = False,
    model: Model = None,
    deadline: Deadline = None,
    out: Out = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Final reports of a folder of studies against their known lesions."""
    known = read_truth(truth)
    folders = detect.study_folders(studies)
    remark_unknown(folders, known)
    with _open_line(cloud, serve, model, deadline) as line, _folder(out) as reports:
        results = detect.detect(line, each(folders, "studies"), known, reports)
    _show_results(results, as_json, seed, nodules.CAVEAT)


def phantoms_command(
    count: Annotated[int, typer.Option(min=1, help="How many phantoms.")],
    seed: Seed = 0,
    cloud: Cloud = None,
    serve: Serve = False,
    model: Model = None,
    deadline: Deadline = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Final reports of synthetic chests, seeds SEED, SEED + 1 ...; every nodule is known."""
    if seed + count > TRAINING_SEED:
        raise typer.BadParameter(f"--seed: phantoms from {TRAINING_SEED} on were learnt from")
    specs = [PhantomSpec(seed=seed + i) for i in range(count)]
    with _open_line(cloud, serve, model, deadline) as line, _folder(out) as reports:
        results = [phantoms.read_phantom(line, one, reports) for one in each(specs, "phantoms")]
    _show_results(results, as_json, seed, phantoms.CAVEAT)


def latency_command(
    study: Annotated[Path, typer.Argument(help="Folder or file that the edge can read.")],
    cloud: Cloud = None,
    serve: Serve = False,
    repeat: Annotated[int, typer.Option(min=1, help="How often the study is read.")] = 10,
    warm_up: Annotated[int, typer.Option(min=0, help="Readings before that.")] = 1,
    model: Model = None,
    deadline: Deadline = None,
    as_json: Json = False,
) -> None:
    """Time of every stage from files to report, on this machine."""
    with _open_line(cloud, serve, model, deadline) as line, _folder(None) as out:
        rounds = each(range(warm_up + repeat), "readings")
        reports = latency.repeat_study(line, study, out, rounds)[warm_up:]
    machine = latency.this_machine()
    result = latency.as_dict(machine, study, reports)
    title = f"{study}, {repeat} readings; {machine.cpu}, {machine.cores} cores"
    show(result, as_json, times_table(result["stages"], title))


@contextmanager
def _open_line(
    cloud: str | None, serve: bool, model: str | None, deadline_s: float | None
) -> Iterator[Pipeline]:
    if serve and cloud is not None:
        raise typer.BadParameter("--serve starts a cloud of its own: leave --cloud out")
    with ExitStack() as parts:
        address = parts.enter_context(cloud_service()) if serve else cloud
        settings = load_settings(cloud=address, screening_model=model, deadline_s=deadline_s)
        yield parts.enter_context(open_pipeline(settings))


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="overread-eval-") as folder:
        yield Path(folder)


def _show_results(
    results: Sequence[findings.StudyResult], as_json: bool, seed: int, caveat: str
) -> None:
    known = any(result.scores is not None for result in results)
    point = findings.operating_point(results, seed=seed) if known else None
    result = findings.as_dict(results, point) | {"caveat": caveat}
    shown = [studies_table(result["per_study"]), times_table(result["stages"])]
    summary = [rates_table(point)] if point is not None else []
    show(result, as_json, *shown, *summary, caveat)


def froc_command(
    candidates: Csv,
    annotations: Csv,
    excluded: Csv,
    scans: Csv,
    resamples: Resamples = RESAMPLES,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """FROC and CPM of a file of candidates under the rules of LUNA16."""
    found = challenge(candidates, annotations, excluded, scans)
    with counting("bootstrap") as step:
        value = figures(found.scored, resamples=resamples, seed=seed, on_step=step)
    result = {
        "cpm": value.cpm.value,
        "sensitivity": [at.value for at in value.sensitivity],
        "false_positives_per_scan": list(RATES),
        **found.counts,
        "scans": found.scored.scans,
        "intervals": {
            "cpm": [value.cpm.low, value.cpm.high],
            "sensitivity": [[at.low, at.high] for at in value.sensitivity],
        },
    }
    title = f"FROC on {found.scored.scans} scans"
    show(
        result,
        as_json,
        froc_table(value, title),
        Rows(list(found.counts), [list(found.counts.values())]),
    )
