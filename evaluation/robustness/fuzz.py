"""``overread-eval fuzz``: hostile files and folders for the real agent, and what it makes of them.

The agent is ``overread-edge run`` as a process of its own. Hostile studies go into its inbox in
batches, each with a sound phantom at its end. Every study must get a report: its findings, or a
refusal of a known kind. The agent writes each step to the disk, which takes time, so the other
studies are read beside it in the same child processes, without an agent. No file outside of the
inbox may be opened, and none of what is in it may appear in an output. Status 1 if anything is
amiss.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from edge.settings.core import EdgeSettings
from evaluation.common.cli import Json, each, show
from evaluation.common.phantoms import prepare, whole_chest
from evaluation.common.processes import Process, running
from evaluation.robustness.hostile import CANARY, Materials, make_study, materials
from evaluation.robustness.peak import peak_memory
from imaging import errors
from imaging.isolation.reader import IsolatedReader, ReadLimits
from models.markdown import Rows
from models.runtime import hardware

BATCH = 250
"""Hostile studies between two sound ones."""
PATIENCE_S = 180.0
"""A batch that brings no report for this long hangs: reading a study takes 60 s at most."""
LONG_AGO_S = 1_000_000_000


def fuzz(
    root: Path, phantoms: Path, count: int, by_agent: int, seed: int, batch: int = BATCH
) -> dict[str, Any]:
    """Give hostile studies to an agent below ``root``, and to a reader; returns what came of them.

    ``by_agent`` of the ``count`` studies go to the agent.
    """
    stuff = materials(root / "elsewhere")
    outside = [path for path in (root / "elsewhere").rglob("*") if path.is_file()]
    sees_reads = notes_reads(root)
    for path in outside:
        forget_reads(path)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as beside:
        direct = beside.submit(_read_directly, root, range(by_agent, count), seed, stuff)
        found = _through_agent(root, phantoms, by_agent, batch, seed, stuff)
    for name, outcomes in direct.result()["outcomes"].items():
        mine = Counter(found["outcomes"].get(name, {}))
        found["outcomes"][name] = dict(mine + outcomes)
    found["untyped"] += direct.result()["untyped"]
    for key in ("longest_read_s", "child_peak_mb"):
        found[key] = max(found[key], direct.result()[key])
    found["seconds"] = round(time.monotonic() - began, 1)
    found["files_read_outside"] = (
        sorted(path.name for path in outside if path.stat().st_atime != LONG_AGO_S)
        if sees_reads
        else None
    )
    found["leaks"] = sorted(_leaks(root))
    machine = {"cpu": hardware.cpu_name(), "cores": hardware.cores()}
    return {"studies": count, "by_agent": by_agent, "seed": seed, **machine, **found}


def _read_directly(root: Path, numbers: range, seed: int, stuff: Materials) -> dict[str, Any]:
    """Read and preprocess studies in child processes, as the agent does."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    untyped, longest_s, peak_mb = [], 0.0, 0.0
    settings = EdgeSettings()
    limits = ReadLimits(settings.read_memory_mb)
    with IsolatedReader(limits) as reader:
        for number in numbers:
            folder = root / "direct" / f"{number:06}"
            kind, study = make_study(number, seed, folder, stuff)
            began = time.monotonic()
            try:
                reader.preprocess(reader.read(study).volume, study)
                outcome = "read"
            except errors.StudyError as error:
                outcome = error.kind
            except Exception as error:  # it is counted as amiss
                outcome = type(error).__name__
                untyped.append({"study": f"{number:06}", "kind": outcome, "reason": str(error)})
            longest_s = max(longest_s, time.monotonic() - began)
            peak_mb = max(peak_mb, reader.peak_mb)
            outcomes[kind][outcome] += 1
            shutil.rmtree(folder)
    return {
        "outcomes": outcomes,
        "untyped": untyped,
        "longest_read_s": round(longest_s, 2),
        "child_peak_mb": round(peak_mb),
    }


def _through_agent(
    root: Path, phantoms: Path, count: int, batch: int, seed: int, stuff: Materials
) -> dict[str, Any]:
    """Put studies into the inbox of an agent in batches, each with a sound one at its end."""
    sound = prepare([whole_chest(1)], phantoms)[0].folder
    inbox = root / "inbox"
    command = [sys.executable, "-m", "edge", "run", "--config", str(_config(root))]
    kinds: dict[str, str] = {}
    with running("the agent", command, root / "log") as agent:
        agent.wait_until(inbox.is_dir, "make its inbox", PATIENCE_S)
        with peak_memory(agent.pid) as peak:
            for first in each(range(0, count, batch), "batches"):
                for number in range(first, min(first + batch, count)):
                    kinds[f"{number:06}"] = _put(number, seed, root, stuff)
                name = f"good{first:06}"
                os.rename(shutil.copytree(sound, root / "made" / name), inbox / name)
                (inbox / f"{name}.done").touch()
                kinds[name] = "sound phantom"
                _wait(root, len(kinds), agent)
    memory = {"agent_peak_mb": round(peak.own_mb), "child_peak_mb": round(peak.child_mb)}
    return {**_answers(root, kinds), **memory}


