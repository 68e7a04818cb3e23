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
from protos.errors import (
    ChecksumMismatch,
    Given,
    InvalidRequest,
    name_of,
    reason_of,
    status_of,
    unpacked,
)
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

Outcome = Verdict | Refusal
Response = Accepted | Outcome | Summary

MAX_SIDE = 4096
"""Largest side of an ROI in voxels, whatever the limits of a service."""

CHECKSUM_BYTES = 16

_PRIORITY_TO_WIRE = {Priority.ROUTINE: pb.PRIORITY_ROUTINE, Priority.STAT: pb.PRIORITY_STAT}
_TEXTURE_TO_WIRE = {
    "": pb.TEXTURE_UNSPECIFIED,
    "ground glass": pb.TEXTURE_GROUND_GLASS,
    "part-solid": pb.TEXTURE_PART_SOLID,
    "solid": pb.TEXTURE_SOLID,
}
_TEXTURE_OF_WIRE = {wire: texture for texture, wire in _TEXTURE_TO_WIRE.items()}
_KIND_PREFIX = "ERROR_KIND_"


def encode_header(header: Header) -> pb.ReadRequest:
    """Encode the request that opens a stream."""
    fields = dict(vars(header), priority=_PRIORITY_TO_WIRE[header.priority])
    return pb.ReadRequest(header=pb.Header(**fields))


def decode_header(request: pb.ReadRequest) -> Header:
    """Decode the request that opens a stream.

    Raises:
        InvalidRequest: it is another message.
    """
    if (kind := request.WhichOneof("request")) != "header":
        begin = f"a stream must begin with its header, not {kind or 'nothing'}"
        raise InvalidRequest(begin, field="header")
    header = request.header
    is_stat = header.priority == pb.PRIORITY_STAT  # one of a later contract is read as routine
    priority = Priority.STAT if is_stat else Priority.ROUTINE
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
            f"ROI {message.roi_id}: shape {shape}, expected 1 to {MAX_SIDE} a side",
            field="roi.shape",
        )
    if len(voxels) != math.prod(shape):
        raise InvalidRequest(
            f"ROI {message.roi_id}: {len(voxels)} bytes of voxels for the shape {shape}",
            field="roi.voxels",
        )
    if len(claimed) != CHECKSUM_BYTES:
        raise InvalidRequest(
            f"ROI {message.roi_id}: checksum of {len(claimed)} bytes, expected {CHECKSUM_BYTES}",
            field="roi.checksum",
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
    """Return the checksum of an ROI, 16 bytes, as the contract specifies it at `Roi.checksum`."""
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
            f"ROI {roi.roi_id}: checksum {computed.hex()} as received, {claimed.hex()} as sent",
            field="roi.checksum",
        )


def encode_response(response: Response) -> pb.ReadResponse:
    """Encode the accepted ROIs, a verdict, a refusal or the summary."""
    match response:
        case Accepted():
            return pb.ReadResponse(accepted=pb.Accepted(rois=response.rois))
        case Verdict():
            texture = _TEXTURE_TO_WIRE.get(response.texture, pb.TEXTURE_UNSPECIFIED)
            fields = dict(vars(response), texture=texture)  # None: not set
            return pb.ReadResponse(verdict=pb.Verdict(**fields))
        case Refusal():
            refusal = pb.Refusal(
                roi_id=response.roi_id,
                kind=_kind_to_wire(response.error),
                reason=response.reason,
                bound_s=response.bound_s,
                field=response.field,
            )
            return pb.ReadResponse(refusal=refusal)
        case Summary():
            load = None if response.load is None else encode_load(response.load)
            return pb.ReadResponse(summary=pb.Summary(**dict(vars(response), load=load)))


def decode_response(response: pb.ReadResponse) -> Response:
    """Decode the accepted ROIs, a verdict, a refusal or the summary.

    Raises:
        InvalidRequest: it is none of them.
    """
    match response.WhichOneof("response"):
        case "accepted":
            return Accepted(response.accepted.rois)
        case "verdict":
            v = response.verdict
            return Verdict(
                v.roi_id, v.probability, v.diameter_mm, v.model, v.queue_s, v.compute_s,
                v.malignancy if v.HasField("malignancy") else None,
                _TEXTURE_OF_WIRE.get(v.texture, ""), v.mask,
            )  # fmt: skip
        case "refusal":
            r = response.refusal
            known = r.HasField("bound_s") and math.isfinite(r.bound_s) and r.bound_s >= 0.0
            bound_s = r.bound_s if known else None
            return Refusal(r.roi_id, _kind_of_wire(r.kind), r.reason, bound_s, r.field)
        case "summary":
            s = response.summary
            load = decode_load(s.load) if s.HasField("load") else None
            return Summary(s.answered, s.refused, s.total_s, load)
        case _:
            raise InvalidRequest("the response has no verdict, refusal or summary")


def _kind_to_wire(error: str) -> pb.ErrorKind.ValueType:
    name = _KIND_PREFIX + reason_of(error)
    if name not in pb.ErrorKind.keys():  # noqa: SIM118 - it is no dictionary
        return pb.ERROR_KIND_SERVICE_FAULT
    return pb.ErrorKind.Value(name)


def _kind_of_wire(kind: int) -> str:
    """Return the class name; that of `ServiceFault` for a kind of a later contract."""
    known = kind in pb.ErrorKind.values()
    return name_of(
        pb.ErrorKind.Name(pb.ErrorKind.ValueType(kind))[len(_KIND_PREFIX) :] if known else ""
    )


def encode_load(load: Load) -> pb.Load:
    """Encode the load of the cloud, for the summary or for the details of a status."""
    return pb.Load(queue_s=load.queue_s, compute_s=load.compute_s)


def decode_load(message: pb.Load) -> Load | None:
    """Decode the load of the cloud; None unless both times are finite and not negative."""
    times = message.queue_s, message.compute_s
    return Load(*times) if all(math.isfinite(s) and s >= 0.0 for s in times) else None


def load_of(metadata: Given) -> Load | None:
    """Return the load in the status details of a stream that failed; None if there is none."""
    message = unpacked(status_of(metadata), pb.Load())
    return None if message is None else decode_load(message)


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
