"""The commands of `overread-models` that make artifacts; most need torch."""

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from models.markdown import show_section
from models.runtime.artifacts import WEIGHTS
from process.command_line import Json, PlainGroup

Kind = Annotated[Literal["screening", "hybrid"], typer.Argument(help="Kind of network.")]
Method = Annotated[
    Literal["minmax", "percentile"], typer.Option(help="Method for the initial INT8 ranges.")
]

Data = Annotated[
    Path, typer.Option(help="Folder with nodules/, ct/ and lidc/, as described in docs/models.md.")
]
Screeners = Annotated[
    list[Path],
    typer.Option(
        help="Weights of screening networks (averaged.pt or .onnx), the shipped one last."
    ),
]

Out = Annotated[Path, typer.Option(help="Folder of the run: weights, checkpoint and log.")]
RunsOut = Annotated[Path, typer.Option(help="Folder of the runs; finished ones are kept.")]
Steps = Annotated[int, typer.Option(min=1, help="Training steps, those before --resume included.")]
Rate = Annotated[float, typer.Option(min=1e-9, max=1.0, help="Highest learning rate.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continuation of the last checkpoint.")]
_START = typer.Option("--start", help="Initial weights: averaged.pt of a run or KIND-fp32.onnx.")
_STARTS = typer.Option(
    "--start",
    help="Float weights: averaged.pt of a run or KIND-fp32.onnx; the members of several files are "
    "joined to a hybrid.",
)
Start = Annotated[Path, _START]
Starts = Annotated[list[Path], _STARTS]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights and samples.")]


def _png(path: Path | None) -> Path | None:
    """Check before the work that a picture can be written there."""
    if path is not None and (path.suffix.lower() != ".png" or path.is_dir()):
        raise typer.BadParameter(f"{path}, expected the name of a file that ends with .png")
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"{path}: {path.parent} is no folder")
    return path


Plot = Annotated[Path | None, typer.Option(metavar="PNG", callback=_png, help="PNG file to write.")]


def _scales(reads: list[int] | None) -> list[int] | None:
    """Check the scales of members: the network halves them three times."""
    if reads and (len({*reads}) < len(reads) or any(mm % 8 or not 16 <= mm <= 48 for mm in reads)):
        raise typer.BadParameter(f"{reads}, expected different multiples of 8 from 16 to 48")
    return reads


app = typer.Typer(cls=PlainGroup)
train = typer.Typer(
    help="Train a network; --resume continues an interrupted run.", no_args_is_help=True
)
prune = typer.Typer(help="Prune the screening network.", no_args_is_help=True)
app.add_typer(train, name="train")
app.add_typer(prune, name="prune")


@train.command("screening")
def train_screening(
    data: Data,
    out: Out = Path("runs/screening"),
    steps: Steps = 60000,
    resume: Resume = False,
    start: Annotated[Path | None, _START] = None,
    rate: Rate = 3e-3,
    seed: Seed = 0,
    widths: Annotated[
        tuple[int, int, int, int],
        typer.Option(min=1, help="Channels at 1/2, 1/4, 1/8 and 1/16 of a new network."),
    ] = (16, 32, 64, 128),
    blocks: Annotated[
        tuple[int, int, int],
        typer.Option(min=0, help="Residual blocks at 1/4, 1/8 and 1/16 of a new network."),
    ] = (1, 3, 4),
) -> None:
    """Train the screening network, from random weights or from --start with its size."""
    from models.networks.screening import ScreeningSpec
    from models.training.runs import Run, run_screening

    weights = (start,) if start else ()
    run = Run(data, out, rate, weights, seed, steps, resume)
    run_screening(run, None if start else ScreeningSpec(widths, blocks))


@train.command("hybrid")
def train_hybrid(
    data: Data,
    screening: Screeners,
    out: Out = Path("runs/hybrid"),
    steps: Steps = 12000,
    resume: Resume = False,
    start: Annotated[list[Path] | None, _STARTS] = None,
    rate: Rate = 1e-3,
    seed: Seed = 0,
    reads: Annotated[
        list[int] | None,
        typer.Option(
            callback=_scales,
            help="Scale of a member in mm; may be repeated. Default: 24, 32 and 48, or those of "
            "--start.",
        ),
    ] = None,
) -> None:
    """Train the hybrid network, or a member of it, on screening networks' candidates."""
    from models.training.runs import Run, run_hybrid

    run = Run(data, out, rate, tuple(start or ()), seed, steps, resume)
    run_hybrid(run, screening, reads or ())


@train.command("sheet")
def sheet(
    data: Data,
    png: Annotated[Path, typer.Argument(callback=_png, help="PNG file to write.")],
    columns: Annotated[int, typer.Option(min=1, help="Samples of each composition.")] = 6,
    seed: Seed = 0,
) -> None:
    """Draw training samples of the screening network: mosaics and scans."""
    from models.training.compose import draw_samples
    from models.training.runs import Run

    composer = Run(data, png, 0, ()).material().composer
    draw_samples(png, composer, columns, seed)
    typer.echo(png)


