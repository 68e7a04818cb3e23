import dataclasses
import hashlib
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.runtime.second_reader import TEXTURES
from protos import codec
from protos import overread_pb2 as pb
from protos.codec import checksum
from protos.errors import ChecksumMismatch, InvalidRequest, Overloaded, to_status
from protos.messages import (
    Accepted,
    Description,
    Header,
    Load,
    Priority,
    Refusal,
    Roi,
    Summary,
    Verdict,
)

PROTO = "overread.proto"


def an_roi() -> Roi:
    """A small ROI, no two sides and no two spacings alike."""
    voxels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    return Roi(7, voxels, (1.25, 0.5, 0.75), (-1000.0, 400.0), 0.5)


DESCRIPTION = Description("0.1", {"hybrid": "1.0"}, "openvino", 64, 4096, 10**6, (48, 48, 40))
RESPONSES = [
    Verdict(3, 0.25, 6.5, "hybrid 1.0", 0.01, 0.05),
    *(Verdict(3, 0.25, 6.5, "m 1", 0.01, 0.05, 0.0, one, b"\x00\x01") for one in TEXTURES),
    Refusal(4, "ChecksumMismatch", "why"),
    Refusal(4, "DeadlineUnmeetable", "why", 2.5),
    Refusal(4, "InvalidRequest", "why", field="roi.shape"),
    Summary(3, 1, 0.5),
    Summary(3, 1, 0.5, Load(0.25, 0.0)),
    Accepted(0),
    Accepted(3),
]


def test_what_is_sent_comes_back_as_it_went() -> None:
    for priority in Priority:
        header = Header("k1", "1.2.0", 2.5, 9, priority)
        assert codec.decode_header(codec.encode_header(header)) == header
    for response in RESPONSES:
        assert codec.decode_response(codec.encode_response(response)) == response
    assert codec.decode_description(codec.encode_description(DESCRIPTION)) == DESCRIPTION


def test_unknown_values_of_a_later_contract_are_read_as_the_contract_says() -> None:
    """A priority as routine, a texture as none, a kind of refusal as a fault of the service."""
    for priority in (99, pb.PRIORITY_UNSPECIFIED):
        request = codec.encode_header(Header("k", "", 1.0, 1, Priority.STAT))
        request.header.priority = priority  # type: ignore[assignment] # as it might be sent
        assert codec.decode_header(request).priority is Priority.ROUTINE
    response = codec.encode_response(RESPONSES[1])
    response.verdict.texture = 99  # type: ignore[assignment]
    verdict = codec.decode_response(pb.ReadResponse.FromString(response.SerializeToString()))
    assert isinstance(verdict, Verdict)
    assert verdict.texture == ""
    for kind in (99, 0):
        response = pb.ReadResponse(refusal=pb.Refusal(roi_id=1, kind=kind, reason="why"))  # type: ignore[arg-type]
        assert codec.decode_response(response) == Refusal(1, "ServiceFault", "why")
    with pytest.raises(InvalidRequest):  # an error, not a silent nothing
        codec.decode_response(pb.ReadResponse())
    # and a class without a kind of its own is sent as a fault of the service
    response = codec.encode_response(Refusal(1, "Unreachable", "why"))
    assert response.refusal.kind == pb.ERROR_KIND_SERVICE_FAULT


def test_an_roi_comes_back_as_it_went() -> None:
    """Every number keeps its value, and voxels their order, also those of a view of a volume."""
    volume = np.random.default_rng(0).integers(0, 256, (8, 8, 8), np.uint8)
    view = volume[1:5, ::2, 2:6].transpose(2, 0, 1)
    for roi in (an_roi(), dataclasses.replace(an_roi(), voxels=view)):
        back = codec.decode_roi(codec.encode_roi(roi).roi)
        np.testing.assert_array_equal(back.voxels, roi.voxels)
        for name in ("roi_id", "spacing_mm", "window_hu", "edge_score"):
            assert getattr(back, name) == getattr(roi, name)


