"""The limitations of a study: what lies outside the conditions of the models' calibration.

A report with a limitation guarantees nothing, and says why under its header.
"""

from collections.abc import Iterator

from imaging.coverage import Coverage
from imaging.preprocess import Preprocessed
from imaging.volume import Limitation, LimitationKind, Study

_ENDS = ("apex", "base")


def limitations_of(study: Study, box: Preprocessed) -> tuple[Limitation, ...]:
    """Return the limitations that the files, the header and the lung box show."""
    cut = () if box.coverage is None else _of_coverage(box.coverage)
    return (*study.limitations, *cut)


def _of_coverage(coverage: Coverage) -> Iterator[Limitation]:
    """Say at which sides the volume ends inside the lungs."""
    for what, cuts in {
        "the scan ends inside the lungs at the": [c for c in coverage.cuts if c.side in _ENDS],
        "the field of view cuts the lungs at the": [
            c for c in coverage.cuts if c.side not in _ENDS
        ],
    }.items():
        if cuts:
            sides = " and the ".join(f"{cut.side} ({cut.area_cm2:.0f} cm² of lung)" for cut in cuts)
            text = f"{what} {sides}; what lies beyond was not read"
            yield Limitation(LimitationKind.COVERAGE, text)
