"""``overread-models``: quantisation (``qat``, ``int4``, ``ranges``, ``sensitivity``), ``prune``."""

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
    RunsOut,
    Seed,
)

Start = Annotated[
    Path, typer.Option(help="KIND-fp32.onnx, or the averaged.pt it was exported from.")
]
Qat = Annotated[
    Path | None,
    typer.Option(help="averaged.pt of the INT8 training; default: the artifact `KIND-int8`."),
]
Screeners = Annotated[
    list[Path] | None, typer.Option(help="For a hybrid: weights as for `train hybrid`.")
]


def qat(
    kind: Kind,
    data: Data,
    start: Start,
    screening: Screeners = None,
    method: Method = "minmax",
    out: Out = Path("runs/qat"),
    minutes: Minutes = 20,
    resume: Resume = False,
    rate: Rate = 2e-4,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: Seed = 0,
) -> None:
    """Make `KIND-int8` by quantisation-aware training, to answer as the float network."""
    from models.quantization.qat import run_qat
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
    """Make `KIND-int4` from INT8: lower the least sensitive layers until the file is small."""
    from models.quantization.qat import run_int4
    from models.training.runs import Run

    run = Run(data, out, minutes, rate, resume, start, cache, phantoms, seed)
    run_int4(run, kind, qat, screening or [], share)


def ranges(kind: Kind, data: Data, start: Start, qat: Qat = None, as_json: Json = False) -> None:
    """Measure INT8 against float on validation: min-max, percentile, entropy, learned ranges."""
    from models.quantization.sensitivity import run_ranges, show_ranges

    show_ranges(run_ranges(kind, data, start, qat), as_json)


def sensitivity(
    kind: Kind,
    data: Data,
    start: Start,
    qat: Qat = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="PNG file to write.")] = None,
    as_json: Json = False,
) -> None:
    """Measure each layer's sensitivity to INT8 and to INT4."""
    from models.quantization.sensitivity import run_sensitivity, show_layers

    show_layers(run_sensitivity(kind, data, start, qat), plot, as_json)


prune = typer.Typer(help="Prune the screening network.", no_args_is_help=True)

PruneStart = Annotated[Path, typer.Option(help="Weights to prune: averaged.pt or KIND-fp32.onnx.")]
FineTuning = Annotated[float, typer.Option(help="Minutes of fine-tuning of each run.")]
PruneSeed = Annotated[int, typer.Option(help="Seed of samples and of random masks.")]


@prune.command("compare")
def compare(
    start: PruneStart,
    data: Data,
    out: RunsOut,
    minutes: FineTuning = 1.5,
    way: Annotated[
        list[str] | None,
        typer.Option(help="weights, channels, dynamic (these by default), dynamic-trained."),
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(help="Share of the parameters to prune; default: 0.2, 0.42, 0.6 and 0.8."),
    ] = None,
    rate: Rate = 1e-3,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: PruneSeed = 0,
    engine: Annotated[str, typer.Option(help="Engine to time.")] = "openvino",
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each network.")] = 10,
    as_json: Json = False,
) -> None:
    """Compare pruning methods and shares with a control; an interrupted comparison continues."""
    from models.pruning.compare import CONTROL, METHODS, USUAL, Cell, prune_table, run_compare
    from models.training.runs import Run

    methods, shares = way or list(USUAL), share or [0.2, 0.42, 0.6, 0.8]
    known = METHODS.keys() - {CONTROL}
    if unknown := set(methods) - known:
        raise typer.BadParameter(f"--way {sorted(unknown)}, expected one of {sorted(known)}")
    for one in shares:
        _check_share(one)
    run = Run(data, out, minutes, rate, False, start, cache, phantoms, seed)
    cells = [Cell(method, one) for method in methods for one in shares]
    result = run_compare(run, cells, engine=engine, rounds=rounds)
    words = [f"overread-models prune compare --start {start} --data {data} --out {out}"]
    words += [f"--minutes {minutes:g} --rate {rate:g} --phantoms {phantoms}"]
    words += [f"--way {method}" for method in methods] + [f"--share {one:g}" for one in shares]
    shown = {"command": " ".join(words), **result}
    show_section(shown, as_json, prune_table(shown))


@prune.command("structured")
def structured(
    start: PruneStart,
    data: Data,
    out: Out,
    share: Annotated[float, typer.Option(help="Share of the parameters to prune.")] = 0.42,
    minutes: FineTuning = 1.5,
    rate: Rate = 1e-3,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: PruneSeed = 0,
    as_json: Json = False,
) -> None:
    """Remove whole channels and fine-tune; train and export accept the weights as any others."""
    from models.pruning.compare import run_structured
    from models.training.runs import Run

    _check_share(share)
    run = Run(data, out, minutes, rate, False, start, cache, phantoms, seed)
    result = run_structured(run, share)
    show_section(result, as_json, json.dumps(result, indent=2))


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise typer.BadParameter(f"--share {share:g}, expected a value between 0 and 1")