@pytest.mark.parametrize("field", ["voxels", "spacing", "window", "shape", "checksum"])
def test_any_change_on_the_way_is_a_checksum_mismatch(field: str) -> None:
    message = codec.encode_roi(an_roi()).roi
    if field == "voxels":
        message.voxels = bytes([message.voxels[0] ^ 1]) + message.voxels[1:]
    elif field == "spacing":
        message.spacing_mm.z = 1.0
    elif field == "window":
        message.window_hu.high = 401.0
    elif field == "shape":
        message.shape.z, message.shape.y = 3, 2
    else:
        message.checksum = bytes(16)
    claimed = message.checksum.hex()
    with pytest.raises(
        ChecksumMismatch, match=f"ROI 7: checksum .* as received, {claimed} as sent"
    ):
        codec.decode_roi(message)
    codec.decode_unverified(message)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"voxels": bytes(23)}, r"23 bytes of voxels for the shape \(2, 3, 4\)"),
        ({"checksum": b""}, "of 0 bytes, expected 16"),
        ({"checksum": bytes(15)}, "of 15 bytes, expected 16"),
        ({"checksum": bytes(10**6)}, "of 1000000 bytes, expected 16"),
        ({"shape": pb.Shape(z=2**32 - 1, y=2**32 - 1, x=0), "voxels": b""}, "1 to 4096 a side"),
        ({"shape": pb.Shape(z=0, y=1, x=1), "voxels": b""}, "1 to 4096 a side"),
        ({"shape": pb.Shape(z=4097, y=1, x=1), "voxels": bytes(4097)}, "1 to 4096 a side"),
    ],
)
def test_an_roi_of_invalid_form_is_refused(changes: dict[str, Any], reason: str) -> None:
    """Before the checksum is computed, and without repeating what was sent."""
    valid = codec.encode_roi(an_roi()).roi
    fields = {field.name: value for field, value in valid.ListFields()}
    with pytest.raises(InvalidRequest, match=reason) as caught:
        codec.decode_roi(pb.Roi(**{**fields, **changes}))
    assert len(caught.value.reason) < 100


@pytest.mark.parametrize("bound_s", [float("nan"), float("inf"), -1.0])
def test_an_invalid_bound_is_unknown(bound_s: float) -> None:
    refusal = Refusal(4, "DeadlineUnmeetable", "why", bound_s)
    back = codec.decode_response(codec.encode_response(refusal))
    assert back == Refusal(4, "DeadlineUnmeetable", "why")


def test_a_mask_comes_back_as_it_went() -> None:
    """Also where its voxels fill no whole byte; an empty one takes no room."""
    mask = np.random.default_rng(0).random((3, 5, 7)) < 0.4
    np.testing.assert_array_equal(codec.unpack_mask(codec.pack_mask(mask), (3, 5, 7)), mask)
    assert codec.pack_mask(np.zeros((3, 5, 7), bool)) == b""
    assert not codec.unpack_mask(b"", (3, 5, 7)).any()


@pytest.mark.parametrize(
    ("packed", "shape"),
    [
        *((codec.pack_mask(np.ones((3, 5, 7), bool)), s)
          for s in [(3, 5, 6), (3, 5, 9), (10**3,) * 3]),
        (zlib.compress(bytes(10**6)), (3, 5, 7)),
        (b"nonsense", (3, 5, 7)),
    ],
)  # fmt: skip
def test_a_mask_of_another_shape_is_refused(packed: bytes, shape: tuple[int, int, int]) -> None:
    """Too little, too much, a decompression bomb, and no zlib stream."""
    with pytest.raises(InvalidRequest, match="mask"):
        codec.unpack_mask(packed, shape)


def test_the_checksum_is_what_the_contract_says() -> None:
    said = re.search(r"checksum  ([0-9a-f]{32})", Path(codec.__file__).with_name(PROTO).read_text())
    assert said is not None
    data = struct.pack("<3I5d", 2, 3, 4, 1.25, 0.5, 0.75, -1000.0, 400.0) + bytes(range(24))
    assert len(data) == 12 + 24 + 16 + 24
    expected = hashlib.blake2b(data, digest_size=16).digest()
    assert expected.hex() == said[1]
    assert checksum(an_roi()) == expected
    assert codec.encode_roi(an_roi()).roi.checksum == expected


@pytest.mark.parametrize("times", [(float("nan"), 1.0), (1.0, float("inf")), (-0.5, 1.0)])
def test_an_invalid_load_is_none(times: tuple[float, float]) -> None:
    summary = codec.decode_response(codec.encode_response(Summary(1, 0, 0.5, Load(*times))))
    assert summary == Summary(1, 0, 0.5)
    assert codec.load_of(to_status(Overloaded("full"), codec.encode_load(Load(*times)))[2]) is None


def test_the_load_is_found_among_the_details_of_a_status() -> None:
    metadata = to_status(Overloaded("full"), codec.encode_load(Load(0.25, 1.5)))[2]
    assert codec.load_of(metadata) == Load(0.25, 1.5)
    assert codec.load_of(to_status(Overloaded("full"))[2]) is None
    assert codec.load_of(None) is None
