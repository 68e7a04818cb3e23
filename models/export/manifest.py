"""Writing artifacts: the file under its name, and its entry in the manifest."""

from __future__ import annotations

import hashlib
import os
import tomllib
from pathlib import Path
from typing import Any

import onnx
import tomli_w

from models.runtime.artifacts import WEIGHTS, every

LICENCE = "Apache-2.0"
ATTRIBUTION = (
    "Trained on LIDC-IDRI (The Cancer Imaging Archive, CC BY 3.0, doi "
    "10.7937/K9/TCIA.2015.LO9QL9SX), with the marks of LUNA16 (CC BY 4.0) in cubes published by "
    "NODE21 (Apache-2.0), and on QIN LUNG CT and Lung-Fused-CT-Pathology (TCIA, CC BY 3.0)."
)


def register(
    name: str,
    model: onnx.ModelProto,
    *,
    kind: str,
    precision: str,
    parent: str,
    method: str = "",
    settings: dict[str, Any],
    metrics: dict[str, Any] | None = None,
    folder: Path = WEIGHTS,
) -> None:
    """Saves ``model`` as `name.onnx` and enters it; its version is the content's hash.

    ``method`` says in a few words how it was made from ``parent``.
    """
    content = model.SerializeToString()
    digest = hashlib.sha256(content).hexdigest()
    _replace(folder / f"{name}.onnx", content)
    entry = {
        "file": f"{name}.onnx",
        "sha256": digest,
        "version": digest[:12],
        "kind": kind,
        "precision": precision,
        "parent": parent,
        "method": method,
        "licence": LICENCE,
        "attribution": ATTRIBUTION,
        "settings": settings,
        "metrics": metrics or {},
    }
    _write({**_entries(folder), name: entry}, folder)


def amend(name: str, part: str, values: dict[str, Any], folder: Path = WEIGHTS) -> None:
    """Sets ``values`` in an entry's ``settings`` or ``metrics``; what else stands there stays."""
    entries = _entries(folder)
    entries[name][part] = {**entries[name].get(part, {}), **values}
    _write(entries, folder)


def _entries(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.toml"
    return tomllib.loads(path.read_text()) if path.exists() else {}


def _write(entries: dict[str, Any], folder: Path) -> None:
    _replace(folder / "manifest.toml", tomli_w.dumps(entries).encode())
    every.cache_clear()


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
