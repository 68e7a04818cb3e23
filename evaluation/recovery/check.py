"""What must hold of a site whose agent was killed: nothing lost, nothing doubled.

What every trial of the edge's daemon does: studies arrive, an agent works, the end is told.
"""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import typer

from edge.budget import Budget
from edge.findings import Route
from edge.merge import Merged, merge
from edge.pipeline import detect
from edge.report.model import ChangeKind
from edge.store.studies import Step
from evaluation.common.processes import log_tail
from evaluation.errors import ServiceFailed
from evaluation.recovery.agent import ChanceCloud, line_of, put_study, the_box, verdicts_on
from protos.deadline import Deadline

Words = dict[str, Any]


Said = tuple[object, ...]
"""Of a finding: its route, and of one that was uncertain also place and probability."""

Expects = Callable[[Path, str], list[Said]]
"""What must be found in the study of that folder and key."""


@dataclass(frozen=True)
class Found:
    """What became of the studies of one site.

    Attributes:
        studies: that were put in the inbox.
        provisional: of these, how many had a first report that owed something.
        amendments: versions after the first.
        lost: in words, what is not there.
        doubled: in words, what is there twice, or twice in a report.
        left: files and rows that should be gone.
    """

    studies: int
    provisional: int
    amendments: int
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is amiss."""
        return not (self.lost or self.doubled or self.left)


def busy(root: Path) -> bool:
    """Whether the agent has anything left to do; asked without disturbing it."""
    database = root / "state" / "spool.sqlite3"
    if any(not path.name.startswith(".") for path in (root / "inbox").iterdir()):
        return True
    query = "SELECT (SELECT count(*) FROM studies WHERE step NOT IN (?, ?))"
    query += " + (SELECT count(*) FROM owed)"
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
            ends = (Step.DONE.value, Step.QUARANTINED.value)
            return bool(opened.execute(query, ends).fetchone()[0])
    except sqlite3.OperationalError:  # it has not made its tables yet
        return True


def check(
    root: Path, studies: Mapping[str, Sequence[float] | None], expects: Expects | None = None
) -> Found:
    """What became of ``studies`` (name to scores, None for one of no use) below ``root``.

    ``expects`` says what the last version of a report must find; `expected` if None.
    """
    lost: list[str] = []
    doubled: list[str] = []
    first: list[Words] = []
    amendments = 0
    for name, scores in studies.items():
        end = "done" if scores is not None else "quarantine"
        folders = _folders(root, name)
        _count(name, "its files", [f for f in folders if end in f.parts], lost, doubled)
        doubled += [f"{name}: also in {f}" for f in folders if end not in f.parts]
        versions = list(_versions(root / "outbox" / name, name, lost))
        if (root / "outbox" / f"{name}-2").exists():
            doubled.append(f"{name}: a second report")
        if versions and scores is not None:
            amendments += len(versions) - 1
            first.append(versions[0])
            _compare(name, versions, folders, expects or expected, lost, doubled)
    provisional = sum(report["status"] == "provisional" for report in first)
    left = (*_leftovers(root),)
    return Found(len(studies), provisional, amendments, tuple(lost), tuple(doubled), left)


def _folders(root: Path, name: str) -> list[Path]:
    state = root / "state"
    places = (f"work/*/{name}", f"done/*/{name}", f"quarantine/*/study/{name}")
    return [folder for place in places for folder in state.glob(place)]


def _count(
    name: str, what: str, there: Sequence[object], lost: list[str], doubled: list[str]
) -> None:
    if not there:
        lost.append(f"{name}: {what}")
    elif len(there) > 1:
        doubled.append(f"{name}: {what}, {len(there)} times")


def _versions(out: Path, name: str, lost: list[str]) -> Iterator[Words]:
    """Every version of one report, the last one last; what is missing is told in ``lost``."""
    newest = out / "report.json"
    if not newest.is_file():
        lost.append(f"{name}: its report")
        return
    last = json.loads(newest.read_text())
    for version in range(1, last["version"]):
        path = out / f"report.v{version}.json"
        if not path.is_file() or not path.with_suffix(".html").is_file():
            lost.append(f"{name}: version {version}")
            return
        yield json.loads(path.read_text())
    yield last


def _compare(
    name: str,
    versions: list[Words],
    folders: list[Path],
    expects: Expects,
    lost: list[str],
    doubled: list[str],
) -> None:
    """Whether the versions follow on each other, and the last says what it must."""
    for number, (older, newer) in enumerate(pairwise(versions), start=1):
        before, after = older["changes"], newer["changes"]
        if older["version"] != number or after[: len(before)] != before:
            lost.append(f"{name}: version {number + 1} does not go on from version {number}")
        if len(after) == len(before):
            doubled.append(f"{name}: version {number + 1} changes nothing")
    last = versions[-1]
    given_up = [c for c in last["changes"] if c.get("kind") == ChangeKind.GIVEN_UP.value]
    if given_up:
        lost.append(f"{name}: a debt, given up before its time")
    places = [tuple(c["centre_mm"]) for c in last["changes"] if c not in given_up]
    if len(set(places)) < len(places):
        doubled.append(f"{name}: a verdict")
    if folders and _findings(last) != expects(folders[0], last["study_key"]):
        lost.append(f"{name}: a finding, or a verdict on one")
    if last["status"] != "final":
        lost.append(f"{name}: an amendment")


def expected(source: Path, study_key: str) -> list[Said]:
    """What is a finding once every uncertain region has its verdict."""
    line, box = line_of(source, ChanceCloud(Random(0))), the_box()
    plan = detect(line, box, Budget(Deadline.after(60.0)), study_key).plan
    answers = verdicts_on(plan.uncertain, study_key)
    whole = replace(plan, send=plan.uncertain, sizes=(), later=())
    reader = line.reader
    return said_of(merge(whole, answers, reader.thresholds, reader.weights, box.geometry))


def said_of(merged: Merged) -> list[Said]:
    """What must be the same in a report that was made of this."""
    return sorted(
        _said(f.route.value, [round(mm, 2) for mm in f.centre_mm], round(f.probability, 4))
        for f in merged.findings
    )


def _findings(report: Words) -> list[Said]:
    """Without what an audit found: no one owes its answer, and it may come or not."""
    found = [f for f in report["findings"] if f["route"] != Route.DISMISS.value]
    return sorted(_said(f["route"], f["centre_mm"], f["probability"]) for f in found)


def _said(route: str, centre_mm: Sequence[float], probability: float) -> Said:
    """What must be the same; a finding that is reported anyway may have its verdict or not."""
    reported = route == Route.REPORT.value
    return (route,) if reported else (route, *centre_mm, probability)


def _leftovers(root: Path) -> Iterator[str]:
    yield from (str(path) for path in root.rglob("*.part"))
    yield from (f"work/{path.name}" for path in (root / "state" / "work").iterdir())
    with closing(sqlite3.connect(root / "state" / "spool.sqlite3")) as opened:
        for table in ("owed", "owed_regions", "owed_verdicts"):
            count = opened.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            if count:
                yield f"{count} rows in {table}"


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
