"""``overread-models qat``, ``int4``, ``ranges`` and ``sensitivity``: what learns to be rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    from models.compression.quantize_runs import run_qat
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
    from models.compression.quantize_runs import run_int4
    from models.training.runs import Run

    run = Run(data, out, minutes, rate, resume, start, cache, phantoms, seed)
    run_int4(run, kind, qat, screening or [], share)


def ranges(
    kind: Kind,
    data: Data,
    start: Start,
    qat: Qat = None,
    as_json: Json = False,
) -> None:
    """How far INT8 is from float on validation: min-max, percentile, entropy, learnt ranges."""
    from models.compression.layer_report import show_ranges
    from models.compression.quantize_runs import run_ranges

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
    from models.compression.layer_report import show_layers
    from models.compression.quantize_runs import run_sensitivity

    show_layers(run_sensitivity(kind, data, start, qat), plot, as_json)
