"""`overread-models`: train, export, fit and list the models. Only ``list`` works without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from models.compression.guarantee import ALPHA, DELTA
from models.compression.prune_command import prune
from models.listing import list_models
from models.runtime.errors import ModelError
from models.training.distil_command import distil
from models.training.teacher_command import train_teacher

TRAIN_EXTRA = {"torch", "tomli_w", "onnxscript", "matplotlib", "scipy"}
"""Modules that only the extra `train` installs."""

app = typer.Typer(help="Train, export and list Overread's models.", no_args_is_help=True)
train = typer.Typer(help="Train a network; --resume goes on after a kill.", no_args_is_help=True)
app.add_typer(train, name="train")
app.add_typer(prune, name="prune")
app.add_typer(distil, name="distil")
app.command("list")(list_models)
train.command("teacher")(train_teacher)

Data = Annotated[Path, typer.Option(help="Folder with nodules/ and ct/, as docs/models.md tells.")]
Out = Annotated[Path, typer.Option(help="Folder of the run: weights, checkpoint and log.")]
Minutes = Annotated[float, typer.Option(help="Time to spend training, resumptions included.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")]
Phantoms = Annotated[int, typer.Option(help="How many phantoms to learn from as well.")]
Seed = Annotated[int, typer.Option(help="Seed of weights and samples.")]
Start = Annotated[Path | None, typer.Option(help="Weights to begin with.")]
Rate = Annotated[float, typer.Option(help="Highest learning rate.")]
Cache = Annotated[Path, typer.Option(help="Where the phantoms are kept.")]


@train.command("screening")
def train_screening(
    data: Data,
    out: Out = Path("runs/screening"),
    minutes: Minutes = 50,
    resume: Resume = False,
    start: Start = None,
    rate: Rate = 3e-3,
    phantoms: Phantoms = 16,
    cache: Cache = Path("runs/phantoms"),
    seed: Seed = 0,
    blocks: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Residual blocks at 1/4, 1/8 and 1/16; by default those of --start."),
    ] = None,
) -> None:
    """The screening network, from nothing or from weights given."""
    from models.training.runs import Run, run_screening

    run_screening(Run(data, out, minutes, rate, resume, start, cache, phantoms, seed), blocks)


@train.command("hybrid")
def train_hybrid(
    data: Data,
    screening: Annotated[
        list[Path], typer.Option(help="Weights of screening networks, the shipped one last.")
    ],
    out: Out = Path("runs/hybrid"),
    minutes: Minutes = 40,
    resume: Resume = False,
    start: Start = None,
    rate: Rate = 1e-3,
    phantoms: Phantoms = 16,
    cache: Cache = Path("runs/phantoms"),
    seed: Seed = 0,
) -> None:
    """The hybrid network, on the screening networks' candidates, from the last one's stem."""
    from models.training.runs import Run, run_hybrid

    run_hybrid(Run(data, out, minutes, rate, resume, start, cache, phantoms, seed), screening)


@app.command("export")
def export(
    kind: Annotated[str, typer.Argument(help="screening or hybrid")],
    data: Data,
    weights: Annotated[Path, typer.Option(help="averaged.pt of a run.")],
    method: Annotated[str, typer.Option(help="minmax, percentile or entropy.")] = "minmax",
) -> None:
    """Export trained weights as FP32 and INT8 artifacts and enter both in the manifest."""
    from models.compression.runs import run_export

    run_export(kind, data, weights, method)


@app.command("qat")
def qat(
    kind: Annotated[str, typer.Argument(help="screening or hybrid")],
    data: Data,
    start: Annotated[Path, typer.Option(help="The float network's weights, those of `KIND-fp32`.")],
    screening: Annotated[
        list[Path] | None, typer.Option(help="For a hybrid: weights as `train hybrid` takes them.")
    ] = None,
    method: Annotated[str, typer.Option(help="First ranges: minmax, percentile, entropy.")] = (
        "minmax"
    ),
    out: Out = Path("runs/qat"),
    minutes: Minutes = 20,
    resume: Resume = False,
    rate: Rate = 2e-4,
    phantoms: Phantoms = 16,
    cache: Cache = Path("runs/phantoms"),
    seed: Seed = 0,
) -> None:
    """Quantisation-aware training: `KIND-int8` anew, answering as the float network does."""
    from models.compression.low_runs import run_qat
    from models.training.runs import Run

    run = Run(data, out, minutes, rate, resume, start, cache, phantoms, seed)
    run_qat(run, kind, screening or [], method)


@app.command("int4")
def int4(
    kind: Annotated[str, typer.Argument(help="screening or hybrid")],
    data: Data,
    start: Annotated[Path, typer.Option(help="The float network's weights.")],
    qat: Annotated[Path, typer.Option(help="averaged.pt of the run that made `KIND-int8`.")],
    share: Annotated[float, typer.Option(help="Largest file, as a share of FP32's.")] = 1 / 6,
    out: Out = Path("runs/int4"),
    minutes: Minutes = 12,
    resume: Resume = False,
    rate: Rate = 2e-4,
    phantoms: Phantoms = 16,
    cache: Cache = Path("runs/phantoms"),
    seed: Seed = 0,
) -> None:
    """From INT8 to INT4, the layers that mind least first, until the file is small enough."""
    from models.compression.low_runs import run_int4
    from models.training.runs import Run

    run = Run(data, out, minutes, rate, resume, start, cache, phantoms, seed)
    run_int4(run, kind, qat, share)


@app.command("ranges")
def ranges(
    kind: Annotated[str, typer.Argument(help="screening or hybrid")],
    data: Data,
    start: Annotated[Path, typer.Option(help="The float network's weights.")],
    qat: Annotated[
        Path | None, typer.Option(help="averaged.pt of the run that made `KIND-int8`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """How far INT8 is from float on validation: min-max, percentile, entropy, learnt ranges."""
    from models.compression.layer_report import show_ranges
    from models.compression.low_runs import run_ranges

    show_ranges(run_ranges(kind, data, start, qat), as_json)


@app.command("sensitivity")
def sensitivity(
    kind: Annotated[str, typer.Argument(help="screening or hybrid")],
    data: Data,
    start: Annotated[Path, typer.Option(help="The float network's weights.")],
    qat: Annotated[Path, typer.Option(help="averaged.pt of the run that made `KIND-int8`.")],
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """How much each layer minds being rounded to INT8 and to INT4."""
    from models.compression.layer_report import show_layers
    from models.compression.low_runs import run_sensitivity

    show_layers(run_sensitivity(kind, data, start, qat), plot, as_json)


@app.command("fit")
def fit(
    data: Data,
    screening: Annotated[str, typer.Option(help="The edge's artifact.")] = "screening-int8",
    hybrid: Annotated[str, typer.Option(help="The cloud's artifact.")] = "hybrid-int8",
    alpha: Annotated[
        float, typer.Option(min=1e-6, max=0.999999, help="Share of nodules missed at most.")
    ] = ALPHA,
    delta: Annotated[
        float, typer.Option(min=1e-6, max=0.999999, help="Chance that more are missed.")
    ] = DELTA,
) -> None:
    """Fit calibration, merger and thresholds on validation cases; write them to the manifest.

    With them goes what they promise of missed nodules: what is asked for where enough patients
    allow it, with lower thresholds if need be, and else what the fitted ones do promise.
    """
    from models.compression.promise import Asked
    from models.compression.runs import run_fit

    run_fit(data, screening, hybrid, Asked(alpha, delta))


@app.command("split")
def split(
    name: Annotated[str, typer.Argument(help="A hybrid artifact.")],
    parts: Annotated[int, typer.Option(min=2, help="How many; the cloud's setting stages.")] = 3,
) -> None:
    """Cut an artifact into parts of about equal time that the cloud runs as a pipeline."""
    from models.compression.parts import export_parts

    export_parts(name, parts)


def main() -> None:
    """The command ``overread-models``; what cannot be done ends with a line that says why."""
    try:
        app()
    except (ModelError, OSError) as error:
        _end(f"{type(error).__name__}: {error}", error)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAIN_EXTRA:
            raise
        _end(f"{error.name} is missing: needs the extra `train`: pip install '.[train]'", error)


def _end(line: str, cause: Exception) -> NoReturn:
    typer.echo(line, err=True)
    raise SystemExit(1) from cause


if __name__ == "__main__":
    main()
