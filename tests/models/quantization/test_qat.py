import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from evaluation.training import quantization
from evaluation.training.commands import quantization as command
from models.__main__ import app
from models.cli import Method
from models.export.manifest import UNFITTED, amend, method_of, register, training_of
from models.export.onnx import export_float, export_fp32
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.quantization import ptq, qat, sensitivity
from models.quantization.ptq import METHODS, quantize, run_export
from models.quantization.qat import STAGES, lower_in_stages, run_int4, run_qat
from models.quantization.sensitivity import trained_simulation
from models.quantization.simulation import Simulation, exact_weights
from models.runtime.artifacts import every, find
from models.runtime.errors import DamagedArtifact, NoWeights, UnfitArtifact
from models.training.data import Cubes
from models.training.loop import Plan
from models.training.runs import Material, Run, make_screening
from tests.models.quantization.test_simulation import served
from tests.models.small_networks import (
    SmallTask,
    pictures,
    quantized,
    settled,
    shown,
    square_error,
    told,
)


def picture_task(network: nn.Module) -> SmallTask:
    """A task whose batches are pictures; it has no loss for them, matching has one of its own."""
    batch = {"voxels": torch.from_numpy(pictures(2)), "label": torch.zeros(2)}
    return SmallTask(network, lambda _: batch, square_error)


@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")
def test_lowering_in_stages_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """The float network stays as it is."""
    torch.manual_seed(1)
    network = shown(ScreeningNetwork(ScreeningSpec((8, 16, 16, 32), (1, 1, 1))), 6)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    exact = export_float(network, "screening")
    small = quantize(exact, "screening", (pictures(4)[n : n + 1] for n in range(4)))
    files = []
    for resume in (False, True):
        plan = Plan(tmp_path, steps=2 * STAGES, rate=1e-4, resume=resume)
        simulation = Simulation(small, exact_weights(exact))
        chosen = simulation.weights()[-3:]
        task = picture_task(network)
        files.append(lower_in_stages(simulation, network, task, plan, chosen))
    assert files[0].SerializeToString() == files[1].SerializeToString()
    onnx.checker.check_model(files[0])
    kinds = [t.data_type for t in files[0].graph.initializer]
    assert kinds.count(onnx.TensorProto.INT4) == 2 * len(chosen)  # weights and zero points
    assert (tmp_path / f"stage{STAGES}" / "averaged.pt").exists()
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


SHARE = 0.24
"""Of FP32's file, which INT8 takes more of: scales and the graph weigh much in a small network."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a small screening network that has seen pictures."""
    torch.manual_seed(1)
    network = shown(ScreeningNetwork(ScreeningSpec((8, 32, 32, 64), (1, 1, 1))), 6)
    path = tmp_path_factory.mktemp("start") / "averaged.pt"
    torch.save(network.state_dict(), path)
    return path


@contextmanager
def shelf_in(folder: Path) -> Iterator[None]:
    """Let the commands find and enter artifacts in a folder; training material is pictures."""

    def batches(kind: str, data: Path, split: str = "train") -> Iterator[np.ndarray]:
        del kind, data
        yield from (one[None] for one in pictures(2 if split == "val" else 3))

    entered, found = partial(register, folder=folder), partial(find, folder=folder)
    with pytest.MonkeyPatch.context() as patch:
        for module in (ptq, qat, sensitivity, quantization):
            patch.setattr(module, "calibration", batches)
            patch.setattr(module, "register", entered, raising=False)
            patch.setattr(module, "find", found, raising=False)
        patch.setattr(quantization, "every", lambda where=folder: every(where))
        patch.setattr(qat, "task_of", lambda network, *_: picture_task(network))
        nothing = Cubes((), ("LIDC-IDRI-0001",), np.zeros(0), np.zeros(0))
        patch.setattr(Run, "material", lambda _: Material(nothing, (), (), ()))
        yield


