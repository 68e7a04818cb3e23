"""Scan the anatomy of a phantom: slice thickness, blur and noise of a soft kernel."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import numpy.typing as npt

from imaging.volume import HuArray, Triple

_BLUR_MM = 0.62
_CUT_PER_MM = 0.28

Plane = npt.NDArray[np.float32]


def scan(
    anatomy: HuArray, spacing_mm: Triple, slices: int, noise_hu: float, seed: np.random.SeedSequence
) -> HuArray:
    """Scan noise-free anatomy to ``slices`` slices, int16 HU ``(slices, y, x)``.

    ``anatomy`` is HU ``(z, y, x)`` with an equal number of thin slices for each slice of the
    result, of which ``spacing_mm`` is the spacing. Every slice draws its noise from a child of
    ``seed``.
    """
    thin = anatomy.reshape(slices, -1, *anatomy.shape[1:])
    result = np.empty((slices, *anatomy.shape[1:]), dtype=np.int16)
    amplitude = _amplitude(anatomy.shape[1:], spacing_mm) * np.float32(noise_hu)
    seeds = seed.spawn(slices)

    def take(k: int) -> None:
        plane = thin[k].mean(axis=0, dtype=np.float32)
        image = cv2.GaussianBlur(plane, (0, 0), max(_BLUR_MM / spacing_mm[1], 0.2))
        if noise_hu > 0:
            image = image + _noise(amplitude, plane, seeds[k])
        result[k] = np.rint(np.clip(image, -1024, 3071))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(take, range(slices)))
    return result


def _amplitude(shape: tuple[int, ...], spacing_mm: Triple) -> Plane:
    """Compute the amplitude of every frequency of noise with unit deviation.

    The power rises with the frequency f (per mm), as the ramp filter makes it, and is cut off by
    the kernel: (f + 0.01) * exp(-(f / cut)^2).
    """
    y = np.fft.fftfreq(shape[0], spacing_mm[1])
    x = np.fft.rfftfreq(shape[1], spacing_mm[2])
    frequency = np.hypot(y[:, None], x[None, :])
    power = (frequency + 0.01) * np.exp(-((frequency / _CUT_PER_MM) ** 2))
    # the real transform stores half of the frequencies: all but x = 0 count twice
    total = 2 * power.sum() - power[:, 0].sum()
    return np.asarray(np.sqrt(power / total / 2), dtype=np.float32)


def _noise(amplitude: Plane, plane: Plane, seed: np.random.SeedSequence) -> Plane:
    """Draw the noise of a slice: more where the rays cross much tissue, as in the body's centre."""
    rng = np.random.Generator(np.random.SFC64(seed))
    shape = (*amplitude.shape, 2)
    spectrum = rng.standard_normal(shape, dtype=np.float32).view(np.complex64)[..., 0]
    grain = np.fft.irfft2(spectrum * amplitude, s=plane.shape, norm="forward")
    # the relative noise, about 1 in the chest, from the tissue in the same row and column
    tissue = np.clip(
        (cv2.resize(plane, (64, 64), interpolation=cv2.INTER_AREA) + 1000) / 1000, 0, 1.4
    )
    across = tissue.mean(axis=1, keepdims=True) + tissue.mean(axis=0, keepdims=True)
    relative = np.exp(0.9 * (across - 1.1)) * (0.55 + 0.5 * cv2.GaussianBlur(tissue, (0, 0), 9))
    smooth = cv2.resize(relative.astype(np.float32), plane.shape[::-1])
    return np.asarray(grain * smooth, dtype=np.float32)
