import pytest

from evaluation.timing.operators import Layer, achieved, layers_of, peak, shares
from models.runtime.artifacts import find


def test_layers_have_the_operations_of_the_network() -> None:
    """Counted by hand for a convolution of the finest stage; INT8 has as many as float."""
    quantised, plain = (
        layers_of(find(f"screening-{precision}"), (32, 32, 32), 1, rounds=2)
        for precision in ("int8", "fp32")
    )
    assert sum(one.operations for one in quantised) == sum(one.operations for one in plain)
    smooth = next(one for one in quantised if one.name.startswith("/smooth/second"))
    assert smooth.operations == 2 * 8**3 * 32 * (32 * 3)
    assert smooth.int8
    assert not any(one.int8 for one in plain if one.kind == "Convolution")


def test_figures_of_layers_by_hand() -> None:
    layers = [
        Layer("a", "Convolution", True, 0.003, 6000),
        Layer("b", "Convolution", True, 0.003, 3000),
        Layer("c", "Resize", False, 0.002, 0),
    ]
    assert shares(layers) == pytest.approx({"Convolution": 0.75, "Resize": 0.25})
    assert achieved(layers) == pytest.approx(9000 / 0.008)
    assert layers[0].rate == pytest.approx(2e6)


def test_a_network_has_shares_of_one_and_a_rate_below_the_peak() -> None:
    layers = layers_of(find("hybrid-int8"), (), 1, rounds=1)
    assert sum(shares(layers).values()) == pytest.approx(1.0)
    assert 0 < achieved(layers) < peak(1, int8=True)
    assert peak(1, int8=False, rounds=2) > 0
