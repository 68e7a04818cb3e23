"""``overread-eval``: every figure that the project claims, each by one command.

The result goes to stdout, as a table or as JSON; progress and remarks go to stderr.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich.console import Console, RenderableType

from cloud.errors import CloudError
from edge.assemble import open_line
from edge.errors import EdgeError
from edge.pipeline import Line
from edge.settings import load_settings
from evaluation import detect as detection
from evaluation import findings, latency, network, nodules, phantoms, tables
from evaluation.bands import by_band, read_traits
from evaluation.bands_text import bands_table
from evaluation.bootstrap import RESAMPLES, Figures, figures
from evaluation.calibration_command import calibration_command
from evaluation.candidates import challenge
from evaluation.cost import cost_command
from evaluation.cubes import read_cubes
from evaluation.dead_cloud_command import dead_cloud_command
from evaluation.detection_command import detection_command
from evaluation.errors import EvaluationError
from evaluation.froc import RATES, Scored, froc
from evaluation.guarantee_command import guarantee_command
from evaluation.kinds_command import kinds_command
from evaluation.link_command import link_command
from evaluation.load_command import load_command
from evaluation.memory_command import memory_command
from evaluation.open_readers import Stage, open_reads
from evaluation.plot import save_curve
from evaluation.policies_command import policies_command
from evaluation.progress import counting, each
from evaluation.scans_command import scans_command
from evaluation.service import cloud_service
from evaluation.sizes_command import sizes_command
from evaluation.truth import read_truth, scan_folders, scan_name
from imaging.errors import StudyError
from imaging.phantom import TRAINING_SEED, PhantomSpec
from models.runtime.errors import ModelError

app = typer.Typer(
    help="Measures Overread: every claim by one command. Not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Csv = Annotated[Path, typer.Option(metavar="CSV", exists=True, dir_okay=False)]
Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap, and of the phantoms.")]
Model = Annotated[str | None, typer.Option(help="Screening model; the edge's own by default.")]
CloudModel = Annotated[str | None, typer.Option(help="Second reader; the cloud's by default.")]
Cloud = Annotated[str | None, typer.Option(metavar="HOST:PORT|off", help="Who reads again.")]
Serve = Annotated[bool, typer.Option("--serve", help="Start a cloud on loopback for the run.")]
Deadline = Annotated[float | None, typer.Option(metavar="SECONDS", help="Of each study.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the reports here.")]


@app.command("froc")
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
    value = _figures(found.scored, resamples, seed)
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
    _print(
        result,
        as_json,
        tables.froc_table(value, f"FROC on {found.scored.scans} scans"),
        tables.counts_table(found.counts),
    )


@app.command("nodules")
def nodules_command(
    data: Annotated[Path, typer.Option(metavar="DIR", help="NAME.npz and index.csv.")],
    split: Annotated[str, typer.Option(metavar="NAME[,NAME]", help="Which cubes.")],
    scans: Annotated[list[Path], typer.Option(metavar="DIR", help="Whole scans; DIR DIR ...")],
    truth: Csv,
    more_scans: Annotated[list[Path] | None, typer.Argument(metavar="[DIR]...")] = None,
    stage: Annotated[Stage, typer.Option(help="The edge alone, or edge and cloud.")] = Stage.EDGE,
    model: Model = None,
    cloud_model: CloudModel = None,
    surround: Annotated[
        int, typer.Option(min=0, help="Mirror cubes into boxes of this side; 0: as they are.")
    ] = 0,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the curve.")] = None,
    resamples: Resamples = RESAMPLES,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Sensitivity on cubes of nodules against false positives on whole scans."""
    known = read_truth(truth)
    folders = scan_folders([*scans, *(more_scans or [])], set(known))
    _remark_unknown(folders, known)
    cubes = read_cubes(data, tuple(split.split(",")))
    reads = open_reads(stage, model, cloud_model)
    with_truth = [(folder, known.get(scan_name(folder), ())) for folder in folders]
    read = nodules.read_all(each(cubes, "nodules"), each(with_truth, "scans"), reads, surround)
    value = _figures(read.scored, resamples, seed)
    bands = by_band(read.scored, read_traits(data, cubes), resamples=resamples, seed=seed)
    asked = {"stage": stage.value, "split": split, "surround": surround}
    result = {**asked, **nodules.as_json(read, value, bands)}
    if plot is not None:
        title = f"{stage.value}: {len(cubes)} nodules, {len(folders)} scans"
        save_curve(plot, froc(read.scored), title)
    _print(
        result,
        as_json,
        tables.froc_table(value, f"{len(cubes)} nodules, {len(folders)} scans, {stage.value}"),
        tables.cost_table(value),
        bands_table(bands, f"Sensitivity in % by band, {stage.value}"),
        tables.scans_table(result["scans"]),
        nodules.CAVEAT,
    )


