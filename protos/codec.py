"""Conversion of the contract's values (`protos.messages`) to protobuf and back.

Decoding checks the form: fields are present, voxels fill their shape and match their checksum.
The service checks the values.
"""

import hashlib
import math
import struct
import zlib

import numpy as np
import numpy.typing as npt

from protos import overread_pb2 as pb
from protos.errors import ChecksumMismatch, InvalidRequest
from protos.messages import Description, Header, Priority, Refusal, Roi, Summary, Verdict

Outcome = Verdict | Refusal

MAX_SIDE = 4096
"""Largest side of an ROI in voxels, whatever the limits of a service."""

CHECKSUM_BYTES = 16

_PRIORITY_TO_WIRE = {Priority.ROUTINE: pb.PRIORITY_ROUTINE, Priority.STAT: pb.PRIORITY_STAT}
_PRIORITY_OF_WIRE = {
    pb.PRIORITY_UNSPECIFIED: Priority.ROUTINE,
    pb.PRIORITY_ROUTINE: Priority.ROUTINE,
    pb.PRIORITY_STAT: Priority.STAT,
}


def encode_header(header: Header) -> pb.ReadRequest:
    """Encode the request that opens a stream."""
    fields = dict(vars(header), priority=_PRIORITY_TO_WIRE[header.priority])
    return pb.ReadRequest(header=pb.Header(**fields))


def decode_header(request: pb.ReadRequest) -> Header:
    """Decode the request that opens a stream.

    Raises:
        InvalidRequest: it is another message, or its priority is unknown.
    """
    if (kind := request.WhichOneof("request")) != "header":
        raise InvalidRequest(f"a stream must begin with its header, not {kind or 'nothing'}")
    header = request.header
    if (priority := _PRIORITY_OF_WIRE.get(header.priority)) is None:
        raise InvalidRequest(f"unknown priority {header.priority}")
    return Header(
        header.study_key, header.model_version, header.budget_s, header.roi_count, priority
    )


def encode_roi(roi: Roi) -> pb.ReadRequest:
    """Encode the request that carries one ROI, with its checksum."""
    z, y, x = roi.voxels.shape
    return pb.ReadRequest(
        roi=pb.Roi(
            roi_id=roi.roi_id,
            shape=pb.Shape(z=z, y=y, x=x),
            voxels=roi.voxels.tobytes(),
            spacing_mm=pb.SpacingMm(**dict(zip("zyx", roi.spacing_mm, strict=True))),
            window_hu=pb.WindowHu(low=roi.window_hu[0], high=roi.window_hu[1]),
            edge_score=roi.edge_score,
            checksum=checksum(roi),
        )
    )


def decode_roi(message: pb.Roi) -> Roi:
    """Decode an ROI; its voxels are a read-only view of the bytes.

    Raises:
        InvalidRequest: a side or the length of the checksum is out of range, or the voxels do not
            fill their shape.
        ChecksumMismatch: the ROI is not what was sent.
    """
    roi = decode_unverified(message)
    verify(roi, message.checksum)
    return roi


def decode_unverified(message: pb.Roi) -> Roi:
    """Decode an ROI as `decode_roi` does, but do not verify its checksum."""
    shape = (message.shape.z, message.shape.y, message.shape.x)
    voxels, claimed = message.voxels, message.checksum
    if not all(1 <= side <= MAX_SIDE for side in shape):
        raise InvalidRequest(
            f"ROI {message.roi_id}: shape {shape}, expected 1 to {MAX_SIDE} a side"
        )
    if len(voxels) != math.prod(shape):
        raise InvalidRequest(
            f"ROI {message.roi_id}: {len(voxels)} bytes of voxels for the shape {shape}"
        )
    if len(claimed) != CHECKSUM_BYTES:
        raise InvalidRequest(
            f"ROI {message.roi_id}: checksum of {len(claimed)} bytes, expected {CHECKSUM_BYTES}"
        )
    spacing, window = message.spacing_mm, message.window_hu
    return Roi(
        roi_id=message.roi_id,
        voxels=np.frombuffer(voxels, np.uint8).reshape(shape),
        spacing_mm=(spacing.z, spacing.y, spacing.x),
        window_hu=(window.low, window.high),
        edge_score=message.edge_score,
    )


