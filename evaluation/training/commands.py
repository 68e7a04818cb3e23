"""The commands of ``overread-eval`` that compare ways to make networks.

Pruning and distillation train for hours. What is finished is kept below ``--out``, so one that was
interrupted continues. Torch is imported when a command runs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from evaluation import markdown
from evaluation.markdown import Rows
from evaluation.run import POINTS, SHARE, Result, Table, command
from evaluation.training.curve import learning_curve
from models.runtime.artifacts import WEIGHTS

Data = Annotated[
    Path, typer.Option(help="Folder with nodules/, ct/ and lidc/, as described in docs/models.md.")
]
SCREENING = WEIGHTS / "screening-fp32.onnx"


@command(
    Table("runs", {
        "what": "what goes", "gone": ("parameters gone", SHARE),
        "before.cpm": ("CPM before fine-tuning", "{:.3f}"), "before.lost": "points lost",
        "after.cpm": ("CPM after", "{:.3f}"), "after.lost": "points lost",
        "gmac": ("GMAC", "{:.1f}"), "int8_ms": ("INT8 ms", "{:.0f}"),
        "int8_ratio": ("to control", "{:.2f}"), "fp32_ms": ("FP32 ms", "{:.0f}"),
        "fp32_ratio": ("to control", "{:.2f}"),
    }, lambda result: [
        {**run, **{when: {**run[when], "lost": markdown.points(run[when]["cpm_lost"])}
                   for when in ("before", "after")}}
        for run in result["runs"]
    ]),
)  # fmt: skip
def pruning(
    data: Data,
    start: Annotated[Path, typer.Option(help="Weights of the screening network.")] = SCREENING,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/prune"),
) -> dict[str, Any]:
    """What pruning costs: single weights and whole channels, against a control."""
    from evaluation.training.pruning import compare
    from models.training.runs import Run

    return compare(Run(data, out, 1e-4, (start,), steps=80))


@command(
    Table("networks", {
        "name": "network", "gmac": ("GMAC", "{:.2f}"),
        "alone": ("alone", POINTS), "alone_sd": ("sd", POINTS),
        "both": ("with the edge", POINTS), "both_sd": ("sd", POINTS),
        "temperature": ("temperature", "{:.2f}"), "log_loss": ("log loss", "{:.2f}"),
        "weight": ("weight", "{:.2f}"),
    }, lambda result: [
        {**row, "gmac": row["multiply_adds"] / 1e9} for row in result["networks"]
    ]),
    Table("gained", {
        "student": "student", "over": "over", "alone": "alone", "both": "with the edge"
    }, lambda result: [
        {**row, **{view: markdown.points(row[view]) for view in ("alone", "both")}}
        for row in result["gained"]
    ], "Points of CPM gained (95 % interval)"),
)  # fmt: skip
def distillation(
    data: Data,
    teachers: Annotated[list[Path], typer.Option(help="Weights of a teacher; repeat for each.")],
    start: Annotated[list[Path], typer.Option(help="Weights that students begin with.")],
    out: Annotated[Path, typer.Option(help="Folder of the students.")] = Path("runs/students"),
) -> dict[str, Any]:
    """What teachers add to the second reader: none, the best one, the mean, dynamic weights."""
    from evaluation.training.distillation import compare
    from models.distillation.distil import lessons_of
    from models.training.runs import Run

    run = Run(data, out, 5e-5, tuple(start), steps=200)
    return compare(run, lambda: lessons_of(run, [SCREENING], teachers))


def _ranges(result: Result) -> Iterator[Rows]:
    """Yield the table of ranges, whose terms are those of the network's loss."""
    heads = list(result["ranges"][0])
    cells = [[row["ranges"], *(f"{row[key]:.4f}" for key in heads[1:])] for row in result["ranges"]]
    yield Rows(heads, cells, "INT8 beside float on validation; lower is better")


@command(
    _ranges,
    Table("layers", {
        "layer": "layer", "parameters": ("parameters", "{:,}"), "exact": ("exact", "{:.4f}"),
        "int8": ("INT8", "{:.4f}"), "int4": ("INT4", "{:.4f}"),
    }, title="One layer changed at a time"),
)  # fmt: skip
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
) -> dict[str, Any]:
    """How far INT8 is from float for each method to find ranges, and INT8 and INT4 by layer."""
    from evaluation.training.quantization import layers, ranges
    from models.training.runs import make_network

    network = make_network(kind, start or [WEIGHTS / f"{kind}-fp32.onnx"]).eval()
    found = ranges(network, kind, data, qat)
    return {"ranges": found, "layers": layers(network, kind, data, qat)}


@command(
    Table("rounds", {
        "run": "run", "steps": "steps", "core_hours": ("core-hours", "{:.2f}"),
        "value": ("figure", "{:.3f}"), "gain": ("gain of the last quarter", "{:.3f}"),
        "sd": ("sd", "{:.3f}"),
    }, title="{figure} on validation"),
)  # fmt: skip
def curve(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs with a log.jsonl.")],
    figure: Annotated[str, typer.Option(help="Figure of the logs.")] = "cpm",
) -> dict[str, Any]:
    """A figure on validation after rounds of training, and what the last rounds gained."""
    return {
        "figure": figure,
        "rounds": [row for run in runs for row in learning_curve(run, figure)],
    }
