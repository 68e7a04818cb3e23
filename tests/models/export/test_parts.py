from pathlib import Path

import numpy as np
import pytest
import torch

from models.export import parts
from models.export.manifest import register
from models.export.onnx import export_fp32
from models.export.parts import even_cuts, export_parts
from models.export.split import split
from models.networks.hybrid import HybridNetwork
from models.runtime.artifacts import every, find
from models.runtime.errors import UnfitArtifact
from models.runtime.second_reader import SecondReader
from models.runtime.session import open_session
from models.runtime.staged import open_staged
from tests.models.small_networks import SMALL_HYBRID

SETTINGS = {"calibration": [1.0, 0.0], "outline": [0.0], "roi_shape": [48, 48, 48]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with an untrained small hybrid, whole and in three parts."""
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("weights")
    model = export_fp32(HybridNetwork(SMALL_HYBRID).eval(), "hybrid")
    register("h", model, kind="hybrid", precision="fp32", parent="", settings=SETTINGS, folder=made)
    export_parts("h", 3, made)
    return made


def regions(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 48, 48, 48), dtype=np.uint8)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_three_parts_read_as_the_whole_does(folder: Path, engine: str) -> None:
    whole = SecondReader(open_session(find("h", folder), engine=engine))
    staged = open_staged("h", 3, engine=engine, folder=folder)
    assert (staged.name, staged.version, staged.engine) == (whole.name, whole.version, engine)
    assert len(staged.steps) == 3
    for count in (1, 3):
        one, other = whole.read(regions(count)), staged.read(regions(count))
        for name in ("probability", "diameter_mm", "malignancy"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4)
        np.testing.assert_array_equal(one.texture, other.texture)
        np.testing.assert_array_equal(one.mask, other.mask)


def test_parts_have_engines_of_their_own(folder: Path) -> None:
    staged = open_staged("h", 3, engines=["onnxruntime", "openvino", "onnxruntime"], folder=folder)
    assert [part.engine for part in staged.parts] == ["onnxruntime", "openvino", "onnxruntime"]
    assert staged.engine == "onnxruntime + openvino"


def test_the_parts_know_their_whole(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnfitArtifact, match="overread-models split h --parts 2"):
        open_staged("h", 2, folder=folder)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (tmp_path / "manifest.toml").read_text()
    sha = find("h", folder).sha256
    (tmp_path / "manifest.toml").write_text(text.replace(f'whole = "{sha}"', 'whole = "other"'))
    every.cache_clear()
    with pytest.raises(UnfitArtifact, match="another h"):
        open_staged("h", 3, folder=tmp_path)


def test_cuts_are_at_equal_shares_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With half of it in each of two nodes between these; with all in one still apart."""
    model = export_fp32(HybridNetwork(SMALL_HYBRID).eval(), "hybrid")
    convolutions = [i for i, n in enumerate(model.graph.node) if n.op_type == "Conv"]
    examples = ({"voxels": regions(1)[:, None]}, {"voxels": regions(2)[:, None]})

    def cuts(count: int, busy: list[int]) -> list[int]:
        times = [float(i in busy) for i in range(len(model.graph.node))]
        monkeypatch.setattr(parts, "node_times", lambda *_: times)
        return even_cuts(model, count, examples)

    (cut,) = cuts(2, convolutions[4:6])
    assert convolutions[4] < cut <= convolutions[5]
    assert len(split(model, cuts(3, [convolutions[0] + 6]), examples)) == 3
