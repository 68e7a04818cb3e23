"""``overread-eval fuzz``: hostile data for the real agent, at each of its doors.

``--door files`` are files and folders in the inbox, in batches, each with a sound phantom at its
end. Every study must get a report: its findings, or a refusal of a known kind. The agent writes
each step to the disk, which takes time, so the other studies are read beside it in the same child
processes, without an agent, and the memory of these is measured. No file outside of the inbox may
be opened, and none of what is in it may appear in an output.

``--door network`` are associations and requests, see `evaluation.hostile.senders`.
"""

import json
import os
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from edge.folders import DATABASE
from edge.settings.core import EdgeSettings
from evaluation.hostile.senders import senders
from evaluation.hostile.studies import CANARY, Materials, make_study, materials
from evaluation.phantoms import STUDIES, prepare, whole_chest
from evaluation.process_memory import peak_memory
from evaluation.run import Bar, Result, Seed, command, each
from evaluation.world import Agent, running_agent
from imaging import errors
from imaging.dicom.arrival import files_of
from imaging.isolation.reader import IsolatedReader, ReadLimits
from imaging.phantom.phantom import PhantomSpec

BATCH = 250
"""Hostile studies between two sound ones."""
PATIENCE_S = 180.0
"""A batch that brings no report for this long hangs: reading a study takes 60 s at most."""
LONG_AGO_S = 1_000_000_000

HOSTILE_STUDIES, BY_AGENT = 5000, 700
"""Hostile studies, and those of them that the agent gets."""

READ_BAR_S, PEAK_BAR_MB, GROWTH_BAR_MB = 60.0, 4096.0, 200.0

SMALL = PhantomSpec(
    seed=2, spacing_mm=(5.0, 2.5, 2.5), size_mm=(210.0, 340.0, 340.0),
    nodule_count=1, diameter_mm=(15.0, 20.0),
)  # fmt: skip
"""A chest of 42 small slices, for the sound series between hostile senders."""


def fuzz_files(
    root: Path, sound: Path, count: int, by_agent: int, seed: int, batch: int = BATCH
) -> dict[str, Any]:
    """Give hostile studies to an agent below ``root``, and to a reader; return what came of them.

    ``by_agent`` of the ``count`` studies go to the agent, and the ``sound`` one after each batch.
    """
    stuff = materials(root / "elsewhere")
    outside = [path for path in (root / "elsewhere").rglob("*") if path.is_file()]
    sees_reads, began_s = notes_reads(root), time.monotonic()
    for path in outside:
        forget_reads(path)
    with ThreadPoolExecutor(1) as beside:
        reading = beside.submit(_read_directly, root, range(by_agent, count), seed, stuff)
        found = _through_agent(root, sound, by_agent, batch, seed, stuff)
    direct = reading.result()
    for name, outcomes in direct["outcomes"].items():
        found["outcomes"][name] = dict(Counter(found["outcomes"].get(name, {})) + outcomes)
    found["untyped"] += direct["untyped"]
    found["longest_read_s"] = max(found["longest_read_s"], direct["longest_read_s"])
    found["peak_mb"] = direct["peak_mb"]
    read = [path.name for path in outside if path.stat().st_atime != LONG_AGO_S]
    return {
        "studies": count,
        "by_agent": by_agent,
        **found,
        "seconds": round(time.monotonic() - began_s, 1),
        "files_read_outside": sorted(read) if sees_reads else None,
        "leaks": sorted(_leaks(root)),
    }


