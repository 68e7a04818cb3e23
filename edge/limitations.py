"""The limitations of a study: what lies outside the conditions of the models' calibration.

A report with a limitation guarantees nothing, and says why under its header.
"""

from imaging.preprocess import Preprocessed
from imaging.volume import Limitation, Study


def limitations_of(study: Study, box: Preprocessed) -> tuple[Limitation, ...]:  # noqa: ARG001
    """Return the limitations that the files, the header and the lung box show."""
    return study.limitations
