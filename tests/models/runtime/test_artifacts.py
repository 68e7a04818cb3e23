from dataclasses import replace
from pathlib import Path

import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.runtime.artifacts import WEIGHTS, every, expanded, find
from models.runtime.errors import DamagedArtifact, UnknownArtifact


def test_an_artifact_is_found_by_its_name(weights: Path) -> None:
    artifact = find("bright-screening", weights)
    assert artifact.kind == "screening"
    assert artifact.settings["calibration"] == [1.0, 0.0]
    assert artifact.content() == artifact.path.read_bytes()


def test_an_unknown_name_lists_what_there_is(weights: Path) -> None:
    with pytest.raises(UnknownArtifact, match="bright-screening, bright-hybrid"):
        find("nothing", weights)


def test_a_changed_file_is_refused(weights: Path) -> None:
    artifact = find("bright-screening", weights)
    artifact.path.write_bytes(artifact.path.read_bytes() + b"x")
    with pytest.raises(DamagedArtifact, match="SHA-256"):
        artifact.content()


def test_a_missing_file_and_a_missing_manifest_are_named(weights: Path, tmp_path: Path) -> None:
    artifact = find("bright-screening", weights)
    artifact.path.unlink()
    with pytest.raises(DamagedArtifact, match=r"bright-screening\.onnx"):
        artifact.content()
    with pytest.raises(DamagedArtifact, match=r"manifest\.toml"):
        every(tmp_path / "elsewhere")


def test_every_shipped_artifact_is_whole_and_attributed() -> None:
    shipped = every(WEIGHTS)
    assert {"screening-int8", "screening-fp32", "hybrid-int8", "hybrid-fp32"} <= set(shipped)
    for artifact in shipped.values():
        assert artifact.content()
        assert "LIDC-IDRI" in artifact.attribution
        assert artifact.licence


def model(kind: int) -> bytes:
    """One dequantised weight added to the input."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        small (float[3] x) => (float[3] y) <float s = {0.5}> {
            d = DequantizeLinear (w, s)
            y = Add (x, d)
        }""")
    model.graph.initializer.append(helper.make_tensor("w", kind, [3], [-8, 0, 7]))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_four_bits_become_eight_with_the_same_values() -> None:
    content = model(TensorProto.INT4)
    before, after = (onnx.load_from_string(c) for c in (content, expanded(content)))
    weight = next(t for t in after.graph.initializer if t.name == "w")
    assert weight.data_type == TensorProto.INT8
    assert numpy_helper.to_array(weight).tolist() == [-8, 0, 7]
    assert list(after.graph.node) == list(before.graph.node)
    without_int4 = model(TensorProto.INT8)
    assert expanded(without_int4) is without_int4


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(DamagedArtifact, match="not an ONNX file"):
        expanded(b"\xff\xff not a model")


def test_only_int4_artifacts_are_expanded() -> None:
    artifact = find("screening-int8")
    assert artifact.content() == artifact.stored()
    assert replace(artifact, expand=False).content() == artifact.stored()
