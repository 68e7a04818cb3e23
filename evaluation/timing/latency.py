"""``overread-eval latency``: times of this program against those of an earlier commit, in turn.

Both trees have a cloud on loopback and one process that takes steps of a study
(`evaluation.timing.steps`). Every round takes each step with this program, then with the earlier
one. Starts of programs take long, so there are fewer rounds of them.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydicom
import typer

from evaluation.accuracy.detect import TIMES, stage_times
from evaluation.errors import MissingData, ServiceFailed
from evaluation.process_memory import cpu_s
from evaluation.run import Bar, Result, Table, command, each
from evaluation.world import START_S, log_tail, write_toml

ROOT = Path(__file__).resolve().parents[2]
STARTS = 2
"""Starts are measured in each second round."""

SIDES = ("now", "earlier")

AGAINST = Table(
    "against",
    {
        "what": "what", "now": "s (p95)", "earlier": "earlier s (p95)", "runs": "runs",
        "ratio": ("ratio", "{:.2f}"), "required": "required", "met": "met",
    },
    lambda result: [
        {**one, **{name: "{median:.3f} ({p95:.3f})".format(**one[name]) for name in SIDES}}
        for one in result["against"]
    ],
    "This program and commit {earlier_commit} in turn, medians",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A step and what it is given, or a start; ``bar`` of the ratio, or ``most_s`` of the clock."""

    what: str
    step: str
    given: str = ""
    measure: str = "cpu_s"
    bar: float | None = None
    most_s: float | None = None


LIDC, CMB, PLAIN = "lidc/lidc_0001", "ct/cmb_crc_01068", "uncompressed"

ROWS = (
    Row("read 133 slices, JPEG-LS", "read", LIDC, bar=0.58),
    Row("read 100 slices, JPEG-LS", "read", CMB, bar=0.66),
    Row("read 133 slices, uncompressed", "read", PLAIN, bar=0.30),
    Row("decode 133 slices, nothing else", "decode", LIDC),
    Row("whole volume in HU to candidates", "detect", LIDC, "wall_s", bar=0.6),
    Row("files to report, with the cloud", "study", LIDC, "wall_s", bar=0.45),
    Row("files to report, without a cloud", "alone", LIDC, "wall_s", bar=0.5),
    Row("one region at the cloud", "region", CMB, "wall_s", most_s=0.085),
    Row("23 regions at the cloud", "regions", LIDC, bar=0.45, most_s=0.25),
    Row("23 regions, most of them nodules", "regions", CMB),
    Row("`overread-edge screen`, user", "screen", LIDC, bar=0.45),
    Row("`overread-edge --version`", "version", measure="wall_s", most_s=0.3),
    Row("agent ready", "agent", measure="wall_s", most_s=2.0),
    Row("cloud ready", "cloud", measure="wall_s", most_s=3.0),
)
"""What is measured; times are CPU seconds of all processes, or those of the clock."""


