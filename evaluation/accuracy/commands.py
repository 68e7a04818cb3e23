"""``overread-eval froc``, ``detect``, ``phantoms`` and ``latency``."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from edge.assemble import open_pipeline
from edge.pipeline import Pipeline
from edge.settings.core import load_settings
from evaluation.accuracy import nodules, reports
from evaluation.accuracy.bootstrap import RESAMPLES, figures, froc_table
from evaluation.accuracy.froc import RATES, challenge
from evaluation.accuracy.truth import read_truth, scan_name
from evaluation.common import cli
from evaluation.common.processes import cloud_service
from evaluation.common.tables import times_table
from evaluation.timing import latency
from imaging.phantom.phantom import TRAINING_SEED, PhantomSpec
from models.markdown import Rows

Cloud = Annotated[
    str | None, typer.Option(metavar="HOST:PORT|off", help="Cloud for second readings.")
]
Serve = Annotated[bool, typer.Option("--serve", help="Start a cloud on loopback for the run.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the reports.")]


def froc_command(
    candidates: Annotated[Path, cli.csv_option("Scored candidates, in the format of LUNA16.")],
    annotations: Annotated[Path, cli.csv_option("Nodules, in the format of LUNA16.")],
    excluded: Annotated[Path, cli.csv_option("Findings that do not count, in that format.")],
    scans: Annotated[Path, cli.csv_option("Scans that count, one a line.")],
    resamples: cli.Resamples = RESAMPLES,
    seed: cli.Seed = 0,
    as_json: cli.Json = False,
) -> None:
    """FROC and CPM of a file of candidates under the rules of LUNA16."""
    scored, counts = challenge(candidates, annotations, excluded, scans)
    with cli.counting("bootstrap") as step:
        value = figures(scored, resamples=resamples, seed=seed, on_step=step)
    result = {
        "cpm": value.cpm.value,
        "sensitivity": [at.value for at in value.sensitivity],
        "false_positives_per_scan": list(RATES),
        **counts,
        "scans": scored.scans,
        "intervals": {
            "cpm": [value.cpm.low, value.cpm.high],
            "sensitivity": [[at.low, at.high] for at in value.sensitivity],
        },
    }
    title = f"FROC on {scored.scans} scans"
    cli.show(result, as_json, froc_table(value, title), Rows([*counts], [[*counts.values()]]))


def detect_command(
    studies: Annotated[Path, typer.Option(metavar="DIR", help="Folder with one folder a study.")],
    truth: cli.Marks,
    cloud: Cloud = None,
    serve: Serve = False,
    model: cli.Model = None,
    deadline: cli.Deadline = None,
    out: Out = None,
    seed: cli.Seed = 0,
    as_json: cli.Json = False,
) -> None:
    """Final reports of a folder of studies against their known lesions."""
    known = read_truth(*truth)
    folders = reports.study_folders(studies)
    cli.remark_unknown(folders, known)
    with _open_pipeline(cloud, serve, model, deadline, out) as (pipeline, folder):
        results = [
            reports.read_one(pipeline, study, folder, known.get(scan_name(study)))
            for study in cli.each(folders, "studies")
        ]
    _show_results(results, as_json, seed, nodules.CAVEAT)


def phantoms_command(
    count: Annotated[int, typer.Option(min=1, help="Number of phantoms.")],
    seed: cli.Seed = 0,
    cloud: Cloud = None,
    serve: Serve = False,
    model: cli.Model = None,
    deadline: cli.Deadline = None,
    out: Out = None,
    as_json: cli.Json = False,
) -> None:
    """Final reports of phantoms, seeds SEED, SEED + 1 ...; every nodule is known."""
    if seed + count > TRAINING_SEED:
        raise typer.BadParameter(f"--seed: seeds from {TRAINING_SEED} on were used in training")
    specs = [PhantomSpec(seed=seed + i) for i in range(count)]
    with _open_pipeline(cloud, serve, model, deadline, out) as (pipeline, folder):
        results = [
            reports.read_phantom(pipeline, spec, folder) for spec in cli.each(specs, "phantoms")
        ]
    _show_results(results, as_json, seed, reports.CAVEAT)


def latency_command(
    study: Annotated[Path, typer.Argument(help="Folder or file that the edge can read.")],
    cloud: Cloud = None,
    serve: Serve = False,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions that count.")] = 10,
    warm_up: Annotated[int, typer.Option(min=0, help="Repetitions before that.")] = 1,
    model: cli.Model = None,
    deadline: cli.Deadline = None,
    as_json: cli.Json = False,
) -> None:
    """Time of every stage from files to report, on this machine."""
    with _open_pipeline(cloud, serve, model, deadline) as (pipeline, folder):
        rounds = cli.each(range(warm_up + repeat), "readings")
        read = latency.repeat_study(pipeline, study, folder, rounds)[warm_up:]
    result = latency.as_dict(study, read)
    title = f"{study}, {repeat} readings; {result['cpu']}, {result['cores']} cores"
    cli.show(result, as_json, times_table(result["stages"], title))


@contextmanager
def _open_pipeline(
    cloud: str | None,
    serve: bool,
    model: str | None,
    deadline_s: float | None,
    out: Path | None = None,
) -> Iterator[tuple[Pipeline, Path]]:
    """Yield the pipeline, and the folder ``out`` or a temporary one."""
    if serve and cloud is not None:
        raise typer.BadParameter("--serve starts a cloud: omit --cloud")
    with ExitStack() as parts:
        address = parts.enter_context(cloud_service()) if serve else cloud
        settings = load_settings(cloud=address, screening_model=model, deadline_s=deadline_s)
        pipeline = parts.enter_context(open_pipeline(settings))
        spare = parts.enter_context(tempfile.TemporaryDirectory(prefix="overread-eval-"))
        yield pipeline, out or Path(spare)


def _show_results(
    results: Sequence[reports.ReportScores], as_json: bool, seed: int, caveat: str
) -> None:
    result = reports.as_dict(results, seed=seed) | {"caveat": caveat}
    tables = [reports.studies_table(result["per_study"]), times_table(result["stages"])]
    if result["studies_with_truth"]:
        tables.append(reports.rates_table(result))
    cli.show(result, as_json, *tables, caveat)
