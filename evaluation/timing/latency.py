"""``overread-eval latency``: times of this program against those of an earlier commit, in turn.

Both trees have a cloud on loopback and one process that takes steps of a study
(`evaluation.timing.steps`). Every round takes each step with this program, then with the earlier
one. Starts of programs take long: they are measured in each second round.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Self, cast

import numpy as np
import pydicom
import typer

from evaluation.accuracy.detect import TIMES, stage_times
from evaluation.errors import ServiceFailed
from evaluation.process_memory import cpu_s
from evaluation.run import Bar, Result, Table, command, each
from evaluation.world import START_S, log_tail, write_toml
from models.runtime import hardware
from models.runtime.errors import MissingData

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("now", "earlier")
Both = tuple[dict[str, Any], dict[str, Any]]
"""A step of both trees."""

AGAINST = Table(
    "against",
    {
        "what": "what", "now": "s (p95)", "earlier": "earlier s (p95)", "runs": "runs",
        "ratio": ("ratio", "{:.2f}"), "required": "required", "met": "met",
    },
    lambda result: [
        {**row, **{name: "{median:.3f} ({p95:.3f})".format(**row[name]) for name in SIDES}}
        for row in result["against"]
    ],
    "This program and commit {earlier_commit} in turn, medians",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A step, or a start; ``bar`` or ``without_vnni`` of the ratio, or ``most_s`` of the clock."""

    what: str
    step: str
    given: str = ""
    measure: str = "cpu_s"
    bar: float | None = 1.03
    without_vnni: float | None = None
    most_s: float | None = None


LIDC, CMB, PLAIN = "lidc/lidc_0001", "ct/cmb_crc_01068", "uncompressed"

ROWS = (
    Row("read 133 slices, JPEG-LS", "read", LIDC),
    Row("read 100 slices, JPEG-LS", "read", CMB),
    Row("read 133 slices, uncompressed", "read", PLAIN),
    Row("decode 133 slices, nothing else", "decode", LIDC, bar=None),
    Row("whole volume in HU to candidates", "detect", LIDC, "wall_s"),
    Row("lung box to candidates", "box", LIDC, without_vnni=0.30),
    Row("last slice to candidates", "arrive", LIDC, "wall_s", most_s=0.085),
    Row("files to report, with the cloud", "study", LIDC, "wall_s", bar=0.9, without_vnni=0.50),
    Row("files to report, without a cloud", "alone", LIDC, "wall_s"),
    Row("one region at the cloud", "region", CMB, "wall_s", most_s=0.085),
    Row("23 regions at the cloud", "regions", LIDC, without_vnni=0.40),
    Row("23 regions, most of them nodules", "regions", CMB, without_vnni=0.40),
    Row("`overread-edge screen`, user", "screen", LIDC),
    Row("`overread-edge --version`", "version", measure="wall_s", most_s=0.3),
    Row("agent ready", "agent", measure="wall_s", most_s=2.0),
    Row("cloud ready", "cloud", measure="wall_s", most_s=3.0),
)
"""What is measured; times are CPU seconds of all processes, or those of the clock."""


STARTS = ("screen", "version", "agent", "cloud")
"""Steps that are a program of their own, the last rows."""