@dataclass
class Tree:
    """A source tree: ``work`` is a folder for its files."""

    source: Path
    work: Path
    held: ExitStack = field(default_factory=ExitStack)

    def start(self, *words: str, **pipes: Any) -> subprocess.Popen[str]:
        """Start Python with this tree before all other packages."""
        own = {k: v for k, v in os.environ.items() if not k.startswith("OVERREAD_")}
        with (self.work / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", *words], cwd=self.work, stderr=log, text=True,
                env={**own, "PYTHONPATH": str(self.source)},
                **{"stdin": subprocess.DEVNULL, "stdout": log, **pipes},
            )  # fmt: skip

    def open(self) -> None:
        """Start the cloud and the process that takes steps."""
        self.cloud = self.held.enter_context(self._running("-m", "cloud", *self._serve("held")))
        self._wait(self.cloud, (self.work / "held").is_file)
        script, address = Path(__file__).with_name("steps.py"), (self.work / "held").read_text()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.steps = self.held.enter_context(self._running("-P", str(script), address, **pipes))

    def take(self, row: Row, given: str) -> dict[str, Any]:
        """Take a step once; CPU is that of all processes where others take part."""
        if (started := STARTED.get(row.step)) is not None:
            return started(self, given)
        assert self.steps.stdin
        assert self.steps.stdout
        pids = self.steps.pid, self.cloud.pid
        before_s = sum(map(cpu_s, pids))
        print(json.dumps([row.step, given]), file=self.steps.stdin, flush=True)
        if not (line := self.steps.stdout.readline()):
            raise self.failed(row.step)
        took: dict[str, Any] = json.loads(line)
        if row.step in ("study", "alone", "region", "regions"):
            took["cpu_s"] = sum(map(cpu_s, pids)) - before_s
        return took

    def screen(self, given: str) -> dict[str, Any]:
        """Read a study by the command; its user CPU."""
        out = self.work / "report"
        return self._timed("-m", "edge", "screen", given, "--cloud", "off", "--out", str(out))

    def version(self, _: str) -> dict[str, Any]:
        """Print the version."""
        return self._timed("-m", "edge", "--version")

    def agent(self, _: str) -> dict[str, Any]:
        """Start the agent until it says so in its log."""
        site, log = self.work / "site", self.work / "log"
        shutil.rmtree(site, ignore_errors=True)
        folders = {"inbox": "inbox", "outbox": "outbox", "state_dir": "state"}
        values = {setting: str(site / name) for setting, name in folders.items()}
        config = write_toml(self.work / "edge.toml", values)
        log.write_bytes(b"")
        ready = lambda: b"agent started" in log.read_bytes()  # noqa: E731
        return self._ready(ready, "-m", "edge", "run", "--config", str(config))

    def serve(self, _: str) -> dict[str, Any]:
        """Start a cloud until it serves."""
        (self.work / "ready").unlink(missing_ok=True)
        return self._ready((self.work / "ready").is_file, "-m", "cloud", *self._serve("ready"))

    def failed(self, what: str) -> ServiceFailed:
        """Return an error with the end of the log."""
        return ServiceFailed(f"{what}, {self.source}\n{log_tail(self.work / 'log')}")

    def _serve(self, name: str) -> tuple[str, ...]:
        return "serve", "--address", "127.0.0.1:0", "--ready-file", str(self.work / name)

    @contextmanager
    def _running(self, *words: str, **pipes: Any) -> Iterator[subprocess.Popen[str]]:
        process = self.start(*words, **pipes)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _wait(self, process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
        until_s = time.monotonic() + START_S
        while not ready():
            if process.poll() is not None or time.monotonic() > until_s:
                raise self.failed("did not start")
            time.sleep(0.002)

    def _ready(self, ready: Callable[[], bool], *words: str) -> dict[str, Any]:
        began_s = time.perf_counter()
        with self._running(*words) as process:
            self._wait(process, ready)
            return {"wall_s": time.perf_counter() - began_s, "cpu_s": cpu_s(process.pid)}

    def _timed(self, *words: str) -> dict[str, Any]:
        began_s, process = time.perf_counter(), self.start(*words)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise self.failed(" ".join(words))
        return {"wall_s": time.perf_counter() - began_s, "cpu_s": used.ru_utime}


STARTED = {"screen": Tree.screen, "version": Tree.version, "agent": Tree.agent, "cloud": Tree.serve}
"""Steps that are a program of their own."""


def bars(result: Result) -> Iterator[Bar]:
    """Yield the decoder's share; the other bars are in the table."""
    share = result["decoder_share"]
    yield Bar("share of the decoder in reading JPEG-LS", share, 0.7, "{:.0%}", least=True)


@command(TIMES, AGAINST, "{cpu}, {cores} cores", bars=bars)
def latency(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder with lidc/ and ct/.")],
    against: Annotated[
        Path, typer.Option(metavar="DIR", help="Checkout of an earlier commit, to compare with.")
    ],
    rounds: Annotated[int, typer.Option(min=2, help="Rounds; starts are in each second one.")] = 30,
) -> dict[str, Any]:
    """Times from files to report, of each step and of starts, against an earlier commit."""
    return compare(against, data, rounds)


def compare(earlier: Path, data: Path, rounds: int) -> dict[str, Any]:
    """Take all steps in turn with this program and with the tree ``earlier``.

    Returns the rows of `TABLE`, and the times of this program's stages.

    Raises:
        MissingData: ``earlier`` is no checkout, or ``data`` lacks a study.
    """
    commit = ["git", "-C", str(earlier), "rev-parse", "--short", "HEAD"]
    named = subprocess.run(commit, capture_output=True, text=True, check=False).stdout.strip()
    if not (earlier / "imaging" / "read.py").is_file() or not named:
        raise MissingData(earlier, "is no checkout of an earlier commit")
    found: dict[Row, list[tuple[dict[str, Any], ...]]] = {row: [] for row in ROWS}
    with ExitStack() as held:
        work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="overread-against-")))
        given = {name: str((data / name).resolve()) for name in (LIDC, CMB)}
        given |= {PLAIN: str(uncompressed(data / LIDC, work / PLAIN)), "": ""}
        trees = [Tree(ROOT, work / "now"), Tree(earlier.resolve(), work / "earlier")]
        for tree in trees:
            tree.work.mkdir()
            held.enter_context(tree.held)
            tree.open()
        for number in each(range(-1, rounds), "rounds"):
            for row in ROWS:
                if row.step not in STARTED or number % STARTS == 1:
                    both = tuple(tree.take(row, given[row.given]) for tree in trees)
                    found[row] += [both] * (number >= 0)  # the first of all is a warm-up
    rows = [as_dict(row, found[row]) for row in ROWS if found[row]]
    read_s, decode_s = (
        next(one["now"]["median"] for one, row in zip(rows, ROWS, strict=False) if row.step == step)
        for step in ("read", "decode")
    )
    studies = next(both for row, both in found.items() if row.step == "study")
    return {
        "earlier_commit": named,
        "against": rows,
        "decoder_share": decode_s / read_s,
        "stages": stage_times([now["stages_s"] for now, _ in studies]),
    }


