"""Cases as the fits have them, drawn without networks."""

import numpy as np

from models.calibration.cases import Cases


def made(nodules: int = 400, false: int = 1000, scans: int = 11, *, seed: int = 0) -> Cases:
    """Candidates whose logits separate; two nodules a patient, one in twenty never proposed."""
    rng = np.random.default_rng(seed)
    nodule = np.arange(nodules + false) < nodules
    edge = np.where(nodule, 1.0, -2.5) + rng.normal(0, 1.0, nodule.size)
    cloud = np.where(nodule, 3.0, -2.0) + rng.normal(0, 1.7, nodule.size)
    owner = np.array([f"p{i // 2:03}" if i < nodules else f"scan {i % scans}"
                      for i in range(nodule.size)])  # fmt: skip
    missed = tuple(f"p{i:03}" for i in range(0, nodules // 2, 10))
    diameter = np.where(rng.random(nodule.size) < 0.02, 40.0, 8.0)
    return Cases(edge, cloud, diameter, nodule, owner, missed, scans)