def checksum(roi: Roi) -> bytes:
    """Return the BLAKE2b checksum, 16 bytes, of the voxels and of what gives them their meaning.

    Hashed are, little-endian: shape (three uint32), spacing in mm (three float64), window in HU
    (two float64), then the voxels, z slowest.
    """
    meaning = struct.pack("<3I5d", *roi.voxels.shape, *roi.spacing_mm, *roi.window_hu)
    digest = hashlib.blake2b(meaning, digest_size=CHECKSUM_BYTES)
    digest.update(np.ascontiguousarray(roi.voxels).data)
    return digest.digest()


def verify(roi: Roi, claimed: bytes) -> None:
    """Compare the checksum of ``roi`` with the ``claimed`` one that was sent with it.

    Raises:
        ChecksumMismatch: they differ.
    """
    if (computed := checksum(roi)) != claimed:
        raise ChecksumMismatch(
            f"ROI {roi.roi_id}: checksum {computed.hex()} as received, {claimed.hex()} as sent"
        )


def encode_response(response: Outcome | Summary) -> pb.ReadResponse:
    """Encode a verdict, a refusal or the summary."""
    match response:
        case Verdict():
            return pb.ReadResponse(verdict=pb.Verdict(**vars(response)))  # None: not set
        case Refusal():
            return pb.ReadResponse(refusal=pb.Refusal(**vars(response)))
        case Summary():
            return pb.ReadResponse(summary=pb.Summary(**vars(response)))


def decode_response(response: pb.ReadResponse) -> Outcome | Summary:
    """Decode a verdict, a refusal or the summary.

    Raises:
        InvalidRequest: it is none of them.
    """
    match response.WhichOneof("response"):
        case "verdict":
            v = response.verdict
            return Verdict(
                v.roi_id, v.probability, v.diameter_mm, v.model, v.queue_s, v.compute_s,
                v.malignancy if v.HasField("malignancy") else None, v.texture, v.mask,
            )  # fmt: skip
        case "refusal":
            r = response.refusal
            known = math.isfinite(r.estimate_s) and r.estimate_s > 0.0
            return Refusal(r.roi_id, r.error, r.reason, r.estimate_s if known else 0.0)
        case "summary":
            s = response.summary
            return Summary(s.answered, s.refused, s.total_s)
        case _:
            raise InvalidRequest("the response has no verdict, refusal or summary")


def pack_mask(mask: npt.NDArray[np.bool_]) -> bytes:
    """Pack the voxels of a nodule, bool ``(z, y, x)``, for a verdict; empty for none."""
    return zlib.compress(np.packbits(mask).tobytes()) if mask.any() else b""


def unpack_mask(packed: bytes, shape: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """Unpack the voxels that `pack_mask` packed, as bool of ``shape``.

    Raises:
        InvalidRequest: the data is damaged, or of another shape.
    """
    if not packed:
        return np.zeros(shape, bool)
    count = math.prod(shape)
    try:  # one byte more than expected at most: a small message must not fill the memory
        bits = zlib.decompressobj().decompress(packed, (count + 7) // 8 + 1)
    except zlib.error as error:
        raise InvalidRequest(f"mask: {error}") from error
    if len(bits) != (count + 7) // 8:
        raise InvalidRequest(f"mask: {len(bits)} bytes or more for the shape {shape}")
    voxels = np.unpackbits(np.frombuffer(bits, np.uint8), count=count)
    return voxels.reshape(shape).astype(bool)


def encode_description(description: Description) -> pb.DescribeResponse:
    """Encode the answer to `Describe`."""
    z, y, x = description.roi_shape
    fields = dict(vars(description), roi_shape=pb.Shape(z=z, y=y, x=x))
    return pb.DescribeResponse(**fields)


def decode_description(response: pb.DescribeResponse) -> Description:
    """Decode the answer to `Describe`."""
    shape = response.roi_shape
    return Description(
        service_version=response.service_version,
        models=dict(response.models),
        engine=response.engine,
        max_rois=response.max_rois,
        max_roi_voxels=response.max_roi_voxels,
        max_message_bytes=response.max_message_bytes,
        roi_shape=(shape.z, shape.y, shape.x),
    )