@train.command("curve")
def curve(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs with a log.jsonl.")],
    figure: Annotated[str, typer.Option(help="Figure of the logs.")] = "cpm",
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Show a figure on validation after each round of runs, and what the last rounds gained."""
    from models.training.curve import curve_table, draw_curve, learning_curve

    found = learning_curve(runs, figure)
    if plot is not None:
        draw_curve(found, plot)
    show_section(found, as_json, curve_table(found))


@app.command("export")
def export(
    kind: Kind,
    data: Data,
    weights: Annotated[
        list[Path], typer.Option(help="averaged.pt of a run; repeat to join members of a hybrid.")
    ],
    method: Method = "minmax",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="NAME-fp32 and NAME-int8; it begins with KIND.")
    ] = "",
) -> None:
    """Export trained weights as FP32 and INT8 artifacts and enter both in the manifest."""
    from models.quantization.ptq import run_export

    if name and (name.split("-")[0] != kind or not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name)):
        raise typer.BadParameter(f"{name!r}: expected {kind}-, then a-z, 0-9 and hyphens")
    run_export(kind, data, weights, method, name or kind)


@app.command()
def distil(
    data: Data,
    screening: Screeners,
    teachers: Annotated[
        list[Path],
        typer.Option(help="averaged.pt or hybrid-fp32.onnx of a teacher; repeat for each."),
    ],
    out: RunsOut = Path("runs/distil"),
    start: Annotated[list[Path] | None, _STARTS] = None,
    reads: Annotated[
        list[int] | None,
        typer.Option(callback=_scales, help="Scale of a student's member in mm; default: 48."),
    ] = None,
    blocks: Annotated[
        tuple[int, int, int],
        typer.Option(help="Residual blocks at 1/2, 1/4 and 1/8; of a start with more, the first."),
    ] = (2, 3, 3),
    encoder: Annotated[
        tuple[int, int],
        typer.Option(
            help="Channels and layers of the encoder; of a start with more, layers at equal "
            "distances, the last among them."
        ),
    ] = (192, 4),
    regions: Annotated[
        Path, typer.Option(help="Folder of the regions and of the teachers' answers.")
    ] = Path("runs/regions"),
    count: Annotated[int, typer.Option(min=1, help="Regions to learn from.")] = 20000,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each student.")] = 500,
    seeds: Annotated[int, typer.Option(min=1, help="Students of each arm.")] = 3,
    arm: Annotated[
        Literal["none", "single", "mean", "dynamic"] | None,
        typer.Option(help="Soft target of the only students; default: each of the four."),
    ] = None,
    rate: Rate = 1e-3,
    as_json: Json = False,
) -> None:
    """Distil hybrids into a small one, the second reader; an interrupted comparison continues.

    Students of no teacher, the best one, the mean of all, and dynamic weights are compared; one
    --arm with many --steps makes the one that is exported.
    """
    from models.distillation.compare import ARMS, Comparison, distil_tables
    from models.networks.hybrid import HybridSpec

    if encoder[0] < 32 or encoder[0] % 32 or encoder[1] < 1:
        raise typer.BadParameter(
            f"--encoder {encoder[0]} {encoder[1]}, expected a multiple of 32, and a layer or more"
        )
    given = Comparison(
        data, out, rate, tuple(start or ()), steps=steps,
        screening=tuple(screening), teachers=tuple(teachers), regions=regions, count=count,
        arms=(arm,) if arm else tuple(ARMS), seeds=seeds,
        spec=HybridSpec(
            reads=tuple(reads or (48,)), blocks=blocks, channels=encoder[0], depth=encoder[1]
        ),
    )  # fmt: skip
    result = given.compare()
    show_section(result, as_json, distil_tables(result))


Qat = Annotated[
    Path | None,
    typer.Option(help="averaged.pt of the INT8 training; default: the artifact `KIND-int8`."),
]
HybridScreeners = Annotated[
    list[Path] | None, typer.Option(help="For a hybrid: weights as for `train hybrid`.")
]


@app.command()
def qat(
    kind: Kind,
    data: Data,
    start: Starts,
    screening: HybridScreeners = None,
    method: Method = "minmax",
    out: Out = Path("runs/qat"),
    steps: Steps = 1000,
    resume: Resume = False,
    rate: Rate = 2e-4,
    seed: Seed = 0,
) -> None:
    """Make `KIND-int8` by quantisation-aware training, to answer as the float network."""
    from models.quantization.qat import run_qat
    from models.training.runs import Run

    run = Run(data, out, rate, tuple(start), seed, steps, resume)
    run_qat(run, kind, screening or [], method)


@app.command()
def int4(
    kind: Kind,
    data: Data,
    start: Starts,
    qat: Qat = None,
    screening: HybridScreeners = None,
    share: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help="Largest file size, as a fraction of the FP32 file."),
    ] = 1 / 6,
    out: Out = Path("runs/int4"),
    steps: Annotated[int, typer.Option(min=3, help="Training steps of the three stages.")] = 600,
    resume: Resume = False,
    rate: Rate = 2e-4,
    seed: Seed = 0,
) -> None:
    """Make `KIND-int4`: lower the least sensitive INT8 layers until the file meets --share."""
    from models.quantization.qat import run_int4
    from models.training.runs import Run

    run = Run(data, out, rate, tuple(start), seed, steps, resume)
    run_int4(run, kind, qat, screening or [], share)


@app.command()
def ranges(kind: Kind, data: Data, start: Starts, qat: Qat = None, as_json: Json = False) -> None:
    """Measure INT8 against float on validation: min-max, percentile, and the registered file."""
    from models.quantization.sensitivity import run_ranges, show_ranges

    show_ranges(run_ranges(kind, data, start, qat), as_json)


@app.command()
def sensitivity(
    kind: Kind, data: Data, start: Starts, qat: Qat = None, plot: Plot = None, as_json: Json = False
) -> None:
    """Measure each layer's sensitivity to INT8 and to INT4."""
    from models.quantization.sensitivity import run_sensitivity, show_layers

    show_layers(run_sensitivity(kind, data, start, qat), plot, as_json)


FineTuning = Annotated[int, typer.Option(min=1, help="Steps of fine-tuning of each run.")]
PruneSeed = Annotated[int, typer.Option(min=0, help="Seed of samples and of random masks.")]
_SHARE = typer.Option(
    min=1e-6,
    max=0.999999,
    help="Share of the parameters to prune; `compare`: default 0.2, 0.42, 0.6 and 0.8.",
)


@prune.command("compare")
def prune_compare(
    start: Start,
    data: Data,
    out: RunsOut,
    steps: FineTuning = 100,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method and share.")] = 3,
    way: Annotated[
        list[str] | None, typer.Option(help="weights, channels or dynamic; default: all three.")
    ] = None,
    share: Annotated[list[float] | None, _SHARE] = None,
    rate: Rate = 1e-4,
    engine: Annotated[str, typer.Option(help="Engine to time.")] = "openvino",
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each network.")] = 10,
    as_json: Json = False,
) -> None:
    """Compare pruning methods and shares with a control; an interrupted comparison continues."""
    from models.pruning.compare import CONTROL, METHODS, Cell, prune_table, run_compare
    from models.training.runs import Run

    known = [name for name in METHODS if name != CONTROL]
    if unknown := set(way or ()) - set(known):
        raise typer.BadParameter(f"--way {sorted(unknown)}, expected one of {sorted(known)}")
    run = Run(data, out, rate, (start,))
    cells = [Cell(method, one) for method in way or known for one in share or (0.2, 0.42, 0.6, 0.8)]
    result = run_compare(run, cells, steps=steps, seeds=seeds, engine=engine, rounds=rounds)
    show_section(result, as_json, prune_table(result))


@prune.command("structured")
def structured(
    start: Start,
    data: Data,
    out: Out,
    share: Annotated[float, _SHARE] = 0.42,
    steps: FineTuning = 100,
    rate: Rate = 1e-4,
    seed: PruneSeed = 0,
    as_json: Json = False,
) -> None:
    """Remove whole channels and fine-tune; train and export accept the weights as any others."""
    from models.pruning.compare import run_structured
    from models.training.runs import Run

    run = Run(data, out, rate, (start,), seed)
    result = run_structured(run, share, steps)
    show_section(result, as_json, json.dumps(result, indent=2))


@app.command("fit")
def fit(
    data: Data,
    screening: Annotated[str, typer.Option(help="Screening artifact.")] = "screening-int8",
    hybrid: Annotated[str, typer.Option(help="Hybrid artifact.")] = "hybrid-int8",
    delta: Annotated[
        float, typer.Option(min=1e-6, max=0.999999, help="Probability that more are missed.")
    ] = 0.1,
    keep_hybrid: Annotated[
        bool, typer.Option("--keep-hybrid", help="Leave the settings of --hybrid.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--models", metavar="DIR", help="Folder with manifest.toml; default: the package's."
        ),
    ] = None,
) -> None:
    """Fit probabilities and thresholds on whole scans; write them to the manifest.

    The guarantee on missed nodules is that of nodules of other patients in whole scans.
    """
    from models.calibration.guarantee import run_fit

    run_fit(data, screening, hybrid, folder or WEIGHTS, delta=delta, keep_hybrid=keep_hybrid)
