"""What the diaphragm covers: liver, spleen, and a stomach with its bubble of gas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imaging.phantom_lattice import Field, Lattice, ellipsoid, joined
from imaging.phantom_thorax import Thorax


@dataclass(frozen=True, eq=False)
class Abdomen:
    """Distance fields; ``gas`` is the upper (front) part of the stomach's inside."""

    liver: Field
    spleen: Field
    stomach: Field
    juice: Field
    gas: Field


def make_abdomen(lattice: Lattice, thorax: Thorax, rng: np.random.Generator) -> Abdomen:
    """The organs of one patient; how full the stomach is and of what is random."""
    inside = np.maximum(thorax.diaphragm, thorax.cavity)
    right = ellipsoid(lattice, (-62, -8, -178), (92, 86, 92))
    lobe = ellipsoid(lattice, (14, -52, -150), (66, 38, 46))
    liver = np.maximum(joined([right, lobe], 20.0), inside + 3)
    spleen = np.maximum(ellipsoid(lattice, (100, 44, -168), (36, 44, 56)), inside + 3)
    fill = float(rng.uniform(0.75, 1.1))
    stomach = ellipsoid(lattice, (66, -12, -150), (42 * fill, 46 * fill, 44 * fill))
    stomach = np.maximum(np.maximum(stomach, inside + 4), 4 - np.minimum(liver, spleen))
    juice = stomach + 4
    level = (lattice.body[1] + float(rng.uniform(0, 25))) * lattice.size
    return Abdomen(liver, spleen, stomach, juice, np.maximum(juice, level).astype(np.float32))
