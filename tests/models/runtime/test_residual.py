"""The residual gives back every byte, of any pair of files, and never more than it states."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import onnx.helper
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from models.runtime.artifacts import WEIGHTS
from models.runtime.errors import DamagedArtifact
from models.runtime.residual import MOST_BYTES, apply_residual, make_residual


def shipped(name: str) -> bytes:
    return (WEIGHTS / f"screening-{name}.onnx").read_bytes()


def quantised(levels: np.ndarray, kind: int, scale: np.ndarray, zero: np.ndarray) -> bytes:
    """A model with one quantised tensor ``w``, per channel of its first axis."""
    weights = onnx.helper.make_tensor("w", kind, levels.shape, levels.reshape(-1).tolist())
    if kind != TensorProto.INT4:
        weights = numpy_helper.from_array(levels, "w")
    parts = [weights, numpy_helper.from_array(scale, "s")]
    parts.append(onnx.helper.make_tensor("z", kind, zero.shape, zero.tolist()))
    node = onnx.helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"], axis=0)
    graph = onnx.helper.make_graph([node], "g", [], [], parts)
    return bytes(onnx.helper.make_model(graph).SerializeToString())


def test_the_shipped_int8_file_comes_from_int4_and_residual_byte_for_byte() -> None:
    first, final = shipped("int4"), shipped("int8")
    residual = make_residual(first, final)
    assert apply_residual(first, residual) == final
    assert len(residual) < 0.6 * len(make_residual(b"", final))
    assert apply_residual(b"", make_residual(b"", first)) == first


def test_files_that_have_nothing_in_common_have_a_residual_too() -> None:
    small, other = shipped("small-int8"), shipped("int8")
    assert apply_residual(small, make_residual(small, other)) == other
    fp32 = shipped("small-fp32")
    assert apply_residual(other, make_residual(other, fp32)) == fp32


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_any_two_files_have_a_residual(first: bytes, final: bytes) -> None:
    assert apply_residual(first, make_residual(first, final)) == final


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8])
@pytest.mark.parametrize("zeros", [False, True])
def test_levels_are_predicted_through_both_scales(kind: int, zeros: bool) -> None:
    """Of a model whose INT4 form was rounded from it, hardly anything but four bits remains."""
    chance = np.random.default_rng(0)
    low, dtype = (-128, np.int8) if kind == TensorProto.INT8 else (0, np.uint8)
    fine = (chance.integers(0, 256, (8, 512)) + low).astype(dtype)
    scale = chance.uniform(0.01, 0.02, 8).astype(np.float32)
    zero = (chance.integers(0, 3, 8) * zeros).astype(dtype)
    coarse = np.clip(np.rint((fine.astype(float) - zero[:, None]) / 16), -8, 7).astype(np.int8)
    first = quantised(coarse, TensorProto.INT4, scale * 16, np.zeros(8, np.int8))
    final = quantised(fine, kind, scale, zero)
    residual = make_residual(first, final)
    assert apply_residual(first, residual) == final
    if kind == TensorProto.INT8:
        assert len(residual) < 0.75 * fine.size


def test_a_damaged_residual_is_refused_wherever_it_is_damaged() -> None:
    first, final = shipped("int4"), shipped("int8")
    residual = make_residual(first, final)
    for at in range(0, len(residual), len(residual) // 60):
        damaged = bytearray(residual)
        damaged[at] ^= 0x55
        with pytest.raises(DamagedArtifact):
            apply_residual(first, bytes(damaged))
    for end in (0, 7, 80, 90, len(residual) // 2, len(residual) - 100):
        with pytest.raises(DamagedArtifact):
            apply_residual(first, residual[:end])


def test_a_residual_of_another_file_is_refused() -> None:
    residual = make_residual(b"one", b"two")
    with pytest.raises(DamagedArtifact, match="to another file"):
        apply_residual(b"three", residual)


def test_no_residual_makes_more_than_the_limit() -> None:
    """A small file that states a huge one is refused before anything is made."""
    digest = hashlib.sha256(b"").digest()
    head = struct.pack("<8s32s32sQI", b"OVRES\x00\x01\n", digest, digest, MOST_BYTES + 1, 8)
    with pytest.raises(DamagedArtifact, match="expected at most"):
        apply_residual(b"", head + b"x\x9c\x03\x00\x00\x00\x00\x01")
