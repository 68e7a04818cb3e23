"""Nodules: what they look like, where they may lie, and the exact truth of what was drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imaging.volume import FloatArray

TEXTURES = {"solid": 0.62, "part-solid": 0.16, "ground-glass": 0.22}
SHAPES = {"round": 0.45, "lobulated": 0.3, "spiculated": 0.25}
PLACES = {"free": 0.5, "vessel": 0.25, "pleura": 0.25}


@dataclass(frozen=True)
class Look:
    """What a nodule shall be: diameter in mm and one word each of texture, shape and place."""

    diameter_mm: float
    texture: str
    shape: str
    place: str

    @property
    def kind(self) -> str:
        """The three words, as they stand in the truth."""
        return f"{self.texture} {self.shape} {self.place}"


@dataclass(frozen=True, eq=False)
class Form:
    """The surface of a nodule around its middle: a stretched ball with bumps.

    Attributes:
        radius_mm: the ball's radius.
        stretch: ``(3, 3)`` linear map of offsets onto the ball's.
        bumps: unit directions ``(n, 3)`` of lobules.
        heights: their heights relative to the radius.
        spikes: ``(m, 3)`` tips of spicules, relative to the radius.
        core: middle and relative radius of the solid part ``(4,)``.
    """

    radius_mm: float
    stretch: FloatArray
    bumps: FloatArray
    heights: FloatArray
    spikes: FloatArray
    core: FloatArray

    def depth(self, offsets: FloatArray) -> FloatArray:
        """How deep in mm offsets ``(..., 3)`` from the middle lie, negative outside."""
        at = offsets @ self.stretch.T
        length = np.linalg.norm(at, axis=-1)
        surface = np.ones(length.shape)
        for bump, height in zip(self.bumps, self.heights, strict=True):
            facing = (at @ bump) / np.maximum(length, 1e-6)
            surface += height * np.exp(6.0 * (facing - 1))
        return np.asarray(surface * self.radius_mm - length)

    def core_depth(self, offsets: FloatArray) -> FloatArray:
        """The same for the solid part of a part-solid nodule."""
        middle, share = self.core[:3] * self.radius_mm, self.core[3]
        away = np.linalg.norm(offsets - middle, axis=-1)
        return np.asarray(share * self.radius_mm - away)


def draw_look(diameter_mm: tuple[float, float], rng: np.random.Generator) -> Look:
    """A nodule as they occur: small ones are more frequent (uniform in the log of diameter)."""
    low, high = np.log(diameter_mm)
    texture = _choice(TEXTURES, rng)
    shape = _choice(SHAPES, rng)
    if texture == "ground-glass" and shape == "spiculated":
        shape = "round"
    return Look(float(np.exp(rng.uniform(low, high))), texture, shape, _choice(PLACES, rng))


def draw_form(look: Look, rng: np.random.Generator) -> Form:
    """A random surface of that look, its radius not yet fitted to the diameter."""
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    squeeze = np.diag(np.exp(rng.uniform(-0.14, 0.14, 3)))
    count = {"round": 1, "lobulated": int(rng.integers(4, 8)), "spiculated": 5}[look.shape]
    tall = {"round": 0.06, "lobulated": 0.42, "spiculated": 0.25}[look.shape]
    spikes = np.empty((0, 3))
    if look.shape == "spiculated":
        spikes = _directions(int(rng.integers(9, 20)), rng) * rng.uniform(1.5, 2.3, (1, 1))
        spikes *= rng.uniform(0.8, 1.1, (len(spikes), 1))
    core = np.append(rng.uniform(-0.25, 0.25, 3), rng.uniform(0.35, 0.6))
    return Form(
        radius_mm=look.diameter_mm / 2,
        stretch=turn @ squeeze @ turn.T,
        bumps=_directions(count, rng),
        heights=rng.uniform(0.4, 1.0, count) * tall,
        spikes=spikes,
        core=core,
    )


def density_hu(look: Look, rng: np.random.Generator) -> tuple[float, float]:
    """HU of the nodule and of its core: soft tissue, now and then calcified; or ground glass."""
    solid = float(rng.uniform(150, 500) if rng.random() < 0.07 else rng.uniform(10, 70))
    if look.texture == "solid":
        return solid, solid
    glass = float(rng.uniform(-680, -480))
    return glass, min(solid, 70.0) if look.texture == "part-solid" else glass


def _choice(shares: dict[str, float], rng: np.random.Generator) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


def _directions(count: int, rng: np.random.Generator) -> FloatArray:
    vectors = rng.standard_normal((count, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