@dataclass
class Tree:
    """A source tree, and a folder for its files."""

    source: Path
    work: Path

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """Run its cloud, and the process that takes steps."""
        with self._running("-m", "cloud", *self._serve("held")) as self._cloud:
            self._wait(self._cloud, (self.work / "held").is_file)
            given = str(Path(__file__).with_name("steps.py")), (self.work / "held").read_text()
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            with self._running("-P", *given, **pipes) as self._steps:
                yield self

    def take(self, step: str, given: str) -> dict[str, Any]:
        """Take a step once; return the seconds of CPU and of the clock."""
        site, log, ready = (self.work / name for name in ("site", "log", "ready"))
        if step == "screen":
            out = str(self.work / "report")
            return self._ended("-m", "edge", "screen", given, "--cloud", "off", "--out", out)
        if step == "version":
            return self._ended("-m", "edge", "--version")
        if step == "cloud":
            ready.unlink(missing_ok=True)
            return self._ready(ready.is_file, "-m", "cloud", *self._serve("ready"))
        if step == "agent":
            shutil.rmtree(site, ignore_errors=True)
            folders = {name: str(site / name) for name in ("inbox", "outbox", "state_dir")}
            config = write_toml(self.work / "edge.toml", folders)
            log.write_bytes(b"")
            started = ("-m", "edge", "run", "--config", str(config))
            return self._ready(lambda: b"agent started" in log.read_bytes(), *started)
        pids = self._steps.pid, self._cloud.pid
        before_s = sum(map(cpu_s, pids))
        print(json.dumps([step, given]), file=self._steps.stdin, flush=True)
        if not (line := cast(IO[str], self._steps.stdout).readline()):
            raise self._failed(step)
        took: dict[str, Any] = json.loads(line)
        if step in ("study", "alone", "region", "regions"):  # their children and the cloud work too
            took["cpu_s"] = sum(map(cpu_s, pids)) - before_s
        return took

    def _start(self, *words: str, **pipes: Any) -> subprocess.Popen[str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith("OVERREAD_")}
        with (self.work / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", *words], cwd=self.work, stderr=log, text=True,
                env={**own, "PYTHONPATH": str(self.source)},
                **{"stdin": subprocess.DEVNULL, "stdout": log, **pipes},
            )  # fmt: skip

    def _failed(self, what: str) -> ServiceFailed:
        return ServiceFailed(f"{what}, {self.source}\n{log_tail(self.work / 'log')}")

    def _serve(self, name: str) -> tuple[str, ...]:
        return "serve", "--address", "127.0.0.1:0", "--ready-file", str(self.work / name)

    @contextmanager
    def _running(self, *words: str, **pipes: Any) -> Iterator[subprocess.Popen[str]]:
        with self._start(*words, **pipes) as process:
            try:
                yield process
            finally:
                process.kill()

    def _wait(self, process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
        until_s = time.monotonic() + START_S
        while not ready():
            if process.poll() is not None or time.monotonic() > until_s:
                raise self._failed("did not start")
            time.sleep(0.002)

    def _ready(self, ready: Callable[[], bool], *words: str) -> dict[str, Any]:
        began_s = time.perf_counter()
        with self._running(*words) as process:
            self._wait(process, ready)
            return {"wall_s": time.perf_counter() - began_s, "cpu_s": cpu_s(process.pid)}

    def _ended(self, *words: str) -> dict[str, Any]:
        began_s, process = time.perf_counter(), self._start(*words)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise self._failed(" ".join(words))
        return {"wall_s": time.perf_counter() - began_s, "cpu_s": used.ru_utime}


def bars(result: Result) -> Iterator[Bar]:
    """Yield the decoder's share; the other bars are in the table."""
    share = result["decoder_share"]
    yield Bar("share of the decoder in reading JPEG-LS", share, 0.7, "{:.0%}", least=True)


@command(TIMES, AGAINST, "{cpu}, {cores} cores", bars=bars)
def latency(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder with lidc/ and ct/.")],
    against: Annotated[
        str, typer.Option(metavar="COMMIT", help="Earlier commit, to compare with.")
    ],
    rounds: Annotated[int, typer.Option(min=2, help="Rounds; starts are in each second one.")] = 30,
) -> dict[str, Any]:
    """Times from files to report, of each step and of starts, against an earlier commit."""
    found: dict[Row, list[Both]] = {row: [] for row in ROWS}
    with ExitStack() as held:
        work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="overread-against-")))
        named = held.enter_context(checked_out(against, work / "checkout"))
        given = {name: str((data / name).resolve()) for name in (LIDC, CMB)}
        given |= {PLAIN: str(uncompressed(data / LIDC, work / PLAIN)), "": ""}
        trees = []
        for side, source in zip(SIDES, (ROOT, work / "checkout"), strict=True):
            (work / side).mkdir()
            trees.append(held.enter_context(Tree(source, work / side).opened()))
        for number in each(range(-1, rounds), "rounds"):  # the first is a warm-up
            for row in ROWS if number % 2 else ROWS[: -len(STARTS)]:
                both = [tree.take(row.step, given[row.given]) for tree in trees]
                found[row] += [(both[0], both[1])] * (number >= 0)
    by_step = {row.step: both for row, both in reversed(found.items())}  # the first of each step
    read_s, decode_s = (_median(by_step[step], 0, "cpu_s") for step in ("read", "decode"))
    return {
        "earlier_commit": named,
        "against": [as_dict(row, both) for row, both in found.items()],
        "decoder_share": decode_s / read_s,
        "stages": stage_times([now["stages_s"] for now, _ in by_step["study"]]),
    }


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[str]:
    """Check a commit out into a new folder for the time of the context; yield its short name.

    Raises:
        ServiceFailed: there is no such commit.
    """
    _git("worktree", "add", "--detach", str(folder), commit)
    try:
        yield _git("rev-parse", "--short", commit)
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceFailed(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def uncompressed(study: Path, folder: Path) -> Path:
    """Write a copy of a study without compression; return the folder."""
    if not (files := sorted(study.glob("*.dcm"))):
        raise MissingData(study, "is not there, expected a study in DICOM")
    folder.mkdir(parents=True)
    for file in files:
        one = pydicom.dcmread(file)
        one.decompress()
        one.save_as(folder / file.name)
    return folder


def as_dict(row: Row, found: Sequence[Both]) -> dict[str, Any]:
    """Return a row for JSON: median and p95 of both, the median ratio, and what is required."""
    ratio = float(np.median([now[row.measure] / before[row.measure] for now, before in found]))
    figures = {
        name: {
            **{key: _median(found, n, key) for key in ("cpu_s", "wall_s")},
            "median": _median(found, n, row.measure),
            "p95": float(np.percentile([one[n][row.measure] for one in found], 95)),
        }
        for n, name in enumerate(SIDES)
    }
    bar = row.without_vnni if hardware.adds_in_16_bits() else row.bar
    limits = [(ratio, bar, "{:g}"), (figures["now"]["wall_s"], row.most_s, "{:g} s of the clock")]
    known = [(value <= most, form.format(most)) for value, most, form in limits if most is not None]
    required = " or ".join(words for _, words in known)
    return {
        "what": row.what + (", CPU" if row.measure == "cpu_s" else ""),
        "runs": len(found), **figures, "ratio": ratio,
        "required": f"at most {required}" if known else None,
        "met": any(is_met for is_met, _ in known) if known else None,
    }  # fmt: skip


def _median(found: Sequence[Both], which: int, key: str) -> float:
    return float(np.median([one[which][key] for one in found]))
