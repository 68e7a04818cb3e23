"""Sending data between processes: what is built on the other side."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from typing_extensions import TypeAliasType

from imaging.isolation.transfer import UnexpectedData, from_json, to_json

Scalar = TypeVar("Scalar", bound=np.generic)
Aliased = TypeAliasType(
    "Aliased", np.ndarray[tuple[int, ...], np.dtype[Scalar]], type_params=(Scalar,)
)
"""As numpy 2.5 declares ``NDArray``: an alias that keeps its own name."""


@dataclass(frozen=True)
class Plain:
    voxels: npt.NDArray[np.int16]
    box: tuple[int, ...]


@dataclass(frozen=True)
class Named:
    voxels: Aliased[np.int16]
    box: tuple[int, ...]


@pytest.fixture
def memory() -> Iterator[int]:
    file = os.memfd_create("test")
    yield file
    os.close(file)


@pytest.mark.parametrize("kind", [Plain, Named])
def test_arrays_arrive_whatever_way_numpy_declares_their_type(kind: Any, memory: int) -> None:
    sent = kind(np.arange(24, dtype=np.int16).reshape(2, 3, 4), (1, 2, 3))
    found = from_json(kind, json.loads(json.dumps(to_json(sent, memory))), memory)
    np.testing.assert_array_equal(found.voxels, sent.voxels)
    assert found.box == sent.box


@pytest.mark.parametrize("kind", [Plain, Named])
def test_an_array_of_another_type_is_refused(kind: Any, memory: int) -> None:
    sent = to_json(kind(np.zeros((2, 2), np.float32), ()), memory)
    with pytest.raises(UnexpectedData, match="no array of int16"):
        from_json(kind, sent, memory)
