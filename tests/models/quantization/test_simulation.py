import numpy as np
import onnx
import pytest
import torch

from models.quantization.operators import UnknownOperator, run
from models.quantization.sensitivity import match_loss, select_layers, sensitivity
from models.quantization.simulation import Simulation, exact_weights, to_onnx
from models.runtime.artifacts import expanded
from models.runtime.errors import UnfitArtifact
from models.runtime.overflow import overflowing
from tests.models.small_networks import answered, exported, pictures, quantized, settled, told, unit

Made = tuple[torch.nn.Module, onnx.ModelProto, onnx.ModelProto]
"""A network, its float export, and its INT8 form."""


@pytest.fixture(scope="module", params=["screening", "hybrid"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def quantised(kind: str) -> Made:
    exact, small = (onnx.load_from_string(made(kind)) for made in (exported, quantized))
    return settled(kind), exact, small


@pytest.fixture
def simulation(quantised: Made) -> Simulation:
    _, exact, small = quantised
    return Simulation(small, exact_weights(exact)).eval()


def served(content: bytes) -> list[np.ndarray]:
    return answered(content, voxels=pictures(2))


def agree(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """Values near a rounding's edge may fall either way, and move what comes after: few do."""
    for a, b in zip(found, wanted, strict=True):
        assert float(np.abs(a - b).mean()) < 0.05 * max(float(b.std()), 0.5)


def test_the_simulation_answers_as_the_file(simulation: Simulation, quantised: Made) -> None:
    agree(told(simulation, 2), served(quantised[2].SerializeToString()))


def test_what_was_learnt_is_in_the_file(simulation: Simulation, quantised: Made) -> None:
    network = quantised[0]
    x = unit(2)
    with torch.no_grad():
        wanted = network(x)
    for name in simulation.weights():
        simulation.lower(name, 4)
    simulation.train()
    learner = torch.optim.Adam(simulation.parameters(), lr=2e-5)
    lost = []
    for _ in range(6):
        learner.zero_grad()
        loss = torch.stack(list(match_loss(simulation(x), wanted).values())).sum()
        loss.backward()
        learner.step()
        lost.append(float(loss.detach()))
    assert min(lost[1:]) < lost[0]
    shift_zero_points(simulation)
    small = to_onnx(simulation.eval())
    onnx.checker.check_model(small)
    agree(told(simulation, 2), served(small.SerializeToString()))


def shift_zero_points(simulation: Simulation) -> None:
    learnt = [r.zero_offset for r in map(simulation.rounding_of, simulation.rounding)
              if r.zero_offset.requires_grad]  # fmt: skip
    assert learnt
    for offset in learnt:
        offset.data += 0.03


def test_no_file_can_overflow_whatever_was_learnt(simulation: Simulation, quantised: Made) -> None:
    assert overflowing(quantised[2].SerializeToString()) == ""
    for name in simulation.weights():
        simulation.exact[name].data *= 3  # beyond the range
    assert overflowing(to_onnx(simulation).SerializeToString()) == ""


def test_a_file_of_eight_bits_loses_one(quantised: Made) -> None:
    """It answers as before, up to the rounding, and what is made of it cannot overflow."""
    wide = onnx.ModelProto.FromString(quantised[2].SerializeToString())
    store = {tensor.name: tensor for tensor in wide.graph.initializer}
    for node in wide.graph.node:
        level = store.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if level is not None and level.data_type == onnx.TensorProto.INT8:
            levels, scale = (onnx.numpy_helper.to_array(store[n]) for n in node.input[:2])
            doubled = np.clip(2 * levels.astype(int), -127, 127).astype(np.int8)
            level.CopyFrom(onnx.numpy_helper.from_array(doubled, level.name))
            half = onnx.numpy_helper.from_array(np.asarray(scale / 2), node.input[1])
            store[node.input[1]].CopyFrom(half)
    assert overflowing(wide.SerializeToString())
    simulation = Simulation(wide).eval()
    agree(told(simulation, 2), served(quantised[2].SerializeToString()))
    assert overflowing(to_onnx(simulation).SerializeToString()) == ""


def test_a_run_and_its_file_have_the_same_zero_points(
    simulation: Simulation, quantised: Made
) -> None:
    shift_zero_points(simulation)
    wanted = told(simulation, 2)
    again = Simulation(to_onnx(simulation), exact_weights(quantised[1])).eval()
    again.load_state_dict(simulation.state_dict())
    for found, want in zip(told(again, 2), wanted, strict=True):
        np.testing.assert_array_equal(found, want)


def test_an_int4_file_is_small_and_its_expansion_says_the_same(simulation: Simulation) -> None:
    """Lowered weights take half the bytes; laid out as INT8 they give the same answers."""
    before = to_onnx(simulation).ByteSize()
    names = sorted(simulation.weights(), key=lambda n: -simulation.exact[n].numel())[:6]
    for name in names:
        simulation.lower(name, 4)
    small = to_onnx(simulation)
    saved = sum(simulation.exact[n].numel() for n in names) / 2
    assert before - small.ByteSize() == pytest.approx(saved, rel=0.02)
    content = small.SerializeToString()
    agree(served(expanded(content)), served(content))
    agree(told(simulation, 2), served(content))


@pytest.mark.parametrize("kind", ["screening"], indirect=True)
def test_layers_are_compared_and_the_simulation_left_alone(
    simulation: Simulation, quantised: Made
) -> None:
    """A layer that was lowered before stays lowered."""
    simulation.lower(simulation.weights()[0], 4)
    before = to_onnx(simulation).SerializeToString()
    layers = sensitivity(simulation, quantised[0], [unit(1)])
    assert to_onnx(simulation).SerializeToString() == before
    assert [one.name for one in layers] == simulation.weights()
    assert max(one.int4 for one in layers) > max(one.int8 for one in layers)
    assert len({one.layer for one in layers}) == len(layers)
    size = len(before)
    few, many = select_layers(layers, size, size - 1000), select_layers(layers, size, size // 2)
    assert 0 < len(few) < len(many) <= len(layers)


def test_an_operator_that_is_not_known_is_named_and_a_form_of_one_too() -> None:
    """Padding on one side only would be computed wrong."""
    odd = onnx.helper.make_node("Einsum", ["a"], ["b"], "/odd")
    with pytest.raises(UnknownOperator, match=r"/odd: Einsum"):
        run(odd, [torch.zeros(1)])
    ones, pads = [1] * 3, [0, 0, 0, 1, 1, 1]
    odd = onnx.helper.make_node(
        "Conv", ["x", "w"], ["y"], "/odd", pads=pads, strides=ones, dilations=ones, group=1
    )
    with pytest.raises(UnknownOperator, match=r"/odd: pads = \[0, 0, 0, 1, 1, 1\]"):
        run(odd, [torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 2, 2, 2)])


def test_weights_of_another_network_do_not_fit(quantised: Made) -> None:
    with pytest.raises(UnfitArtifact, match="the float network has no weight of that name"):
        Simulation(quantised[2], {})


def test_any_bias_has_the_scale_of_the_products_it_is_added_to() -> None:
    """That of a matrix product as that of a convolution; a single column keeps its axis."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 17]>
        one (float[n, 4] voxels) => (float[n, 1] y)
        <float s = {0.5}, uint8 z = {0}, float[1] ws = {0.25}, int8[1] wz = {0},
         float[1] bs = {0.125}, int32[1] bz = {0},
         int8[4, 1] w_quantized = {1, 1, 1, 1}, int32[1] b_quantized = {8}>
        {
            xq = QuantizeLinear(voxels, s, z)
            x = DequantizeLinear(xq, s, z)
            w = DequantizeLinear <axis = 1> (w_quantized, ws, wz)
            b = DequantizeLinear <axis = 0> (b_quantized, bs, bz)
            y = Gemm(x, w, b)
        }
    """)
    weight = np.arange(1, 5, dtype=np.float32)[:, None]  # (4, 1): one column
    simulation = Simulation(model, {"w": weight, "b": np.array([1.0], np.float32)})
    assert simulation.bias_scale("b").tolist() == pytest.approx([0.125])
    simulation.lower("w", 4)
    assert simulation.rounding_of("w").scale.shape == (1, 1)
    found = simulation(torch.full((1, 4), 2.0)).detach()
    assert float(found) == pytest.approx(2 * 10 + 1, rel=0.15)
