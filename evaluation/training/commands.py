"""The commands of ``overread-eval`` that compare ways to make networks.

Pruning and distillation train for hours. What is finished is kept below ``--out``, so one that was
interrupted continues. Torch is imported when a command runs.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from evaluation import markdown
from evaluation.markdown import Rows
from evaluation.run import SHARE, Result, Table, command
from evaluation.training.curve import draw as draw_curve
from evaluation.training.curve import learning_curve, rows
from models.runtime.artifacts import WEIGHTS

Data = Annotated[
    Path, typer.Option(help="Folder with nodules/, ct/ and lidc/, as described in docs/models.md.")
]
Plot = Annotated[Path | None, typer.Option(metavar="PNG", help="File for the picture.")]

METHODS = {
    "control": "nothing",
    "weights": "single weights by importance",
    "channels": "whole channels",
    "dynamic": "dynamic sparse, from random masks",
}

ARMS = {
    "none": "no teacher",
    "single": "best single teacher",
    "mean": "fixed mean of all",
    "dynamic": "dynamic weights",
}


def _runs(result: Result) -> Iterator[dict[str, Any]]:
    """Yield the rows of a comparison of pruning, with losses in points."""
    for run in result["runs"]:
        lost = {when: markdown.points(run[when]["cpm_lost"]) for when in ("before", "after")}
        if run["way"] == "control":  # before fine-tuning it is the start that others lose against
            lost["before"] = "-"
        yield {**run, "what": METHODS[run["way"]], "lost": lost, "gmac": run["multiply_adds"] / 1e9}


@command(
    Table("runs", {
        "what": "what goes", "gone": ("parameters gone", SHARE),
        "before.cpm": ("CPM before fine-tuning", "{:.3f}"), "lost.before": "points lost",
        "after.cpm": ("CPM after", "{:.3f}"), "lost.after": "points lost",
        "gmac": ("GMAC", "{:.1f}"), "int8_ms": ("INT8 ms", "{:.0f}"),
        "int8_ratio": ("to control", "{:.2f}"), "fp32_ms": ("FP32 ms", "{:.0f}"),
        "fp32_ratio": ("to control", "{:.2f}"),
    }, _runs),
)  # fmt: skip
def pruning(
    data: Data,
    start: Annotated[Path, typer.Option(help="Weights of the screening network.")] = WEIGHTS
    / "screening-fp32.onnx",
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/prune"),
) -> dict[str, Any]:
    """What pruning costs: single weights, channels and dynamic masks, against a control."""
    from evaluation.training.pruning import compare
    from models.training.runs import Run

    return compare(Run(data, out, 1e-4, (start,), steps=80))


def _networks(result: Result) -> Iterator[dict[str, Any]]:
    """Yield the rows of teachers and students."""
    work = {"multiply_adds": result["multiply_adds"]}
    students = [
        {"name": f"student, {ARMS[arm]}", **work, "scores": of}
        for arm, of in result["arms"].items()
    ]
    for one in [
        *({**one, "name": f"teacher, {one['name']}"} for one in result["teachers"]),
        *students,
    ]:
        cpm = {
            view: f"{100 * of['mean']:.1f} ± {100 * of['sd']:.1f}"
            for view, of in one["scores"].items()
        }
        facts = {"temperature": None, "log_loss": None, "weight": None}
        yield {**facts, **one, **cpm, "gmac": one["multiply_adds"] / 1e9}


def _gained(result: Result) -> Iterator[Mapping[str, str]]:
    """Yield the points that each arm gains over another, or over a teacher."""
    for over, arms in result["gained"].items():
        for arm, of in arms.items():
            points = {view: markdown.points(one) for view, one in of.items()}
            yield {"student": f"{ARMS[arm]}, over {over}", **points}


@command(
    Table("networks", {
        "name": "network", "gmac": ("GMAC", "{:.2f}"), "alone": "alone", "both": "with the edge",
        "temperature": ("temperature", "{:.2f}"), "log_loss": ("log loss", "{:.2f}"),
        "weight": ("weight", "{:.2f}"),
    }, _networks),
    Table("gained", {"student": "student", "alone": "alone", "both": "with the edge"}, _gained,
          "Points of CPM gained (95 % interval)"),
)  # fmt: skip
def distillation(
    data: Data,
    out: Annotated[
        Path, typer.Option(help="Folder of the students; teachers and regions are beside it.")
    ] = Path("runs/students"),
) -> dict[str, Any]:
    """What teachers add to the second reader: none, the best one, the mean, dynamic weights."""
    from evaluation.training.distillation import compare, recorded

    return compare(recorded(data, out))


def _ranges(result: Result) -> Iterator[Rows]:
    """Yield the table of ranges, whose terms are those of the network's loss."""
    found = result["ranges"]
    heads = ["ranges from", *list(found[0])[1:]]
    cells = [[name, *(f"{term:.4f}" for term in terms)] for name, *terms in map(dict.values, found)]
    yield Rows(heads, cells, "INT8 beside float on validation; lower is better")


LAYERS = Table("layers", {
    "layer": "layer", "parameters": ("parameters", "{:,}"), "exact": ("exact", "{:.4f}"),
    "int8": ("INT8", "{:.4f}"), "int4": ("INT4", "{:.4f}"),
}, title="One layer changed at a time")  # fmt: skip


@command(_ranges, LAYERS)
def quantization(
    kind: Annotated[Literal["screening", "hybrid"], typer.Argument(help="Kind of network.")],
    data: Data,
    start: Annotated[
        list[Path] | None, typer.Option(help="Float weights; default: the artifact `KIND-fp32`.")
    ] = None,
    qat: Annotated[
        Path | None,
        typer.Option(help="averaged.pt of the INT8 training; default: the artifact `KIND-int8`."),
    ] = None,
    plot: Plot = None,
) -> dict[str, Any]:
    """How far INT8 is from float for each method to find ranges, and INT8 and INT4 by layer."""
    from evaluation.training import quantization as measured
    from models.training.runs import make_network

    network = make_network(kind, start or [WEIGHTS / f"{kind}-fp32.onnx"]).eval()
    ranges = measured.ranges(network, kind, data, qat)
    layers = measured.layers(network, kind, data, qat)
    if plot is not None:
        measured.draw(layers, plot)
    return {"ranges": ranges, "layers": layers}


@command(
    Table("rounds", {
        "run": "run", "steps": "steps", "core_hours": ("core-hours", "{:.2f}"),
        "value": ("figure", "{:.3f}"), "gain": "gain of the last quarter of the rounds",
    }, rows, "{figure} on validation"),
)  # fmt: skip
def curve(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs with a log.jsonl.")],
    figure: Annotated[str, typer.Option(help="Figure of the logs.")] = "cpm",
    plot: Plot = None,
) -> dict[str, Any]:
    """A figure on validation after each round of training, and what the last rounds gained."""
    found = [learning_curve(run, figure) for run in runs]
    if plot is not None:
        draw_curve(found, figure, plot)
    return {"figure": figure, "runs": found}
