"""The commands of `overread-models` that make artifacts; most need torch."""

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from models.runtime.artifacts import WEIGHTS
from process.command_line import PlainGroup

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


def _scales(reads: list[int] | None) -> list[int] | None:
    """Check the scales of members: the network halves them three times."""
    if reads and (len({*reads}) < len(reads) or any(mm % 8 or not 16 <= mm <= 48 for mm in reads)):
        raise typer.BadParameter(f"{reads}, expected different multiples of 8 from 16 to 48")
    return reads


app = typer.Typer(cls=PlainGroup)
train = typer.Typer(
    help="Train a network; --resume continues an interrupted run.", no_args_is_help=True
)
app.add_typer(train, name="train")


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
    teachers: Annotated[
        list[Path],
        typer.Option(help="averaged.pt or hybrid-fp32.onnx of a teacher; repeat for each."),
    ],
    screening: Screeners = [WEIGHTS / "screening-fp32.onnx"],  # noqa: B006 # typer copies it
    out: Out = Path("runs/distil"),
    start: Annotated[list[Path] | None, _STARTS] = None,
    steps: Steps = 200,
    resume: Resume = False,
    rate: Rate = 5e-5,
    seed: Seed = 0,
) -> None:
    """Distil hybrids into the second reader, of the size that ships, by dynamic weights.

    Regions and the teachers' answers are kept beside the folder of the run.
    """
    from models.distillation.distil import lessons_of, new_student, train_student
    from models.training.runs import Run

    run = Run(data, out, rate, tuple(start or ()), seed, steps, resume)
    student = new_student(run)
    train_student(run, student, lessons_of(run, screening, teachers))


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
def prune(
    start: Start,
    data: Data,
    out: Out,
    share: Annotated[
        float, typer.Option(min=1e-6, max=0.999999, help="Share of the parameters to prune.")
    ] = 0.42,
    steps: Annotated[int, typer.Option(min=1, help="Steps of fine-tuning.")] = 100,
    rate: Rate = 1e-4,
    seed: Seed = 0,
) -> None:
    """Remove whole channels and fine-tune; train and export accept the weights as any others."""
    from models.pruning.channels import run_pruned
    from models.training.runs import Run

    typer.echo(json.dumps(run_pruned(Run(data, out, rate, (start,), seed, steps), share), indent=2))


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
