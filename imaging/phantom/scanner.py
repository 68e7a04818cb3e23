"""Scan the anatomy of a phantom: slice thickness, sharpness and noise."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from imaging.volume import HuArray

Kernel = Literal["soft", "standard", "sharp"]
KERNELS: tuple[Kernel, ...] = ("soft", "standard", "sharp")
IMITATED = {"soft": "STANDARD", "standard": "DETAIL", "sharp": "BONE"}
"""For each kernel the name of the one that it imitates, by the names of GE: STANDARD is soft."""
Plane = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Response:
    """A reconstruction kernel: blur of edges, their enhancement, and the spectrum of the noise.

    The noise power rises with the frequency f (per mm), as the ramp filter makes it, and is cut
    off by the kernel: (f + 0.01) * exp(-(f / cut)^2).
    """

    blur_mm: float
    enhance: float
    cut_per_mm: float


_KERNELS: dict[str, _Response] = {
    "soft": _Response(0.62, 0.0, 0.28),
    "standard": _Response(0.48, 0.15, 0.42),
    "sharp": _Response(0.36, 0.55, 0.75),
}


@dataclass(frozen=True)
class Scanner:
    """The scan protocol: ``spacing_mm`` ``(z, y, x)`` of the result, noise in HU."""

    spacing_mm: tuple[float, float, float]
    kernel: Kernel
    noise_hu: float


def scan(
    anatomy: HuArray,
    fine_mm: float,
    slices: int,
    scanner: Scanner,
    seed: np.random.SeedSequence,
    report: Callable[[float], None],
) -> HuArray:
    """Scan noise-free anatomy to ``slices`` slices, int16 HU ``(slices, y, x)``.

    ``anatomy`` is HU ``(z, y, x)`` on thin slices every ``fine_mm`` with the field of view of the
    result. Every slice draws its noise from a child of ``seed``. ``report`` is called with the
    share done, from 0 to 1.
    """
    response = _KERNELS[scanner.kernel]
    amplitude = _amplitude(anatomy.shape[1:], scanner, response)
    result = np.empty((slices, *anatomy.shape[1:]), dtype=np.int16)
    seeds = seed.spawn(slices)

    def take(k: int) -> None:
        plane = _thick(anatomy, fine_mm, (k + 0.5) * scanner.spacing_mm[0], scanner)
        image = _sharpened(plane, scanner, response)
        if scanner.noise_hu > 0:
            image += _noise(amplitude, plane, seeds[k])
        result[k] = np.rint(np.clip(image, -1024, 3071))

    with ThreadPoolExecutor(2) as pool:
        for k, _ in enumerate(pool.map(take, range(slices))):
            report((k + 1) / slices)
    return result


def _thick(anatomy: HuArray, fine_mm: float, centre_mm: float, scanner: Scanner) -> Plane:
    """Average over the thickness of the slice; thin slices at its faces count in part."""
    half = max(scanner.spacing_mm[0], fine_mm) / 2
    low, high = (centre_mm - half) / fine_mm, (centre_mm + half) / fine_mm
    index = np.arange(int(np.floor(low)), int(np.ceil(high)))
    weight = np.minimum(index + 1, high) - np.maximum(index, low)
    plane = np.zeros(anatomy.shape[1:], dtype=np.float32)
    for i, w in zip(np.clip(index, 0, len(anatomy) - 1), weight / weight.sum(), strict=True):
        if w > 1e-6:
            plane += anatomy[i] * np.float32(w)
    return plane


def _sharpened(plane: Plane, scanner: Scanner, response: _Response) -> Plane:
    """Blur by the kernel; sharper kernels then enhance edges by unsharp masking."""
    pixel = float(np.mean(scanner.spacing_mm[1:]))
    image = cv2.GaussianBlur(plane, (0, 0), max(response.blur_mm / pixel, 0.2))
    if response.enhance:
        wide = cv2.GaussianBlur(image, (0, 0), 1.1 / pixel)
        image = image + np.float32(response.enhance) * (image - wide)
    return np.asarray(image, dtype=np.float32)


def _amplitude(shape: tuple[int, ...], scanner: Scanner, response: _Response) -> Plane:
    """Compute the noise amplitude of every frequency, for unit noise in the frequency domain."""
    y = np.fft.fftfreq(shape[0], scanner.spacing_mm[1])
    x = np.fft.rfftfreq(shape[1], scanner.spacing_mm[2])
    frequency = np.hypot(y[:, None], x[None, :])
    power = (frequency + 0.01) * np.exp(-((frequency / response.cut_per_mm) ** 2))
    # the real transform stores half of the frequencies: all but x = 0 count twice
    weight = np.full(len(x), 2.0)
    weight[0] = 1.0
    total = float((power * weight).sum())
    return np.asarray(np.sqrt(power / total) * scanner.noise_hu, dtype=np.float32)


def _noise(amplitude: Plane, plane: Plane, seed: np.random.SeedSequence) -> Plane:
    """Draw the noise of a slice: more where the rays cross much tissue, as in the body's centre."""
    rng = np.random.Generator(np.random.SFC64(seed))
    shape = (*amplitude.shape, 2)
    spectrum = rng.standard_normal(shape, dtype=np.float32).view(np.complex64)[..., 0]
    spectrum *= amplitude
    grain = np.fft.irfft2(spectrum, s=plane.shape, norm="forward") / np.float32(np.sqrt(2.0))
    return np.asarray(grain * _thickness(plane), dtype=np.float32)


def _thickness(plane: Plane) -> Plane:
    """Estimate the relative noise of every pixel, about 1 in the chest, from the tissue around."""
    small = cv2.resize(plane, (64, 64), interpolation=cv2.INTER_AREA)
    tissue = np.clip((small + 1000) / 1000, 0, 1.4)
    across = tissue.mean(axis=1, keepdims=True) + tissue.mean(axis=0, keepdims=True)
    near = cv2.GaussianBlur(tissue, (0, 0), 9)
    relative = np.exp(0.9 * (across - 1.1)) * (0.55 + 0.5 * near)
    return np.asarray(cv2.resize(relative.astype(np.float32), plane.shape[::-1]))
