"""A network of one's own, as docs/own-network.md says: its folder, edge, cloud, Python and fit."""

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from onnx import ModelProto, numpy_helper

import overread
from edge.errors import UnfitModel
from edge.reader import EdgeReader
from imaging.dicom.writer import write_series
from models.data.tables import read_table
from models.runtime.artifacts import WEIGHTS, every
from models.runtime.contract import OUTPUTS
from models.runtime.errors import DamagedArtifact, ModelError, UnfitArtifact
from models.runtime.screener import open_screener
from models.runtime.second_reader import open_second_reader
from tests.conftest import Draw
from tests.models.runtime.conftest import bright_hybrid
from tests.overread.test_api import SPEC
from tests.test_end_to_end import Home, wait_for

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "own-network.md").read_text()
SCREENING = """
    <ir_version: 8, opset_import: ["" : 17]>
    own (uint8[n, 1, z, y, x] voxels) => (float[n, 5, a, b, c] maps) {
        grey = Cast <to = 1> (voxels)
        maps = Conv <strides = [4, 4, 4]> (grey, w, b)
    }"""
"""A screening network of one layer."""


def block(beginning: str) -> str:
    """The block of code of the page that begins so."""
    blocks = re.findall(r"\n\n((?: {4}.*\n)+)", PAGE)
    return next(text for text in map(textwrap.dedent, blocks) if text.startswith(beginning))


