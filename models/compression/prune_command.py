"""``overread-models prune``: the ways to prune side by side, and the one that makes it faster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from models.options import PHANTOMS, Cache, Data, Json, Phantoms, Rate
from models.show import show_section

prune = typer.Typer(help="Prune the screening network.", no_args_is_help=True)

Start = Annotated[Path, typer.Option(help="Weights to prune: averaged.pt or KIND-fp32.onnx.")]
Minutes = Annotated[float, typer.Option(help="Fine-tuning of each run.")]
Seed = Annotated[int, typer.Option(help="Seed of samples and of random masks.")]


@prune.command("compare")
def compare(
    start: Start,
    data: Data,
    out: Annotated[Path, typer.Option(help="A folder for each run; finished ones are kept.")],
    minutes: Minutes = 1.5,
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
    seed: Seed = 0,
    engine: Annotated[str, typer.Option(help="Engine that is timed.")] = "openvino",
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each network.")] = 10,
    as_json: Json = False,
) -> None:
    """Every way at every share, and a control, judged on validation and timed; resumable."""
    from models.compression.prune_figures import section
    from models.compression.prune_runs import Cell, run_compare
    from models.compression.prune_ways import USUAL, WAYS
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
    show_section(shown, as_json, section({"pruning": shown}))


@prune.command("structured")
def structured(
    start: Start,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the run: averaged.pt, checkpoint and log.")],
    share: Annotated[float, typer.Option(help="Share of the parameters that goes.")] = 0.42,
    minutes: Minutes = 1.5,
    rate: Rate = 1e-3,
    phantoms: Phantoms = 16,
    cache: Cache = PHANTOMS,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Take whole channels out and fine-tune; train and export take the weights as any others."""
    from models.compression.prune_runs import run_structured
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
