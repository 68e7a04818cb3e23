"""The shipped models through real processes: cloud, edge and agent, from files to report."""

import csv
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest

from imaging.dicom.writer import write_series
from imaging.phantom.phantom import PhantomSpec
from imaging.volume import Nodule, Triple
from tests.conftest import Draw

DEADLINE_S = 600.0
LIMIT_S = 900.0
"""No process takes longer on any machine, unless it hangs."""

Process = subprocess.Popen[bytes]
SPEC = PhantomSpec(seed=3, spacing_mm=(3.0, 1.25, 1.25), size_mm=(210.0, 340.0, 340.0),
                   nodule_count=2, diameter_mm=(12.0, 20.0))  # fmt: skip


@dataclass(frozen=True)
class Study:
    folder: Path
    nodules: tuple[Nodule, ...]


@dataclass(frozen=True)
class Home:
    """Where the processes are at home: nothing of this machine's settings reaches them."""

    folder: Path

    def command(self, *arguments: str | Path) -> tuple[list[str], dict[str, str]]:
        """``python -m`` with its arguments, and its environment."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("OVERREAD_")}
        return [sys.executable, "-m", *map(str, arguments)], kept | {"HOME": str(self.folder)}

    @contextmanager
    def running(self, *arguments: str | Path) -> Iterator[Process]:
        """A process that is killed at the end of the context if it still runs."""
        command, environment = self.command(*arguments)
        with subprocess.Popen(command, env=environment, cwd=self.folder) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def cloud(self, folder: Path) -> Iterator[tuple[Process, str]]:
        ready = folder / "ready"
        serve = ("cloud", "serve", "--address", "127.0.0.1:0", "--ready-file", ready)
        with self.running(*serve) as process:
            wait_for(ready.is_file, process)
            yield process, ready.read_text()


def wait_for(ready: Callable[[], bool], process: Process) -> None:
    """Returns when ``ready`` says so; fails where the process ends or hangs first."""
    until = time.monotonic() + LIMIT_S
    while not ready():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < until
        time.sleep(0.02)


def screening(study: Path, cloud: str, out: Path) -> tuple[str | Path, ...]:
    options = ("--cloud", cloud, "--out", out, "--deadline", str(DEADLINE_S))
    return ("edge", "screen", study, *options)


def screened(home: Home, study: Path, cloud: str, out: Path) -> tuple[int, dict[str, Any]]:
    with home.running(*screening(study, cloud, out)) as process:
        status = process.wait(LIMIT_S)
    return status, report_in(out)


def report_in(folder: Path) -> dict[str, Any]:
    """The report of a folder; its page and pictures are there too."""
    assert "Not a medical device" in (folder / "report.html").read_text()
    assert (folder / "overview.jpg").read_bytes().startswith(b"\xff\xd8")
    return dict(json.loads((folder / "report.json").read_text()))


def is_found(centre_mm: Triple, diameter_mm: float, report: dict[str, Any]) -> bool:
    places = [finding["centre_mm"] for finding in report["findings"]]
    return any(math.dist(place, centre_mm) < diameter_mm / 2 for place in places)


def some_found(nodules: Sequence[Nodule], report: dict[str, Any]) -> bool:
    """Whether one of the nodules, all of 10 mm and more, is found."""
    assert min(nodule.diameter_mm for nodule in nodules) >= 10
    return any(is_found(n.centre_mm, n.diameter_mm, report) for n in nodules)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """One home for all, so that the engines are compared once."""
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def chest(drawn: Draw, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A phantom of 70 slices of 3 mm with two nodules, as a DICOM series."""
    phantom = drawn(SPEC)
    folder = tmp_path_factory.mktemp("studies") / "chest"
    write_series(phantom.volume, folder, seed=SPEC.seed)
    return Study(folder, phantom.nodules)


@pytest.fixture(scope="session")
def cloud(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with home.cloud(tmp_path_factory.mktemp("cloud")) as (_process, address):
        yield address


def test_edge_and_cloud_read_a_study(home: Home, chest: Study, cloud: str, tmp_path: Path) -> None:
    status, report = screened(home, chest.folder, cloud, tmp_path)
    assert status == 0
    assert (report["status"], report["second_reading"]) == ("final", "complete")
    assert some_found(chest.nodules, report)
    assert (tmp_path / "finding_01.jpg").is_file()
    assert set(report["models"]) == {"edge", "cloud"}
    images = {data.SOPInstanceUID: data for data in map(pydicom.dcmread, chest.folder.iterdir())}
    for finding in report["findings"]:
        image = images[finding["location"]["sop_instance_uid"]]
        assert image.InstanceNumber == finding["location"]["image_number"]
        assert abs(image.ImagePositionPatient[2] - finding["centre_mm"][2]) <= 1.5


@pytest.mark.long
@pytest.mark.parametrize(
    ("table", "wanted", "most"),
    [
        ("lidc_slabs/nodules.csv", {"patient": "LIDC-IDRI-0001", "nodule": "nodule-0"}, 3),
        ("lidc_slabs/nodules.csv", {"patient": "LIDC-IDRI-0003", "nodule": "nodule-1"}, 3),
        ("scans.csv", {"scan": "cmb_crc_01068"}, math.inf),  # has at least seven lesions
    ],
    ids=["a slab", "another slab", "a whole chest"],
)
def test_the_known_lesion_of_a_real_scan(
    table: str, wanted: dict[str, str], most: float, home: Home, cloud: str, shared_data: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A nodule wholly inside a few slices and little else, or a metastasis of another scanner."""
    path = shared_data / "ct" / table
    row = row_of(path, **wanted)
    status, report = screened(home, path.parent / next(iter(wanted.values())), cloud, tmp_path)
    x, y, z = (float(row.get(f"{axis}_mm") or row[axis]) for axis in "xyz")
    assert status == 0
    assert is_found((x, y, z), float(row["diameter_mm"]), report)
    assert len(report["findings"]) <= most


def row_of(table: Path, **wanted: str) -> dict[str, str]:
    with table.open(newline="") as file:
        return next(row for row in csv.DictReader(file) if wanted.items() <= row.items())