def uncompressed(study: Path, folder: Path) -> Path:
    """Write a copy of a study without compression; return the folder."""
    folder.mkdir(parents=True)
    files = [file for file in sorted(study.glob("*")) if file.is_file()] if study.is_dir() else []
    for file in files:
        with suppress(pydicom.errors.InvalidDicomError):
            one = pydicom.dcmread(file)
            one.decompress()
            one.save_as(folder / file.name)
    if not files:
        raise MissingData(study, "is not there, expected a study in DICOM")
    return folder


def as_dict(row: Row, found: Sequence[tuple[dict[str, Any], ...]]) -> dict[str, Any]:
    """Return a row for JSON: median and p95 of both, the median ratio, and what is required."""
    ratios = [now[row.measure] / max(before[row.measure], 1e-9) for now, before in found]
    ratio, clock_s = float(np.median(ratios)), _median(found, 0, "wall_s")
    limits = [(ratio, row.bar, "{:g}"), (clock_s, row.most_s, "{:g} s of the clock")]
    set_ones = [(value, bar, form) for value, bar, form in limits if bar is not None]
    words = " or ".join(form.format(bar) for _, bar, form in set_ones)
    figures = {
        name: {"median": _median(found, n, row.measure),
               "p95": float(np.percentile([one[n][row.measure] for one in found], 95)),
               **{key: _median(found, n, key) for key in ("cpu_s", "wall_s")}}
        for n, name in enumerate(SIDES)
    }  # fmt: skip
    return {
        "what": row.what + (", CPU" if row.measure == "cpu_s" else ""),
        "runs": len(found), **figures, "ratio": ratio,
        "required": f"at most {words}" if words else None,
        "met": any(value <= bar for value, bar, _ in set_ones) if set_ones else None,
    }  # fmt: skip


def _median(found: Sequence[tuple[dict[str, Any], ...]], which: int, key: str) -> float:
    return float(np.median([one[which][key] for one in found]))