def _read_directly(root: Path, numbers: range, seed: int, stuff: Materials) -> dict[str, Any]:
    """Read and preprocess studies in child processes, as the agent does."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    untyped, longest_s = [], 0.0
    settings = EdgeSettings()
    limits = ReadLimits(settings.read_memory_mb)
    with IsolatedReader(limits) as reader, peak_memory(os.getpid()) as peak:
        for number in numbers:
            folder = root / "direct" / f"{number:06}"
            kind, study = make_study(number, seed, folder, stuff)
            began_s = time.monotonic()
            try:
                reader.preprocess(reader.read(study).volume, study)
                outcome = "read"
            except errors.StudyError as error:
                outcome = error.kind
            except Exception as error:  # it is counted as wrong
                outcome = type(error).__name__
                untyped.append({"study": f"{number:06}", "kind": outcome, "reason": str(error)})
            longest_s = max(longest_s, time.monotonic() - began_s)
            outcomes[kind][outcome] += 1
            shutil.rmtree(folder)
    return {
        "outcomes": outcomes,
        "untyped": untyped,
        "longest_read_s": round(longest_s, 2),
        "peak_mb": peak.child_mb,
    }


def _through_agent(
    root: Path, sound: Path, count: int, batch: int, seed: int, stuff: Materials
) -> dict[str, Any]:
    """Put studies into the inbox of an agent in batches, each with a sound one at its end."""
    kinds: dict[str, str] = {}
    with running_agent(root, root / "log", quiet_s=0.1) as agent:
        for first in each(range(0, count, batch), "batches"):
            for number in range(first, min(first + batch, count)):
                kinds[f"{number:06}"] = _put(number, seed, agent, stuff)
            name = f"good{first:06}"
            os.rename(shutil.copytree(sound, root / "made" / name), agent.inbox / name)
            (agent.inbox / f"{name}.done").touch()
            kinds[name] = "sound phantom"
            _wait(agent, len(kinds))
    return _answers(root / "outbox", kinds)


def _put(number: int, seed: int, agent: Agent, stuff: Materials) -> str:
    folder = agent.folder / "made" / f"{number:06}"
    kind, study = make_study(number, seed, folder, stuff)
    inbox, name = agent.inbox, f"{number:06}{study.name}"
    for part in [path for path in folder.iterdir() if path != study and not path.is_dir()]:
        # the inbox is shared by many: a data file gets a name of its own, as its header says
        os.rename(part, inbox / f"{number:06}{part.name}")
        study.write_bytes(
            study.read_bytes().replace(part.name.encode(), f"{number:06}{part.name}".encode())
        )
    os.rename(study, inbox / name)
    (inbox / f"{name}.done").touch()
    return kind


def _wait(agent: Agent, expected: int) -> None:
    """Wait until every study has a report, or none came for `PATIENCE_S`."""
    reports, last_s = -1, time.monotonic()
    while time.monotonic() - last_s < PATIENCE_S:
        agent.process.require_alive()
        now = sum(1 for _ in (agent.folder / "outbox").glob("*/report.json"))
        if now != reports:
            reports, last_s = now, time.monotonic()
        if now >= expected and not any((agent.folder / "state" / "work").iterdir()):
            return
        time.sleep(0.2)


def _answers(outbox: Path, kinds: dict[str, str]) -> dict[str, Any]:
    """Read all reports: outcomes by kind, and what is wrong."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    known = {name for name, one in vars(errors).items() if isinstance(one, type)}
    untyped, longest_s, seen = [], 0.0, set[str]()
    for path in outbox.glob("*/report.json"):
        report = json.loads(path.read_bytes())
        name = Path(report["source"]).name
        number = name[:10] if name.startswith("good") else name[:6]
        seen.add(number)
        rejection = report["rejection"]
        outcome = rejection["kind"] if rejection else "read"
        outcomes[kinds.get(number, "unknown")][outcome] += 1
        if rejection and (rejection["internal"] or rejection["kind"] not in known):
            untyped.append({"study": name, "kind": outcome, "reason": rejection["reason"]})
        stages = {entry["stage"]: entry["took_s"] for entry in report["ledger"]}
        longest_s = max(longest_s, stages.get("read", 0.0) + stages.get("preprocess", 0.0))
    return {
        "outcomes": {kind: dict(found) for kind, found in sorted(outcomes.items())},
        "untyped": untyped,
        "unanswered": sorted(set(kinds) - seen),
        "sound_studies": sum(kind == "sound phantom" for kind in kinds.values()),
        "sound_studies_read": outcomes["sound phantom"]["read"],
        "longest_read_s": round(longest_s, 2),
    }


def notes_reads(root: Path) -> bool:
    """Return whether this filesystem notes the time of a read."""
    control = root / "control"
    control.write_text("x")
    forget_reads(control)
    control.read_text()
    return control.stat().st_atime != LONG_AGO_S


def forget_reads(path: Path) -> None:
    """Set the time of the last read before that of writing: then the next read is noted."""
    os.utime(path, (LONG_AGO_S, time.time()))


def _leaks(root: Path) -> Iterator[str]:
    """Name the outputs in which the patient of the files outside appears."""
    for top in ("outbox", "log", f"state/{DATABASE}"):
        place = root / top
        for path in place.rglob("*") if place.is_dir() else [place]:
            if path.is_file() and CANARY.encode() in path.read_bytes():
                yield str(path.relative_to(root))


class Door(StrEnum):
    """Where hostile data comes in."""

    FILES = "files"
    NETWORK = "network"


def bars(result: Result) -> Iterator[Bar]:
    """Yield what is required at each door that was tried."""
    if files := result.get("files"):
        untyped = len(files["untyped"]) + len(files["unanswered"])
        shown = f"{untyped} of {files['studies']}"
        yield Bar("hostile files and folders without a typed answer", untyped, 0, shown=shown)
        opened, leaks = files["files_read_outside"], len(files["leaks"])
        outside = None if opened is None else len(opened) + leaks
        shown = "not seen" if outside is None else ""
        yield Bar("files read outside of the inbox by hostile studies", outside, 0, shown=shown)
        lost = files["sound_studies"] - files["sound_studies_read"]
        yield Bar("sound studies lost among hostile ones", lost, 0)
        longest_s = files["longest_read_s"]
        yield Bar("longest reading of a hostile study", longest_s, READ_BAR_S, "{:.1f} s")
        what = "peak memory of a process that reads hostile studies"
        yield Bar(what, files["peak_mb"], PEAK_BAR_MB, "{:.0f} MB")
    if sent := result.get("senders"):
        lost, count = sent["sound_series"] - sent["reported"], sent["sound_series"]
        what = "sound series lost among hostile senders, C-STORE and STOW-RS"
        yield Bar(what, lost, 0, shown=f"{lost} of {count}")
        what = f"growth of the agent's memory under {sent['senders']} of them"
        yield Bar(what, sent["growth_mb"], GROWTH_BAR_MB, "{:.0f} MB")
        yield Bar("files that are left half received", sent["left_on_their_way"], 0)


@command(bars=bars, strict=True)
def fuzz(
    door: Annotated[
        list[Door] | None, typer.Option(help="Door that is tried; all if omitted.")
    ] = None,
    count: Annotated[int, typer.Option("--senders", min=1, help="Hostile senders.")] = 2000,
    seed: Seed = 1,
) -> dict[str, Any]:
    """Hostile files, associations and requests: untyped errors, hangs, leaks, memory, losses."""
    doors = door or list(Door)
    whole, small = prepare([whole_chest(1), SMALL], STUDIES)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="overread-fuzz-") as folder:
        root = Path(folder)
        for name in ("files", "senders"):
            (root / name).mkdir()
        if Door.FILES in doors:
            result["files"] = fuzz_files(
                root / "files", whole.folder, HOSTILE_STUDIES, BY_AGENT, seed
            )
        if Door.NETWORK in doors:
            result["senders"] = senders(root / "senders", files_of(small.folder), count, seed)
    return result
