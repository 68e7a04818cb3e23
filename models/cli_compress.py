"""``overread-models qat``, ``int4``, ``ranges`` and ``sensitivity``: what learns to be rounded.

``overread-models prune``: the ways to prune side by side, and the one that makes it faster.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from models.markdown import show_section
from models.options import (
    PHANTOMS,
    Cache,
    Data,
    Json,
    Kind,
    Method,
    Minutes,
    Out,
    Phantoms,
    Rate,
    Resume,
    Seed,
)

Start = Annotated[Path, typer.Option(help="KIND-fp32.onnx, or the averaged.pt behind it.")]
Qat = Annotated[
    Path | None,
    typer.Option(help="averaged.pt of the run that made `KIND-int8`; none: that file itself."),
]
Screeners = Annotated[
    list[Path] | None, typer.Option(help="For a hybrid: weights as `train hybrid` takes them.")
]


def qat(
    kind: Kind,
    data: Data,
    start: Start,
    screening: Screeners = None,
    method: Annotated[Method, typer.Option(help="How the first ranges are found.")] = "minmax",
    out: Out = Path("runs/qat"),
    minutes: Minutes = 20,
    resume: Resume = False,
    rate: Rate = 2e-4,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: Seed = 0,
) -> None:
    """Quantisation-aware training: `KIND-int8` anew, answering as the float network does."""
    from models.release import run_qat
    from models.training.runs import Run

    run = Run(data, out, minutes, rate, resume, start, cache, phantoms, seed)
    run_qat(run, kind, screening or [], method)


def int4(
    kind: Kind,
    data: Data,
    start: Start,
    qat: Qat = None,
    screening: Screeners = None,
    share: Annotated[float, typer.Option(help="Largest file, as a share of FP32's.")] = 1 / 6,
    out: Out = Path("runs/int4"),
    minutes: Minutes = 12,
    resume: Resume = False,
    rate: Rate = 2e-4,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: Seed = 0,
) -> None:
    """From INT8 to INT4, the layers that mind least first, until the file is small enough."""
    from models.release import run_int4
    from models.training.runs import Run

    run = Run(data, out, minutes, rate, resume, start, cache, phantoms, seed)
    run_int4(run, kind, qat, screening or [], share)


def ranges(kind: Kind, data: Data, start: Start, qat: Qat = None, as_json: Json = False) -> None:
    """How far INT8 is from float on validation: min-max, percentile, entropy, learnt ranges."""
    from models.quantization.sensitivity import show_ranges
    from models.release import run_ranges

    show_ranges(run_ranges(kind, data, start, qat), as_json)


def sensitivity(
    kind: Kind,
    data: Data,
    start: Start,
    qat: Qat = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the report.")] = None,
    as_json: Json = False,
) -> None:
    """How much each layer minds being rounded to INT8 and to INT4."""
    from models.quantization.sensitivity import show_layers
    from models.release import run_sensitivity

    show_layers(run_sensitivity(kind, data, start, qat), plot, as_json)


prune = typer.Typer(help="Prune the screening network.", no_args_is_help=True)

PruneStart = Annotated[Path, typer.Option(help="Weights to prune: averaged.pt or KIND-fp32.onnx.")]


FineTuning = Annotated[float, typer.Option(help="Fine-tuning of each run.")]


PruneSeed = Annotated[int, typer.Option(help="Seed of samples and of random masks.")]


@prune.command("compare")
def compare(
    start: PruneStart,
    data: Data,
    out: Annotated[Path, typer.Option(help="A folder for each run; finished ones are kept.")],
    minutes: FineTuning = 1.5,
    way: Annotated[
        list[str] | None,
        typer.Option(help="weights, channels, dynamic (these by default), dynamic-trained."),
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(help="Share of the parameters that goes; 0.2, 0.42, 0.6 and 0.8 by default."),
    ] = None,
    rate: Rate = 1e-3,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: PruneSeed = 0,
    engine: Annotated[str, typer.Option(help="Engine that is timed.")] = "openvino",
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each network.")] = 10,
    as_json: Json = False,
) -> None:
    """Every way at every share, and a control, judged on validation and timed; resumable."""
    from models.pruning.compare import Cell, prune_table, run_compare
    from models.pruning.weights import USUAL, WAYS
    from models.training.runs import Run

    ways, shares = way or list(USUAL), share or [0.2, 0.42, 0.6, 0.8]
    if unknown := set(ways) - set(WAYS):
        raise typer.BadParameter(f"--way {sorted(unknown)} is none of {', '.join(WAYS)}")
    for one in shares:
        _check_share(one)
    run = Run(data, out, minutes, rate, False, start, cache, phantoms, seed)
    cells = [Cell(name, one) for name in ways for one in shares]
    result = run_compare(run, cells, engine=engine, rounds=rounds)
    shown = {"command": _line(start, data, out, minutes, rate, phantoms, ways, shares), **result}
    show_section(shown, as_json, prune_table(shown))


@prune.command("structured")
def structured(
    start: PruneStart,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the run: averaged.pt, checkpoint and log.")],
    share: Annotated[float, typer.Option(help="Share of the parameters that goes.")] = 0.42,
    minutes: FineTuning = 1.5,
    rate: Rate = 1e-3,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: PruneSeed = 0,
    as_json: Json = False,
) -> None:
    """Take whole channels out and fine-tune; train and export take the weights as any others."""
    from models.pruning.compare import run_structured
    from models.training.runs import Run

    _check_share(share)
    run = Run(data, out, minutes, rate, False, start, cache, phantoms, seed)
    result = run_structured(run, share)
    show_section(result, as_json, json.dumps(result, indent=2))


def _line(
    start: Path,
    data: Path,
    out: Path,
    minutes: float,
    rate: float,
    phantoms: int,
    ways: list[str],
    shares: list[float],
) -> str:
    """The comparison as a person would type it again."""
    words = ["overread-models prune compare", f"--start {start} --data {data} --out {out}"]
    words += [f"--minutes {minutes:g} --rate {rate:g} --phantoms {phantoms}"]
    words += [f"--way {way}" for way in ways] + [f"--share {share:g}" for share in shares]
    return " ".join(words)


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise typer.BadParameter(f"--share {share:g} is not between 0 and 1")