def network(text: str = SCREENING, channels: int = 5, side: int = 4) -> ModelProto:
    """A network with random weights, which calls what is bright suspicious."""
    rng, model = np.random.default_rng(0), onnx.parser.parse_model(text)
    weight = rng.normal(0, 1e-5, (channels, 1, side, side, side)).astype(np.float32)
    weight[0] += 20 / side**3 / 255
    bias = np.array([-6, 0, 0, 0, 2, *[0] * channels][:channels], np.float32)
    tensors = (numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b"))
    model.graph.initializer.extend(tensors)
    return model


def own_folder(root: Path, model: ModelProto, edit: Callable[[str], str] = str) -> Path:
    """The folder that the commands of the page make of a network."""
    (root / "screening.onnx").write_bytes(model.SerializeToString())
    subprocess.run(["bash", "-ec", edit(block("mkdir"))], cwd=root, check=True)
    return root / "own"


@pytest.fixture(scope="module")
def ct(drawn: Draw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "ct"
    write_series(drawn(SPEC).volume, folder, seed=SPEC.seed)
    return folder


def test_the_contract_of_the_page_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| float32 \| (.+?) \|", PAGE, re.MULTILINE)
    assert rows == [(kind, *one) for kind, names in OUTPUTS.items() for one in names.items()]


def test_a_network_in_a_folder_of_the_page_reads_from_python(ct: Path, tmp_path: Path) -> None:
    report = overread.screen(ct, model=own_folder(tmp_path, network()))
    assert report.models["edge"].startswith("own-screening 2027-01 ")
    assert "no calibrated guarantee" in report.guarantee.text


GOOD = network()
FINE = SCREENING.replace("[4, 4, 4]", "[2, 2, 2]")
WRONG_FILES = [
    (network(SCREENING.replace("maps", "heat")), UnfitArtifact,
     "own-screening.onnx has the tensors .* heat FLOAT; expected voxels UINT8, maps FLOAT"),
    (network(SCREENING.replace("voxels", "ct")), UnfitArtifact, "tensors ct UINT8, "),
    (network(SCREENING.replace("uint8[", "float[")), UnfitArtifact,
     "has the tensors voxels FLOAT, maps FLOAT; expected voxels UINT8"),
    (network(channels=4), UnfitArtifact, r"maps of \(1, 4, 4, 8, 12\) .*expected \(n, 5, z/4"),
    (network(FINE), UnfitArtifact, r"maps of \(1, 5, 7, 15, 23\) for voxels of \(1, 1, 16, 32"),
    (network(SCREENING.replace("z, y, x", "64, 64, 64")), UnfitArtifact,
     r"voxels of \(free, 1, 64, 64, 64\), expected \(n, 1, z, y, x\) with free n, z, y and x"),
    (network(SCREENING.replace("uint8[n", "uint8[1")), UnfitArtifact, r"of \(1, 1, free"),
    (network(SCREENING.replace("[n, 1, z, y, x] v", "[n] v")), UnfitArtifact, r"of \(free\), exp"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "error", "says"), WRONG_FILES)
def test_a_file_that_breaks_the_contract_is_named_with_what_is_expected(
    model: ModelProto, error: type[ModelError], says: str, tmp_path: Path
) -> None:
    model.graph.output[0].type.tensor_type.shape.Clear()  # also where the file does not say it
    folder = own_folder(tmp_path, model)
    with pytest.raises(error, match=says):
        open_screener("own-screening", folder=folder)


@pytest.mark.parametrize(
    ("old", "new", "error", "says"),
    [
        ('version = "2027-01"\n', "", DamagedArtifact, "version = None, expected a text"),
        ('"2027-01"', "2027", DamagedArtifact, "version = 2027, expected a text"),
        ('"fp32"', '"fp16"', DamagedArtifact, "'fp16', expected fp32 or int8 or int4"),
        ('"screening"', '"cnn"', UnfitArtifact, "of kind 'cnn', expected 'screening'"),
        ("thresholds = ", "limits = ", UnfitModel, "own-screening: thresholds = None"),
        ("[own-screening]", 'x = "y"\n[own-screening]', DamagedArtifact, "x: file = None"),
        ('"own-screening.onnx"', r'"a\u0000.onnx"', DamagedArtifact, "embedded null byte"),
        ('"own-screening.onnx"', "[" * 5000, DamagedArtifact, "cannot read the manifest"),
        ('"own-screening.onnx"', "1" * 5000, DamagedArtifact, "cannot read the manifest"),
    ],
)
def test_a_wrong_manifest_names_the_key(
    old: str, new: str, error: type[Exception], says: str, tmp_path: Path
) -> None:
    folder = own_folder(tmp_path, GOOD, lambda text: text.replace(old, new))
    with pytest.raises(error, match=says):
        EdgeReader.of(open_screener("own-screening", folder=folder))


def own_hybrid(folder: Path, model: ModelProto) -> None:
    """Enter a second reader beside the screening network, as the page says in words."""
    (settings,) = re.findall(r"settings (`calibration.*?`)\.", PAGE.replace("\n", " "))
    lines = "\n".join(re.findall(r"`(.+?)`", settings))
    text = block("mkdir").replace("screening", "hybrid")
    entry = re.sub(r"(?s)calibration =.*?(?=END)", f"{lines}\n", text).replace(" > own", " >> own")
    (folder.parent / "hybrid.onnx").write_bytes(model.SerializeToString())
    subprocess.run(["bash", "-ec", entry], cwd=folder.parent, check=True)


def test_a_second_reader_that_breaks_the_contract_is_named(tmp_path: Path) -> None:
    folder, model = own_folder(tmp_path, GOOD), bright_hybrid()
    del model.graph.output[4]
    own_hybrid(folder, model)
    with pytest.raises(UnfitArtifact, match=r"texture FLOAT; expected .*, mask FLOAT"):
        open_second_reader("own-hybrid", folder=folder)


def test_what_is_no_network_is_named(tmp_path: Path) -> None:
    folder = own_folder(tmp_path, GOOD)
    content, manifest = b"no network", (folder / "manifest.toml").read_text()
    before, after = (hashlib.sha256(c).hexdigest() for c in (GOOD.SerializeToString(), content))
    (folder / "own-screening.onnx").write_bytes(content)
    (folder / "manifest.toml").write_text(manifest.replace(before, after))
    with pytest.raises(UnfitArtifact, match=r"own-screening\.onnx is not an ONNX file"):
        open_screener("own-screening", folder=folder)


@pytest.mark.long
def test_edge_and_cloud_read_with_networks_from_the_page(ct: Path, tmp_path: Path) -> None:
    folder = own_folder(tmp_path, GOOD)
    own_hybrid(folder, bright_hybrid())
    config = {name: tmp_path / f"{name}.toml" for name in ("edge", "cloud")}
    of_cloud = re.findall(r"`(model(?:_folder)? = .+?)`", PAGE)
    for name, text in (("edge", block("screening_model")), ("cloud", "\n".join(of_cloud))):
        config[name].write_text(text.replace("/srv/models/own", str(folder)))
    home, ready = Home(tmp_path), tmp_path / "ready"
    serve = ("--config", config["cloud"], "--address", "127.0.0.1:0", "--ready-file", ready)
    with home.running("cloud", "serve", *serve) as process:
        wait_for(ready.is_file, process)
        address, out = ready.read_text(), tmp_path / "report"
        options = ("--config", config["edge"], "--cloud", address, "--deadline", "600")
        with home.running("edge", "screen", ct, "--out", out, *options) as edge:
            assert edge.wait(600) == 0
    models = json.loads((out / "report.json").read_text())["models"]
    assert models["edge"].startswith("own-screening 2027-01 ")
    assert models["cloud"] == "own-hybrid 2027-01"


@pytest.mark.long
def test_the_command_of_the_page_fits_a_network(shared_data: Path, tmp_path: Path) -> None:
    """With a network that ranks nodules, two scans and a few nodules; the shipped hybrid stays."""
    shipped = onnx.load(WEIGHTS / "screening-int8.onnx")
    folder, data = own_folder(tmp_path, shipped), tmp_path / "data"
    text = (folder / "manifest.toml").read_text().replace('"fp32"', '"int8"')
    (folder / "manifest.toml").write_text(text)
    (data / "nodules").mkdir(parents=True)
    for part, keep in (("lidc", ("lidc_0005", "lidc_0306")), ("ct", ())):
        (data / part).mkdir()
        for scan in keep:
            shutil.copytree(shared_data / part / scan, data / part / scan)
        for file in ("scans.csv", "marks.csv"):
            copy_rows(shared_data / part / file, data / part / file, "scan", keep)
    copy_some_cubes(shared_data / "nodules", data / "nodules")
    (line,) = re.findall(r"overread-models (fit .*)", PAGE)
    command, environment = Home(tmp_path).command("models", *line.split())
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(overread.__file__).parents[1])])
    before = (WEIGHTS / "manifest.toml").read_bytes()
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert (WEIGHTS / "manifest.toml").read_bytes() == before
    fitted = every(folder)["own-screening"].settings
    assert fitted["guarantee"]["screening"].startswith("2027-01")
    assert fitted["thresholds"]["finding"] != 0.5


