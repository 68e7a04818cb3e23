"""A picture of a phantom above a real scan, the same planes of both in a lung window.

    python -m evaluation.phantom_picture --real DIR --out docs/phantom.png

The phantom is taken as the real scan was: its slice spacing and its pixel spacing. The real scan
in `docs/phantom.png` is of the collection QIN LUNG CT (The Cancer Imaging Archive, CC BY 3.0);
the caption under the picture says so, or what ``--credit`` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from imaging.lungs import find_lungs
from imaging.phantom import PhantomSpec, make_phantom
from imaging.read import read_study
from imaging.volume import HuArray, Triple, UInt8Array

_WINDOW_HU = (-1350.0, 150.0)
_TILE_PX = 290
_STRIP_PX = 20
_CREDIT = "QIN LUNG CT, The Cancer Imaging Archive, CC BY 3.0; windowed, reduced"


def main(
    real: Annotated[Path, typer.Option(help="Folder of a real chest CT series (DICOM).")],
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the phantom.")] = 9,
    credit: Annotated[str, typer.Option(help="Whose the real scan is.")] = _CREDIT,
) -> None:
    """Writes the picture, phantom above, real scan below."""
    volume = read_study(real).volume
    scan, spacing = volume.hu, volume.geometry.spacing_mm
    size = (300.0, scan.shape[1] * spacing[1], scan.shape[2] * spacing[2])
    spec = PhantomSpec(seed=seed, spacing_mm=spacing, size_mm=size, dose_noise_hu=12.0)
    phantom = make_phantom(spec).volume.hu
    rows = [
        _labelled(_planes(phantom, spacing, "phantom"), f"Synthetic phantom, seed {seed}"),
        _labelled(_planes(np.maximum(scan, -1024), spacing, str(real)), f"Real scan: {credit}"),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(_encoded(np.vstack(rows)))
    typer.echo(f"{out}: {out.stat().st_size // 1000} kB")


def _planes(hu: HuArray, spacing_mm: Triple, source: str) -> UInt8Array:
    """Two axial planes, one coronal and one sagittal, chosen by where the lungs are."""
    lungs = find_lungs(hu, spacing_mm, source)
    z, y, x = zip(lungs.start, lungs.stop, strict=True)
    axial = [hu[_within(z, part)] for part in (0.38, 0.55)]
    coronal = hu[::-1, _within(y, 0.54)]
    sagittal = hu[::-1, :, _within(x, 0.24)]
    tall = spacing_mm[0] / spacing_mm[1]
    tiles = [_tile(p, 1.0) for p in axial] + [_tile(p, tall) for p in (coronal, sagittal)]
    return np.hstack(tiles)


def _within(ends: tuple[int, int], part: float) -> int:
    return round(ends[0] + part * (ends[1] - ends[0]))


def _tile(plane: HuArray, tall: float) -> UInt8Array:
    """The plane in the window, as wide as a tile, on black, cut to a tile's height."""
    low, high = _WINDOW_HU
    grey = np.clip((plane.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    square = cv2.resize(grey, None, fx=1.0, fy=tall, interpolation=cv2.INTER_LINEAR)
    height = round(square.shape[0] * _TILE_PX / square.shape[1])
    shrunk = cv2.resize(square, (_TILE_PX, height), interpolation=cv2.INTER_AREA)[:_TILE_PX]
    tile = np.zeros((_TILE_PX, _TILE_PX), dtype=np.uint8)
    top = (_TILE_PX - len(shrunk)) // 2
    tile[top : top + len(shrunk)] = np.rint(shrunk)
    return tile


def _labelled(row: UInt8Array, text: str) -> UInt8Array:
    strip = np.full((_STRIP_PX, row.shape[1]), 24, dtype=np.uint8)
    cv2.putText(strip, text, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, 235, 1, cv2.LINE_AA)
    return np.vstack([row, strip])


def _encoded(picture: UInt8Array) -> bytes:
    """PNG; 64 greys, which the eye does not miss and which halve the file."""
    done, data = cv2.imencode(".png", picture & 0xFC, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be encoded as PNG")
    return data.tobytes()


if __name__ == "__main__":
    typer.run(main)