def _config(root: Path) -> Path:
    config = root / "edge.toml"
    folders = "".join(f'{n} = "{root / n}"\n' for n in ("inbox", "outbox"))
    config.write_text(f'{folders}state_dir = "{root / "state"}"\nquiet_s = 0.1\npoll_s = 0.05\n')
    return config


def _put(number: int, seed: int, root: Path, stuff: Materials) -> str:
    """Make one study beside the inbox, and move it in as a sender would; returns its kind."""
    folder = root / "made" / f"{number:06}"
    kind, study = make_study(number, seed, folder, stuff)
    inbox, name = root / "inbox", f"{number:06}{study.name}"
    for part in [path for path in folder.iterdir() if path != study and not path.is_dir()]:
        # the inbox is shared by many: a data file gets a name of its own, as its header says
        os.rename(part, inbox / f"{number:06}{part.name}")
        study.write_bytes(
            study.read_bytes().replace(part.name.encode(), f"{number:06}{part.name}".encode())
        )
    os.rename(study, inbox / name)
    (inbox / f"{name}.done").touch()
    return kind


def _wait(root: Path, expected: int, agent: Process) -> None:
    """Wait until every study has a report, or none came for `PATIENCE_S`."""
    reports, last = -1, time.monotonic()
    while time.monotonic() - last < PATIENCE_S:
        agent.require_alive()
        now = sum(1 for _ in (root / "outbox").glob("*/report.json"))
        if now != reports:
            reports, last = now, time.monotonic()
        if now >= expected and not any((root / "state" / "work").iterdir()):
            return
        time.sleep(0.5)


def _answers(root: Path, kinds: dict[str, str]) -> dict[str, Any]:
    """Read all reports: outcomes by kind, and what is amiss."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    known = {name for name, one in vars(errors).items() if isinstance(one, type)}
    untyped, longest_s, seen = [], 0.0, Counter[str]()
    for path in (root / "outbox").glob("*/report.json"):
        report = json.loads(path.read_bytes())
        name = Path(report["source"]).name
        number = name[:10] if name.startswith("good") else name[:6]
        seen[number] += 1
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
        "unanswered": sorted(set(kinds) - set(seen)),
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
    for top in ("outbox", "log", "state/spool.sqlite3"):
        place = root / top
        for path in place.rglob("*") if place.is_dir() else [place]:
            if path.is_file() and CANARY.encode() in path.read_bytes():
                yield str(path.relative_to(root))


def fuzz_command(
    count: Annotated[int, typer.Option(min=1, help="Hostile studies.")] = 5000,
    by_agent: Annotated[int, typer.Option(min=1, help="Those of them that the agent gets.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the studies.")] = 1,
    at: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the agent, kept afterwards.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hostile files and folders for the agent: counts untyped errors, hangs and files opened."""
    with tempfile.TemporaryDirectory() as folder:
        root = at or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        mine = min(by_agent, count)
        result = fuzz(root.resolve(), Path("runs/studies"), count, mine, seed)
    show(result, as_json, table(result), _summary(result))
    if is_amiss(result):
        raise typer.Exit(1)


def is_amiss(result: dict[str, Any]) -> bool:
    """Return whether a study had no typed answer, or a file outside was read."""
    lost = result["sound_studies"] != result["sound_studies_read"]
    return bool(
        result["untyped"]
        or result["unanswered"]
        or result["files_read_outside"]
        or result["leaks"]
        or lost
    )


def table(result: dict[str, Any]) -> Rows:
    """Return the table of outcomes by kind of study."""
    cells = []
    for kind, found in result["outcomes"].items():
        refused = {k: n for k, n in sorted(found.items()) if k != "read"}
        words = ", ".join(f"{n} {k}" for k, n in refused.items())
        cells.append([kind, f"{sum(found.values())}", f"{found.get('read', 0)}", words])
    return Rows(("studies", "number", "read", "refused"), cells, "Hostile studies")


def _summary(result: dict[str, Any]) -> str:
    opened = result["files_read_outside"]
    outside = "cannot be seen on this filesystem" if opened is None else f"{len(opened)}"
    return (
        f"{result['by_agent']} of {result['studies']} through the agent. "
        f"Without a typed answer: {len(result['untyped'])}. Without any: "
        f"{len(result['unanswered'])}. Sound studies read: {result['sound_studies_read']} of "
        f"{result['sound_studies']}. Files read outside of the inbox: {outside}. Outputs with "
        f"their content: {len(result['leaks'])}. Longest reading: {result['longest_read_s']} s. "
        f"Peak memory: agent {result['agent_peak_mb']} MB, child {result['child_peak_mb']} MB. "
        f"{result['seconds']:.0f} s on {result['cores']} cores of {result['cpu']}."
    )
