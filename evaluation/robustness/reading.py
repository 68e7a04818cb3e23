"""``overread-eval reading``: peak memory and time of large and of hostile studies.

Each is read by ``overread-edge screen`` as a process of its own, without a cloud. The large study
is a phantom with 800 slices of 512 x 512. The others are files of up to 200 MB that inflate, that
announce gigabytes, or that state a body of many metres. Status 1 if one passes a limit.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import SimpleITK as sitk
import typer

from evaluation.common.cli import Json, each, show
from evaluation.common.phantoms import prepare, whole_chest
from evaluation.robustness.hostile import Materials, bomb_of, materials
from evaluation.robustness.peak import peak_memory
from imaging.dicom.writer import write_series
from imaging.read import read_study
from imaging.volume import Geometry, Volume
from models.markdown import Rows
from models.runtime import hardware

LARGE = "800 slices of 512 x 512"
LARGE_MB, HOSTILE_MB, HOSTILE_S = 1200, 4096, 60.0
"""Limits: memory of all processes for the large study; of each, and time, for the others."""


def studies(folder: Path, phantoms: Path) -> Mapping[str, Callable[[], Path]]:
    """Return what makes each study; the folder is for its files."""
    stuff = materials(folder / "elsewhere")

    def one(kind: str) -> Callable[[], Path]:
        return lambda: _bomb(kind, folder / kind, stuff)

    bombs = {f"bomb: {kind}": one(kind) for kind in ("deflated", "nii.gz", "nrrd", "mha", "metres")}
    return {
        LARGE: lambda: large(prepare([whole_chest(1)], phantoms)[0].folder, folder / "large"),
        "200 MB of 64-bit numbers": lambda: _doubles(folder / "doubles.nii"),
        **bombs,
    }


def large(phantom: Path, folder: Path) -> Path:
    """Write the phantom again with 800 slices of 512 x 512."""
    volume = read_study(phantom).volume
    z, y, x = volume.shape
    hu = np.full((800, 512, 512), -1000, np.int16)
    hu[:, :y, :x] = volume.hu[np.arange(800) * z // 800]
    old = volume.geometry
    spacing = (old.spacing_mm[0] * z / 800, *old.spacing_mm[1:])
    write_series(Volume(hu, Geometry(spacing, old.origin_mm, old.direction)), folder)
    return folder


def _bomb(kind: str, folder: Path, stuff: Materials) -> Path:
    folder.mkdir()
    return bomb_of(kind, folder, Random(1), stuff)


def _doubles(file: Path) -> Path:
    values = np.random.default_rng(1).normal(-500, 400, (100, 512, 512))
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.7, 0.7, 3.0))
    sitk.WriteImage(image, str(file))
    return file


def measure(study: Path, out: Path) -> dict[str, Any]:
    """Read one study with the command; its outcome, seconds, and peak memory in MB."""
    line = [sys.executable, "-m", "edge", "screen", str(study), "--cloud", "off", "--out", str(out)]
    files = [path for path in study.rglob("*") if path.is_file()] if study.is_dir() else [study]
    began = time.monotonic()
    with (
        subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
        peak_memory(process.pid, together=True) as peak,
    ):
        process.wait()
    report = json.loads((out / "report.json").read_bytes())
    rejection = report["rejection"]
    return {
        "mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "outcome": rejection["kind"] if rejection else "read",
        "seconds": round(time.monotonic() - began, 1),
        "program_peak_mb": round(peak.own_mb),
        "child_peak_mb": round(peak.child_mb),
        "together_peak_mb": round(peak.together_mb),
    }


def reading_command(as_json: Json = False) -> None:
    """Peak memory and time of a large study, and of small files that inflate to gigabytes."""
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = studies(folder, Path("runs/studies"))
        for number, (study, make) in enumerate(each(made.items(), "studies")):
            rows[study] = measure(make(), folder / f"report{number}")
    result = {"cpu": hardware.cpu_name(), "cores": hardware.cores(), "studies": rows}
    shown = f"{result['cores']} cores of {result['cpu']}."
    show(result, as_json, table(rows), shown)
    if any(map(is_beyond, rows, rows.values())):
        raise typer.Exit(1)


def is_beyond(study: str, row: Mapping[str, Any]) -> bool:
    """Return whether the study passes its limits."""
    if study == LARGE:
        return bool(row["together_peak_mb"] > LARGE_MB or row["outcome"] != "read")
    most = max(row["program_peak_mb"], row["child_peak_mb"])
    return bool(most > HOSTILE_MB or row["seconds"] > HOSTILE_S)


def table(rows: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Return the table of all studies."""
    heads = ("study", "MB", "outcome", "s", "program MB", "child MB", "together MB")
    keys = ("mb", "outcome", "seconds", "program_peak_mb", "child_peak_mb", "together_peak_mb")
    cells = [[study, *(str(row[key]) for key in keys)] for study, row in rows.items()]
    return Rows(heads, cells, "Reading large and hostile studies")
