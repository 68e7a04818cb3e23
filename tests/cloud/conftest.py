"""What a study is made of, and a cloud to send it to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from imaging.volume import WINDOW_HU
from protos import codec
from protos import overread_pb2 as pb
from protos.messages import Header, Roi
from tests.cloud.calling import MakeRoi, MakeStream, StartCloud, Until
from tests.cloud.running import SHAPE, run_cloud


@pytest.fixture
def start_cloud() -> StartCloud:
    """Starts a cloud for a ``with`` block: ``start_cloud(reader=None, **settings)``."""
    return run_cloud


@pytest.fixture
def make_roi() -> MakeRoi:
    """Makes an ROI that the reader reads as ``value / 255``."""

    def make(roi_id: int, value: int = 51, **fields: Any) -> Roi:
        given = {
            "voxels": np.full(SHAPE, value, np.uint8),
            "spacing_mm": (1.0, 1.0, 1.0),
            "window_hu": WINDOW_HU,
            "edge_score": 0.5,
        }
        return Roi(roi_id, **{**given, **fields})

    return make


@pytest.fixture
def make_stream() -> MakeStream:
    """Makes the requests of one study from its ROIs; header fields may be given."""

    def make(*rois: Roi, **header: Any) -> list[pb.ReadRequest]:
        given = {"study_key": "k1", "model_version": "", "budget_s": 10.0, "roi_count": len(rois)}
        first = codec.encode_header(Header(**{**given, **header}))
        return [first, *(codec.encode_roi(roi) for roi in rois)]

    return make


@pytest.fixture
def until() -> Until:
    """Waits until what it is given holds; fails when it does not come to."""

    def wait(holds: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 10.0
        while not holds():
            assert time.monotonic() < end_s, "it never came to hold"
            time.sleep(0.005)

    return wait
