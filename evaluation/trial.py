"""What every trial of the edge's daemon does: studies arrive, an agent works, the end is told."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import typer

from evaluation.errors import ServiceFailed
from evaluation.kill_agent import put_study
from evaluation.kill_check import Found
from evaluation.processes import log_tail

PATIENCE_S = 900.0
"""So long an agent may take for whatever is waited for."""

POLL_S = 0.005

Studies = dict[str, Sequence[float] | None]
"""What the edge sees in each study; None is one of no use."""


def some_scores(chance: Random, count: int) -> list[float]:
    """So many scores, the highest first."""
    return sorted((round(chance.uniform(0.02, 0.98), 3) for _ in range(count)), reverse=True)


def arrive(root: Path, studies: Studies, scores: Sequence[float] | None) -> None:
    """One more study in the inbox below ``root``, noted in ``studies``."""
    name = f"study {len(studies)}"
    studies[name] = scores
    put_study(root / "inbox", name, scores)


@contextmanager
def working(serve: Callable[..., None], *arguments: object) -> Iterator[BaseProcess]:
    """An agent, as a process of its own for the time of the context; ended by SIGTERM."""
    agent = multiprocessing.get_context("spawn").Process(target=serve, args=arguments)
    agent.start()
    try:
        yield agent
    finally:
        agent.terminate()
        agent.join(PATIENCE_S)


def wait(holds: Callable[[], bool], agent: BaseProcess) -> bool:
    """Whether it holds, as soon as it does, or the agent has died, or it was waited for long."""
    until = time.monotonic() + PATIENCE_S
    while not (held := holds()) and agent.exitcode is None and time.monotonic() < until:
        time.sleep(POLL_S)
    return held


def require(holds: Callable[[], bool], agent: BaseProcess, log: Path) -> None:
    """Return when it holds.

    Raises:
        ServiceFailed: the agent has died, or it was in vain.
    """
    if not wait(holds, agent):
        raise ServiceFailed(f"the agent (status {agent.exitcode})\n{log_tail(log)}")


def tell(what: dict[str, Any], found: Found, as_json: bool) -> None:
    """Prints what was done and what became of the studies, and ends with status 1 if it is amiss.

    Raises:
        Exit: always.
    """
    result = {**what, **asdict(found), "sound": found.sound}
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo("\n".join(f"{key:12} {value}" for key, value in result.items()))
    raise typer.Exit(0 if found.sound else 1)
