"""Which files can exceed 16 bits in a sum of two products, and which sums engines cut off."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from models.runtime import hardware
from models.runtime.artifacts import every
from models.runtime.engines import start
from models.runtime.overflow import overflowing

CONVOLUTION = """
    <ir_version: 8, opset_import: ["" : 17]>
    known_answer (uint8[1, 16, 4, 4, 4] voxels) => (float[1, 16, 2, 2, 2] outputs)
    <float one = {1}, uint8 zero = {0}, int8 middle = {0}, float step = {65536}> {
        inputs = DequantizeLinear (voxels, one, zero)
        weights = DequantizeLinear (kernel, one, middle)
        sums = Conv <kernel_shape = [3, 3, 3]> (inputs, weights)
        levels = QuantizeLinear (sums, step, zero)
        outputs = DequantizeLinear (levels, step, zero)
    }"""

PRODUCT = """
    <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    product (uint8[2, 4] left, uint8[4, 2] right) => (float[2, 2] out)
    <float one = {1}, float[2] two = {1, 1}, uint8 zero = {0}, int8 middle = {0},
     int8[2] middles = {0, 0}> { STEPS }"""

GIVEN = "a = DequantizeLinear (left, one, zero)"
WEIGHTS = f"{GIVEN} w = DequantizeLinear <axis = 1> (table, two, middles)"


def product(steps: str, table: list[list[int]]) -> bytes:
    model = onnx.parser.parse_model(PRODUCT.replace("STEPS", steps))
    model.graph.initializer.append(numpy_helper.from_array(np.array(table, np.int8), "table"))
    return model.SerializeToString()


def convolution(level: int) -> bytes:
    model = onnx.parser.parse_model(CONVOLUTION)
    kernel = np.full((16, 16, 3, 3, 3), level, np.int8)
    model.graph.initializer.append(numpy_helper.from_array(kernel, "kernel"))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("table", "can"),
    [
        ([[64, 0], [64, 64], [0, 0], [0, 64]], False),
        ([[65, 0], [64, 0], [0, 0], [0, 0]], True),
        ([[127, 0], [1, 0], [0, 0], [-127, 0]], False),
        ([[127, 0], [0, 2], [0, 0], [0, 0]], True),
        ([[-64, -64], [-64, 64], [0, 64], [0, -64]], False),
        ([[0, -64], [0, 0], [0, 0], [0, -65]], True),
    ],
)
def test_the_two_largest_weights_of_a_layer_count(table: list[list[int]], can: bool) -> None:
    content = product(f"{WEIGHTS} out = MatMul (a, w)", table)
    assert overflowing(content) == ("table" if can else "")


@pytest.mark.parametrize(
    ("steps", "can"),
    [
        (f"{WEIGHTS} b = Transpose (w) c = Transpose (b) out = MatMul (a, c)", True),
        (f"{WEIGHTS} out = Gemm (a, w)", True),
        ("a = Cast <to = 1> (left) w = DequantizeLinear <axis = 1> (table, two, middles)"
         "m = ReduceMean <axes = [0]> (w) out = Add (m, one)", False),
        (f"{GIVEN} w = DequantizeLinear (right, one, zero) out = MatMul (a, w)", True),
        (f"{GIVEN} w = Cast <to = 1> (right) out = MatMul (a, w)", False),
        ("s = MatMulInteger (left, table) out = Cast <to = 1> (s)", True),
        ("q = QLinearMatMul (left, one, zero, right, one, zero, one, zero)"
         "out = DequantizeLinear (q, one, zero)", True),
        (f"{GIVEN} w = DequantizeLinear (table, one, middle) out = com.microsoft.S (a, w)", True),
    ],
    ids=["moved", "gemm", "no factor", "both unknown", "float", "integer", "q-linear", "foreign"],
)  # fmt: skip
def test_what_is_no_product_of_known_weights_proves_nothing(steps: str, can: bool) -> None:
    assert bool(overflowing(product(steps, [[127, 127]] * 4))) == can


def sums(level: int, engine: str = "openvino") -> tuple[float, float]:
    """What an engine gives for a convolution of the largest numbers, and what it is."""
    (found,) = start(engine, convolution(level), 1)(np.full((1, 16, 4, 4, 4), 255, np.uint8))
    return float(found.min()), 255 * level * 16 * 27


@pytest.mark.skipif("avx2" not in hardware.cpu_name(), reason="x86 alone has these instructions")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "AVX2_VNNI", "AVX512_CORE_VNNI"])
def test_openvino_cuts_off_what_can_overflow_and_nothing_else(
    instructions: str, tmp_path: Path
) -> None:
    """An instruction set that the processor lacks is as none."""
    code = f"""
import sys; sys.path[:0] = {sys.path}
from {__name__.rpartition(".")[2]} import convolution, hardware, overflowing, sums
for level in (127, 64):
    found, exact = sums(level)
    print(found < 0.9 * exact, hardware.adds_in_16_bits() and bool(overflowing(convolution(level))))
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "HOME": str(tmp_path),
                   "PYTHONPATH": str(Path(__file__).parent)}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    cut_off, predicted, *small = done.stdout.decode().split()
    assert (cut_off, small) == (predicted, ["False", "False"]), done.stderr.decode()


@pytest.mark.parametrize("level", [127, 64])
def test_onnxruntime_is_exact_for_every_file(level: int) -> None:
    found, exact = sums(level, "onnxruntime")
    assert found == pytest.approx(exact, abs=65536 / 2)


def test_no_network_that_ships_can_overflow() -> None:
    found = {
        name: overflowing(artifact.content())
        for name, artifact in every().items()
        if artifact.precision in ("int8", "int4")
    }
    assert found == dict.fromkeys(found, "")
    assert len(found) == 4