def asked(start: tuple[Path, ...], out: Path) -> Run:
    """What the commands are asked for: a run of a moment."""
    nowhere = out / "nowhere"
    return Run(nowhere, out, 1e-4, start, steps=STAGES)


@pytest.fixture(scope="module")
def trained(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the INT8 run left; beside its folder are the float file and its own."""
    folder = tmp_path_factory.mktemp("qat") / "weights"
    run = asked((start,), folder.parent / "run")
    float_file = export_fp32(make_screening(start), "screening")
    register("screening-fp32", float_file, parent="", method="training", folder=folder)
    with shelf_in(folder):
        run_qat(run, "screening", [], "minmax")
    return run.out / "averaged.pt"


@pytest.fixture
def shelf(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of that folder, in which the commands find and enter artifacts."""
    folder = tmp_path / "weights"
    shutil.copytree(trained.parents[1] / "weights", folder)
    with shelf_in(folder):
        yield folder


def test_qat_enters_a_file_that_answers_as_the_float_network(
    trained: Path, shelf: Path, start: Path
) -> None:
    assert trained.exists()
    small = find("screening-int8", shelf)
    assert (small.parent, small.precision) == ("screening-fp32", "int8")
    assert small.method == "quantisation-aware training, ranges from minmax"
    log = json.loads((trained.parent / "log.jsonl").read_text().splitlines()[-1])
    assert small.training["steps"] == log["steps"] > 0
    assert small.training["seeds"] == [0]
    assert small.training["core_hours"] == round(log["core_hours"], 2)
    assert small.training["commits"] == [log["commit"]]
    assert small.training["machines"] == [log["machine"]]
    assert small.training["patients"] == 1
    (found,) = served(small.content())
    (wanted,) = told(make_screening(start).eval(), 2)
    assert float(np.abs(found - wanted).mean()) < 0.1 * float(wanted.std())
    # the file by itself, without the run, is simulated as it answers
    (filed,) = told(Simulation(onnx.load_model_from_string(small.content())).eval(), 2)
    assert float(np.abs(filed - found).mean()) < 0.01 * float(found.std())


@pytest.mark.parametrize("from_run", [True, False])
def test_int4_enters_a_file_of_the_requested_size(
    trained: Path, shelf: Path, start: Path, from_run: bool
) -> None:
    """It starts from the INT8 run or from its file, and prints the number of lowered layers."""
    weights = trained if from_run else None
    run_int4(asked((start,), shelf.parent / "int4"), "screening", weights, [], SHARE)
    whole, int8, int4 = (find(f"screening-{p}", shelf) for p in ("fp32", "int8", "int4"))
    sizes = [artifact.path.stat().st_size for artifact in (whole, int8, int4)]
    assert sizes[2] <= SHARE * sizes[0] < sizes[1]
    assert (int4.parent, int4.precision) == ("screening-int8", "int4")
    assert int4.training["steps"] >= 3  # of three stages
    lowered, _, layers = int4.method.split(" ")[:3]
    assert 0 < int(lowered) < int(layers)


def test_no_convolution_is_rounded_before_it_is_added(shelf: Path) -> None:
    """Engines add first; the file says so, and all compute the same."""
    model = onnx.load_model_from_string(find("screening-int8", shelf).content())
    makers = {out: node for node in model.graph.node for out in node.output}
    sums = [node for node in model.graph.node if node.op_type == "Add"]
    bare = [node for node in sums if any(makers[n].op_type == "Conv" for n in node.input)]
    assert len(bare) == 4  # the second convolution of each block
    for node in sums:
        given = [makers[name] for name in node.input]
        assert [one.op_type for one in given].count("DequantizeLinear") >= 1


def test_a_rounding_that_stands_for_a_relu_stays() -> None:
    """Without it the hybrid, which adds two of them, would add what lies below zero as well."""
    whole = export_fp32(settled("hybrid"), "hybrid").SerializeToString()
    (found, *_), (wanted, *_) = (served(content) for content in (quantized("hybrid"), whole))
    assert float(np.abs(found - wanted).mean()) < 0.03


@pytest.mark.usefixtures("shelf")
def test_a_report_compares_every_method_the_registered_file_and_every_layer(
    trained: Path, start: Path, tmp_path: Path
) -> None:
    found = command.measure("screening", tmp_path, [start], trained)
    rows, layers = found["ranges"], found["layers"]
    assert [row["ranges"] for row in rows] == [*METHODS, "registered"]
    assert all(row[term] > 0 for row in rows for term in ("heat", "place", "strongest"))
    *methods, filed = quantization.ranges(make_screening(start).eval(), "screening", tmp_path, None)
    assert methods == rows[:-1]
    assert filed["heat"] == pytest.approx(rows[-1]["heat"], rel=0.05)
    assert {"stem.0", "down4.1.first.0", "head"} <= {row["layer"] for row in layers}
    assert len({row["layer"] for row in layers}) == len(layers)
    assert max(row["int4"] for row in layers) > max(row["int8"] for row in layers)
    shown = [part.markdown() for part in command.parts(found) if not isinstance(part, str)]
    assert "| ranges | heat | place | strongest |" in shown[0]
    assert "| stem.0 |" in shown[1]


def test_another_network_and_another_run_are_refused(
    shelf: Path, start: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    other = ScreeningNetwork(ScreeningSpec((8, 32, 32, 64), (1, 1, 1)))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    with pytest.raises(UnfitArtifact, match=r"not of the network that --start gives$"):
        trained_simulation(other.eval(), "screening", None)
    with pytest.raises(UnfitArtifact, match="not of the run that made screening-int8"):
        trained_simulation(make_screening(start), "screening", start)  # the float network's weights
    before = (shelf / "manifest.toml").read_bytes()
    with pytest.raises(UnfitArtifact, match="screening-fp32 is not the network that --start gives"):
        run_qat(asked((tmp_path / "other.pt",), tmp_path / "run"), "screening", [], "minmax")
    assert (shelf / "manifest.toml").read_bytes() == before


@pytest.mark.parametrize("other", [{"method": "percentile"}, {"screening": ["a.pt"]}])
def test_a_quantised_run_goes_on_with_the_same_options_only(
    trained: Path, shelf: Path, start: Path, other: dict[str, Any]
) -> None:
    run = replace(asked((start,), trained.parent), resume=True)
    screening = [shelf / one for one in other.get("screening", ())]
    for one in screening:
        shutil.copy(start, one)
    with pytest.raises(UnfitArtifact, match=f"another .*{next(iter(other))}"):
        run_qat(run, "screening", screening, other.get("method", "minmax"))


def test_int4_goes_on_with_the_same_share_only(shelf: Path, start: Path) -> None:
    run = asked((start,), shelf.parent / "int4")
    run_int4(run, "screening", None, [], SHARE)
    before = (shelf / "manifest.toml").read_bytes()
    with pytest.raises(UnfitArtifact, match="another share"):
        run_int4(replace(run, resume=True), "screening", None, [], 2 * SHARE)
    assert (shelf / "manifest.toml").read_bytes() == before


def test_an_export_that_fails_leaves_all_as_it_was(
    shelf: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both artifacts are made before one is entered, and all is known before a file is written."""
    before = {path.name: path.read_bytes() for path in shelf.iterdir()}
    damaged = tmp_path / "run" / "averaged.pt"
    damaged.parent.mkdir()
    shutil.copy(start, damaged)
    (damaged.parent / "log.jsonl").write_text('{"steps": 1, "core_hours": 1}\n')
    with pytest.raises(DamagedArtifact, match="a log lacks"):
        run_export("screening", shelf, [damaged], "minmax", "screening")
    monkeypatch.setattr(ptq, "quantize", lambda *_, **__: int("no ranges"))
    with pytest.raises(ValueError, match="no ranges"):
        run_export("screening", shelf, [start], "minmax", "screening")
    infinite = onnx.load_model_from_string(find("screening-fp32", shelf).content())
    tensor = next(one for one in infinite.graph.initializer if one.data_type == 1)
    values = np.full(tuple(tensor.dims), np.inf, np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    with pytest.raises(UnfitArtifact, match="has values that are not finite"):
        register("screening-fp32", infinite, parent="", folder=shelf)
    assert {path.name: path.read_bytes() for path in shelf.iterdir()} == before
    (shelf / "manifest.toml").write_text("[broken")
    with pytest.raises(DamagedArtifact, match="cannot read the manifest"):
        register("screening-fp32", infinite, parent="", folder=shelf)


@pytest.mark.usefixtures("shelf")
def test_missing_files_are_named_before_anything_is_quantised(start: Path, tmp_path: Path) -> None:
    with pytest.raises(NoWeights, match="--screening"):
        run_qat(asked((start,), tmp_path), "hybrid", [], "minmax")
    with pytest.raises(NoWeights, match="--screening"):
        run_int4(asked((start,), tmp_path), "hybrid", start, [], SHARE)


def test_an_export_enters_both_files_and_keeps_what_was_fitted(shelf: Path, start: Path) -> None:
    """FP32 and INT8 of the same weights; a second export leaves the settings alone."""
    run_export("screening", shelf, [start], "minmax", "screening")
    assert find("screening-int8", shelf).settings == UNFITTED["screening"]
    amend("screening-int8", "settings", {"calibration": [2.0, 1.0]}, shelf)
    run_export("screening", shelf, [start], "percentile", "screening")
    again = find("screening-int8", shelf)
    assert again.settings == {"calibration": [2.0, 1.0]}
    assert again.method == "post-training quantisation, percentile"
    assert "steps" not in again.training  # nothing was trained


def test_a_run_that_began_from_another_counts_with_it(tmp_path: Path) -> None:
    """The second began from the first, which taught the third; an artifact's folder has no log."""
    both = {"patients": 5, "core_hours": 0.5}
    for name, lines in {
        "first": [
            {"steps": 50, "seed": 0, "commit": "a", "machine": "x", "start": []},
            {"steps": 100, "seed": 0, "commit": "b", "machine": "x", "start": ["models/fp32.onnx"]},
        ],
        "second": [
            {"steps": 40, "seed": 7, "commit": "b", "machine": "y", "start": ["first/a.pt"] * 2}
        ],
        "third": [
            {
                "steps": 5,
                "seed": 0,
                "commit": "b",
                "machine": "x",
                "start": [],
                "arm": "dynamic weights",
                "teachers": [str(tmp_path / "first" / "a.pt"), "models/fp32.onnx"],
            }
        ],
    }.items():
        (tmp_path / name).mkdir()
        starts = [{"start": [str(tmp_path / one) for one in line["start"]]} for line in lines]
        (tmp_path / name / "log.jsonl").write_text(
            "".join(json.dumps(a | b | both) + "\n" for a, b in zip(lines, starts, strict=True))
        )
    assert training_of([tmp_path / "second"]) == {
        "steps": 140, "core_hours": 1.0, "patients": 5, "seeds": [0, 7], "commits": ["b", "a"],
        "machines": ["y", "x"],
    }  # fmt: skip
    assert training_of([tmp_path / "third"])["steps"] == 105
    assert method_of([tmp_path / "third"]) == "distillation, dynamic weights, teachers: 2"
    assert method_of([tmp_path / "second"]) == method_of([tmp_path]) == "training"
    assert training_of([tmp_path]) == {}


def test_the_methods_that_can_be_typed_are_those_that_there_are() -> None:
    assert get_args(get_args(Method)[0]) == tuple(METHODS)
    result = CliRunner().invoke(app, ["qat", "magic", "--data", "x", "--start", "y"])
    assert result.exit_code == 2
    assert "magic" in result.stderr
