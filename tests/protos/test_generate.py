"""The committed stubs are what the contract generates."""

import pytest

from protos import generate


def test_the_committed_stubs_have_not_drifted() -> None:
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools, of the extra dev")
    assert generate.drifted() == []
