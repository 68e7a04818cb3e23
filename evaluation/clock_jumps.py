"""Sets the wall clock under the edge's daemon again and again, and tells what was lost or doubled.

``python -m evaluation.clock_jumps --rounds 50 [--json]``

In a round studies arrive and an agent works on them and on what earlier reports owe; then it is
ended, and the next one finds its work and a clock that says something else. The clock jumps by an
hour up to more than a year, both ways, at every durable step of studies and debts and at every
second look. Nothing may be lost, doubled, or given up before its time. Status 1 if anything is
amiss.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from evaluation.clock_agent import counts, serve
from evaluation.kill_check import Found, busy, check
from evaluation.options import Json
from evaluation.progress import each
from evaluation.trial import Studies, arrive, require, some_scores, tell, working

STUDIES_A_ROUND = 2
LIFE_S = (0.0, 0.4)
"""An agent works for so long after it has begun; the last one until there is nothing to do."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def run(root: Path, rounds: int, seed: int) -> Found:
    """Plays the rounds on a site below ``root``; what became of its studies.

    Raises:
        ServiceFailed: an agent died, or did not finish its work.
    """
    (root / "inbox").mkdir(parents=True)
    chance, studies = Random(seed), Studies()
    for left in each(range(rounds - 1, -1, -1), "rounds"):
        for _ in range(STUDIES_A_ROUND):
            arrive(root, studies, some_scores(chance, chance.randrange(1, 6)))
        _live(root, chance, to_the_end=left == 0)
    return check(root, studies)


def _live(root: Path, chance: Random, *, to_the_end: bool) -> None:
    started, log = root / "started", root / "log"
    started.unlink(missing_ok=True)
    with working(serve, root, chance.randrange(2**32)) as agent:
        require(started.exists, agent, log)
        time.sleep(chance.uniform(*LIFE_S))
        if to_the_end:
            require(lambda: not busy(root), agent, log)


@app.command()
def clock_jumps(
    rounds: Annotated[int, typer.Option(min=1, help="Agents, one after the other.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of studies, answers and jumps.")] = 0,
    as_json: Json = False,
) -> None:
    """Sets the wall clock under the daemon and tells what was lost or doubled."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "site"
        found = run(root, rounds, seed)
        counted = counts(root)
    tell({"rounds": rounds, **counted}, found, as_json)


if __name__ == "__main__":
    app()
