"""The site of a chaos test, and its check: no answer is lost, doubled or left behind."""

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
from edge.decide import Plan
from edge.escalation.rois import EscalationResult
from edge.findings import Route
from edge.merge import merge
from edge.pipeline import detect
from edge.report.model import ChangeKind
from edge.store.steps import Step
from evaluation.common.processes import log_tail
from evaluation.errors import ServiceFailed
from evaluation.recovery.agent import RandomCloud, pipeline_of, put_study, the_box, verdicts_on
from imaging.preprocess import Preprocessed
from protos.deadline import Deadline

PATIENCE_S = 900.0
"""Longest wait for an agent."""

Answers = Callable[[Plan, Preprocessed, str], EscalationResult]
"""The cloud's verdicts on all uncertain candidates of a plan, by lung box and study key."""

Essence = tuple[object, ...]
"""The list and the route of a finding; for an uncertain candidate also position and probability."""


@dataclass(frozen=True)
class Found:
    """The state of one site, with names of what is ``lost``, ``doubled`` or ``left``.

    ``studies`` were put in the inbox; ``provisional`` counts those whose first report had a pending
    read, ``amendments`` the versions after the first.
    """

    studies: int
    provisional: int
    amendments: int
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Return whether nothing is wrong."""
        return not (self.lost or self.doubled or self.left)


class Site:
    """One inbox, outbox and state folder below ``root``, which must not exist yet."""

    def __init__(self, root: Path, chance: Random) -> None:
        self.root, self.chance = root, chance
        self.studies: dict[str, Sequence[float] | None] = {}
        (root / "inbox").mkdir(parents=True)

    def arrive(self, scores: Sequence[float] | None) -> None:
        """Put one more study in the inbox."""
        name = f"study {len(self.studies)}"
        self.studies[name] = scores
        put_study(self.root / "inbox", name, scores)

    def some_scores(self, count: int) -> list[float]:
        """Draw ``count`` scores, the highest first."""
        scores = (round(self.chance.uniform(0.02, 0.98), 3) for _ in range(count))
        return sorted(scores, reverse=True)

    @contextmanager
    def working(self, serve: Callable[..., None], *arguments: object) -> Iterator[BaseProcess]:
        """Run an agent as a process for the time of the context, and end it by SIGTERM."""
        process = multiprocessing.get_context("spawn").Process
        agent = process(target=serve, args=(self.root, *arguments))
        agent.start()
        try:
            yield agent
        finally:
            agent.terminate()
            agent.join(PATIENCE_S)

    def is_idle(self) -> bool:
        """Return whether the agent has nothing left to do."""
        return not busy(self.root)

    def require(self, holds: Callable[[], bool], agent: BaseProcess) -> None:
        """Wait until the condition holds.

        Raises:
            ServiceFailed: the agent died, or `PATIENCE_S` passed.
        """
        if not wait(holds, agent):
            log = log_tail(self.root / "log")
            raise ServiceFailed(f"the agent (status {agent.exitcode})\n{log}")


def busy(root: Path) -> bool:
    """Return whether the agent has anything left to do, without disturbing it."""
    if any(not path.name.startswith(".") for path in (root / "inbox").iterdir()):
        return True
    query = "SELECT (SELECT count(*) FROM studies WHERE step NOT IN (?, ?))"
    query += " + (SELECT count(*) FROM pending)"
    try:
        with closing(sqlite3.connect(f"file:{_database(root)}?mode=ro", uri=True)) as opened:
            ends = (Step.DONE.value, Step.QUARANTINED.value)
            return bool(opened.execute(query, ends).fetchone()[0])
    except sqlite3.OperationalError:  # it has not made its tables yet
        return True


def wait(holds: Callable[[], bool], agent: BaseProcess) -> bool:
    """Wait until the condition holds, the agent has died, or `PATIENCE_S`; whether it holds."""
    until = time.monotonic() + PATIENCE_S
    while not (held := holds()) and agent.exitcode is None and time.monotonic() < until:
        time.sleep(0.005)
    return held


def show_and_exit(what: dict[str, Any], found: Found, as_json: bool) -> None:
    """Print the result, and end the command: with status 1 if anything is wrong."""
    result = {**what, **asdict(found), "sound": found.sound}
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo("\n".join(f"{key:12} {value}" for key, value in result.items()))
    raise typer.Exit(0 if found.sound else 1)


def answers_of_random_cloud(plan: Plan, _box: Preprocessed, study_key: str) -> EscalationResult:
    """Return the verdicts of `RandomCloud`."""
    return verdicts_on(plan.uncertain, study_key)


def check(
    root: Path,
    studies: Mapping[str, Sequence[float] | None],
    answers: Answers = answers_of_random_cloud,
) -> Found:
    """Check all ``studies`` below ``root``; ``answers`` are those of the cloud.

    ``studies`` has the edge's scores in each study by name; None is an unusable study.
    """
    lost, doubled = list[str](), list[str]()
    provisional = amendments = 0
    for name, scores in studies.items():
        end = "done" if scores is not None else "quarantine"
        patterns = (f"work/*/{name}", f"done/*/{name}", f"quarantine/*/study/{name}")
        folders = [folder for pattern in patterns for folder in (root / "state").glob(pattern)]
        count = sum(end in folder.parts for folder in folders)
        if not count:
            lost.append(f"{name}: its files")
        elif count > 1:
            doubled.append(f"{name}: its files, {count} times")
        doubled += [f"{name}: also in {f}" for f in folders if end not in f.parts]
        if (root / "outbox" / f"{name}-2").exists():
            doubled.append(f"{name}: a second report")
        versions, missing = versions_of(root / "outbox" / name)
        lost += [f"{name}: {what}" for what in missing]
        if versions and scores is not None:
            amendments += len(versions) - 1
            provisional += versions[0]["status"] == "provisional"
            compare_versions(name, versions, lost, doubled)
            last = versions[-1]
            if folders and _findings(last) != expected(folders[0], last["study_key"], answers):
                lost.append(f"{name}: a finding, or a verdict on one")
            if last["status"] != "final":
                lost.append(f"{name}: an amendment")
    left = tuple(_leftovers(root))
    return Found(len(studies), provisional, amendments, tuple(lost), tuple(doubled), left)


def versions_of(out: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the versions of one report up to the first that is missing, and what that is."""
    newest = out / "report.json"
    if not newest.is_file():
        return [], ["its report"]
    last = json.loads(newest.read_text())
    versions: list[dict[str, Any]] = []
    for version in range(1, last["version"]):
        path = out / f"report.v{version}.json"
        if not path.is_file() or not path.with_suffix(".html").is_file():
            return versions, [f"version {version}"]
        versions.append(json.loads(path.read_text()))
    return [*versions, last], []


