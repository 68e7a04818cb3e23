"""Lets the link go and come back again and again, and tells whether anything was lost or doubled.

``python -m evaluation.flaps --flaps 50 [--json]``

The real daemon reads studies and amends reports while the link to a real service is reset, stalls,
swallows everything or carries one way only. Then the link stays, and the daemon has to come to its
end. Status 1 if anything is amiss.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from evaluation.demo_processes import log_tail
from evaluation.errors import ServiceFailed
from evaluation.flap_agent import expected, serve
from evaluation.kill_agent import put_study
from evaluation.kill_check import Found, busy, check
from evaluation.progress import counting
from evaluation.proxied import proxied
from evaluation.service import cloud_service
from evaluation.trace import Conditions, State, Trace

CLOUD = ("evaluation.flap_cloud",)
DOWN = (State.RESET, State.STALL, State.HALF_OPEN, State.BLACK_HOLE)
UP_S, DOWN_S = (0.5, 2.0), (0.2, 2.0)
LINK = Conditions(latency_ms=10, jitter_ms=2, up_kbit=20_000, down_kbit=50_000)
STUDY_EVERY_S = (0.1, 0.9)
MOST_WAITING = 2
"""Studies come no faster than they are read: they are to be read while the link flaps."""

PATIENCE_S = 900.0
POLL_S = 0.05

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def flapping(flaps: int, chance: Random) -> Trace:
    """A link that goes so often, each time in another way and for another while, then stays."""
    times_s, conditions, now_s = [0.0], [LINK], 0.0
    for number in range(flaps):
        now_s += chance.uniform(*UP_S)
        down = replace(LINK, state=DOWN[number % len(DOWN)])
        times_s.append(now_s)
        conditions.append(down)
        now_s += chance.uniform(*DOWN_S)
        times_s.append(now_s)
        conditions.append(LINK)
    return Trace("flaps", tuple(times_s), tuple(conditions))


def run(root: Path, trace: Trace, seed: int, step: Callable[[int, int], None]) -> Found:
    """Plays the trace on a site below ``root``; what became of its studies.

    Raises:
        ServiceFailed: the agent died, or did not finish its work.
    """
    (root / "inbox").mkdir(parents=True)
    chance, studies = Random(seed), dict[str, list[float] | None]()
    context = multiprocessing.get_context("spawn")
    with cloud_service(program=CLOUD) as cloud, proxied(cloud, trace, seed=seed) as link:
        agent = context.Process(target=serve, args=(root, link.address))
        agent.start()
        try:
            _await((root / "state" / "spool.sqlite3").exists, agent, root / "log")
            link.rewind()
            began_s, last_s = time.monotonic(), trace.times_s[-1]
            while (at_s := time.monotonic() - began_s) < last_s:
                step(int(at_s), int(last_s))
                if sum(1 for _ in (root / "inbox").iterdir()) < MOST_WAITING:
                    _arrive(root, studies, chance)
                time.sleep(chance.uniform(*STUDY_EVERY_S))
            _await(lambda: not busy(root), agent, root / "log")
        finally:
            agent.terminate()
            agent.join(PATIENCE_S)
    return check(root, studies, expected)


def _arrive(root: Path, studies: dict[str, list[float] | None], chance: Random) -> None:
    name = f"study {len(studies)}"
    scores = sorted((round(chance.uniform(0.02, 0.98), 3) for _ in range(5)), reverse=True)
    studies[name] = None if chance.random() < 0.05 else scores[: chance.randrange(1, 6)]
    put_study(root / "inbox", name, studies[name])


def _await(holds: Callable[[], bool], agent: Any, log: Path) -> None:
    """Return when it holds.

    Raises:
        ServiceFailed: the agent has died, or it was in vain.
    """
    until = time.monotonic() + PATIENCE_S
    while not holds():
        if agent.exitcode is not None or time.monotonic() > until:
            raise ServiceFailed(f"the agent (status {agent.exitcode})\n{log_tail(log)}")
        time.sleep(POLL_S)


@app.command()
def flaps(
    count: Annotated[int, typer.Option("--flaps", min=1, help="How often the link goes.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of studies, link and jitter.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Lets the link flap and tells what was lost or doubled."""
    trace = flapping(count, Random(seed))
    with tempfile.TemporaryDirectory() as folder, counting("seconds of the link") as step:
        found = run(Path(folder) / "site", trace, seed, step)
    result = {"flaps": count, "span_s": trace.times_s[-1], **asdict(found), "sound": found.sound}
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo("\n".join(f"{key:12} {value}" for key, value in result.items()))
    raise typer.Exit(0 if found.sound else 1)


if __name__ == "__main__":
    app()