@app.command("detect")
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
    folders = detection.study_folders(studies)
    _remark_unknown(folders, known)
    with _open_line(cloud, serve, model, deadline) as line, _folder(out) as reports:
        results = detection.detect(line, each(folders, "studies"), known, reports)
    _print_results(results, as_json, seed, nodules.CAVEAT)


@app.command("phantoms")
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
    _print_results(results, as_json, seed, phantoms.CAVEAT)


@app.command("latency")
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
    result = latency.as_json(machine, study, reports)
    title = f"{study}, {repeat} readings; {machine.cpu}, {machine.cores} cores"
    _print(result, as_json, tables.times_table(result["stages"], title))


@app.command("network")
def network_command(
    model: Annotated[
        list[str] | None, typer.Option(help="Artifact, or ARTIFACT:stored; several.")
    ] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engine; give several.")] = None,
    shape: Annotated[str, typer.Option(help="Lung box z,y,x for screening.")] = "256,224,320",
    batch: Annotated[int, typer.Option(min=1, help="Boxes or regions a pass.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="0: every core.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 20,
    as_json: Json = False,
) -> None:
    """Time of one pass of artifacts on engines, in turn, on this machine."""
    box = _box_shape(shape)
    entered = network.enter(model or ["screening-int8"], engine or ["auto"], threads)
    network.run_in_turn(entered, box, each(range(repeat), "rounds"), batch=batch)
    result = network.as_json(entered, box, batch)
    title = f"{batch} x {shape} voxels, {result['threads']} threads of {result['cpu']}"
    _print(result, as_json, tables.passes_table(result["passes"], title))


app.command("dead-cloud")(dead_cloud_command)
app.command("calibration")(calibration_command)
app.command("cost")(cost_command)
app.command("detection")(detection_command)
app.command("guarantee")(guarantee_command)
app.command("kinds")(kinds_command)
app.command("link")(link_command)
app.command("load")(load_command)
app.command("memory")(memory_command)
app.command("policies")(policies_command)
app.command("scans")(scans_command)

app.command("sizes")(sizes_command)


def main() -> None:
    """The command ``overread-eval``; what cannot be evaluated ends with a line that says why."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    try:
        app()
    except (EvaluationError, StudyError, EdgeError, CloudError, ModelError, OSError) as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise SystemExit(1) from error


@contextmanager
def _open_line(
    cloud: str | None, serve: bool, model: str | None, deadline_s: float | None
) -> Iterator[Line]:
    if serve and cloud is not None:
        raise typer.BadParameter("--serve starts a cloud of its own: leave --cloud out")
    with ExitStack() as parts:
        address = parts.enter_context(cloud_service()) if serve else cloud
        settings = load_settings(cloud=address, screening_model=model, deadline_s=deadline_s)
        yield parts.enter_context(open_line(settings))


def _box_shape(text: str) -> tuple[int, int, int]:
    sides = [side.strip() for side in text.split(",")]
    if len(sides) != 3 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"--shape {text!r} is not z,y,x in voxels, such as 256,224,320")
    z, y, x = map(int, sides)
    return z, y, x


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="overread-eval-") as folder:
        yield Path(folder)


def _figures(scored: Scored, resamples: int, seed: int) -> Figures:
    with counting("bootstrap") as step:
        return figures(scored, resamples=resamples, seed=seed, on_step=step)


def _remark_unknown(folders: Sequence[Path], known: dict[str, Any]) -> None:
    for folder in folders:
        if scan_name(folder) not in known:
            typer.echo(f"{folder}: the truth does not name it", err=True)


def _print_results(
    results: Sequence[findings.StudyResult], as_json: bool, seed: int, caveat: str
) -> None:
    known = any(result.scores is not None for result in results)
    point = findings.operating_point(results, seed=seed) if known else None
    result = findings.as_json(results, point) | {"caveat": caveat}
    shown = [tables.studies_table(result["per_study"]), tables.times_table(result["stages"])]
    summary = [tables.rates_table(point)] if point is not None else []
    _print(result, as_json, *shown, *summary, caveat)


def _print(result: dict[str, Any], as_json: bool, *shown: RenderableType) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        Console().print(*shown, sep="\n")


if __name__ == "__main__":
    main()