def compare_versions(
    name: str, versions: list[dict[str, Any]], lost: list[str], doubled: list[str]
) -> None:
    """Check that each version continues the one before, and no read was given up."""
    for number, (older, newer) in enumerate(pairwise(versions), start=1):
        before, after = older["changes"], newer["changes"]
        if older["version"] != number or after[: len(before)] != before:
            lost.append(f"{name}: version {number + 1} does not continue {number}")
        if len(after) == len(before):
            doubled.append(f"{name}: version {number + 1} changes nothing")
    last = versions[-1]
    given_up = [c for c in last["changes"] if c.get("kind") == ChangeKind.GIVEN_UP.value]
    if given_up:
        lost.append(f"{name}: a pending read, given up too early")
    places = [tuple(c["centre_mm"]) for c in last["changes"] if c not in given_up]
    if len(set(places)) < len(places):
        doubled.append(f"{name}: a verdict")


def expected(source: Path, study_key: str, answers: Answers) -> list[Essence]:
    """Return both lists of a study once every uncertain candidate has its verdict."""
    pipeline, box = pipeline_of(source, RandomCloud(Random(0))), the_box()
    plan = detect(pipeline, box, Budget(Deadline.after(60.0)), study_key).plan
    whole = replace(plan, send=plan.uncertain, sizes=(), later=())
    verdicts, reader = answers(plan, box, study_key), pipeline.reader
    merged = merge(whole, verdicts, reader.thresholds, reader.weights, box.geometry)
    return sorted(
        _essence(name, f.route.value, [round(mm, 2) for mm in f.centre_mm], round(f.probability, 4))
        for name, listed in (("findings", merged.findings), ("possible_findings", merged.possible))
        for f in listed
    )


def _findings(report: dict[str, Any]) -> list[Essence]:
    """Return both lists of a report, without those of an audit, whose verdict may be missing."""
    return sorted(
        _essence(name, f["route"], f["centre_mm"], f["probability"])
        for name in ("findings", "possible_findings")
        for f in report[name]
        if f["route"] != Route.DISMISS.value
    )


def _essence(name: str, route: str, centre_mm: Sequence[float], probability: float) -> Essence:
    """Return what must be the same; the verdict on a reported finding may be missing."""
    if route == Route.REPORT.value:
        return name, route
    return name, route, *centre_mm, probability


def _leftovers(root: Path) -> Iterator[str]:
    yield from (str(path) for path in root.rglob("*.part"))
    yield from (f"work/{path.name}" for path in (root / "state" / "work").iterdir())
    with closing(sqlite3.connect(_database(root))) as opened:
        for table in ("pending", "pending_rois", "pending_verdicts"):
            count = opened.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            if count:
                yield f"{count} rows in {table}"


def _database(root: Path) -> Path:
    return root / "state" / "spool.sqlite3"
