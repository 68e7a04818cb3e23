import numpy as np

from models.training.data import Cubes
from models.training.learning_curve import learning_table, part_of
from tests.models.training.test_data import ball

LOG = [{"minutes": m, "cpm": c, "at_1": c, "at_2": c, "at_8": c} for m, c in ((1, 0.5), (2, 0.75))]
RESULT = {
    "minutes": 2.0, "seed": 0, "val_nodules": 129, "val_scans": 1,
    "runs": [
        {"share": share, "patients": n, "nodules": 2 * n, "log": LOG}
        for share, n in ((0.5, 8), (1.0, 16))
    ],
}  # fmt: skip


def cubes() -> Cubes:
    """Two nodules of each of eight patients."""
    patients = tuple(f"p{n // 2}" for n in range(16))
    pieces = tuple(ball((8, 8, 8), (4, 4, 4), 3.0) for _ in patients)
    return Cubes(pieces, patients, np.arange(16.0), np.arange(16.0) + 100)


def test_a_larger_part_has_every_patient_of_a_smaller_one() -> None:
    """A share of 1 leaves nobody out and is in its old order; the least is one patient."""
    small, large = part_of(cubes(), 0.25, 3), part_of(cubes(), 0.5, 3)
    assert (len(set(small.patients)), len(small.pieces)) == (2, 4)
    assert (len(set(large.patients)), len(large.pieces)) == (4, 8)
    assert set(small.patients) < set(large.patients)
    for patient, rating in zip(large.patients, large.malignancy, strict=True):
        assert patient == f"p{int(rating) // 2}"
    np.testing.assert_array_equal(large.texture, large.malignancy + 100)
    assert part_of(cubes(), 1.0, 0).patients == cubes().patients
    assert len(set(part_of(cubes(), 0.01, 0).patients)) == 1


def test_the_curve_is_printed() -> None:
    assert "| 16 | 32 | 0.750 |" in learning_table(RESULT)