def copy_some_cubes(source: Path, target: Path) -> None:
    """Write a folder of cubes with some of those of validation and calibration."""
    rows = read_table(source / "index.csv", ()).rows
    some = [r for r in rows if r["split"] == "val" or r["subset"] == "4"][:400:12]
    number = dict[tuple[str, str], str]()
    for split in ("train", "val"):
        kept = [row["row"] for row in some if row["split"] == split]
        number |= {(split, row): str(i) for i, row in enumerate(kept)}
        with np.load(source / f"{split}.npz") as arrays:
            parts = {name: arrays[name][[int(row) for row in kept]] for name in ("ct", "votes")}
        np.savez(target / f"{split}.npz", **parts)
    for name in ("index.csv", "marks.csv"):
        table = read_table(source / name, ())
        with (target / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, table.header)
            writer.writeheader()
            for row in table.rows:
                if at := number.get((row["split"], row["row"])):
                    writer.writerow(row | {"row": at})


def copy_rows(source: Path, target: Path, column: str, keep: tuple[str, ...] | list[str]) -> None:
    """Write a CSV file with the rows whose column has one of the values."""
    with source.open(newline="") as file, target.open("w", newline="") as out:
        rows = csv.DictReader(file)
        writer = csv.DictWriter(out, rows.fieldnames or ())
        writer.writeheader()
        writer.writerows(row for row in rows if row[column] in keep)
