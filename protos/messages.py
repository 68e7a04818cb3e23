"""The contract as Python values: what the edge sends for a study, and what the cloud answers.

`protos.codec` converts them to protobuf and back.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

SITE_KEY = "overread-site"
"""Request metadata: the caller's site, where no certificate names it."""

MAX_SITE_CHARACTERS = 64


class Priority(Enum):
    """Clinical priority of a study; stat is read before routine."""

    ROUTINE = "routine"
    STAT = "stat"


@dataclass(frozen=True)
class Header:
    """The first message of a study's stream.

    ``study_key`` is random, not a patient identifier; the same key sent again is the same
    escalation (idempotency). ``budget_s`` is the time left when it was sent.
    """

    study_key: str
    model_version: str
    budget_s: float
    roi_count: int
    priority: Priority = Priority.ROUTINE


@dataclass(frozen=True, eq=False)
class Roi:
    """One ROI: ``voxels`` uint8 ``(z, y, x)`` of ``window_hu``, ``spacing_mm`` (z, y, x)."""

    roi_id: int
    voxels: npt.NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    window_hu: tuple[float, float]
    edge_score: float


@dataclass(frozen=True)
class Verdict:
    """The cloud's answer to one ROI, with its wait in the queue and the model's time.

    ``malignancy`` is in [0, 1], None if the model has none; ``texture`` is a word, or empty.
    ``mask`` holds the nodule's voxels as `protos.codec.pack_mask` packs them; empty for none.
    """

    roi_id: int
    probability: float
    diameter_mm: float
    model: str
    queue_s: float
    compute_s: float
    malignancy: float | None = None
    texture: str = ""
    mask: bytes = b""


@dataclass(frozen=True)
class Refusal:
    """An ROI that the cloud does not answer; ``error`` is a class name of `protos.errors`.

    ``bound_s`` is an upper bound of how long an answer would have taken, None if that is not known.
    ``field`` is the field at fault, by its path in the request; empty for none.
    """

    roi_id: int
    error: str
    reason: str
    bound_s: float | None = None
    field: str = ""


@dataclass(frozen=True)
class Accepted:
    """The first response: how many of the announced ROIs could be answered in time now."""

    rois: int


@dataclass(frozen=True)
class Load:
    """The wait of an ROI that arrived now, and the model time that was spent on the stream."""

    queue_s: float
    compute_s: float = 0.0


@dataclass(frozen=True)
class Summary:
    """The last message of a stream: ROIs answered and refused, and the total time in the cloud.

    ``load`` is that of the cloud; None if it is not known.
    """

    answered: int
    refused: int
    total_s: float
    load: Load | None = None


@dataclass(frozen=True)
class Description:
    """The models that a service has, as name -> version, and its limits."""

    service_version: str
    models: dict[str, str]
    engine: str
    max_rois: int
    max_roi_voxels: int
    max_message_bytes: int
    roi_shape: tuple[int, int, int]
