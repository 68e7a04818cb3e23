"""What batches, stages and instances gain, on devices that sleep in place of GPUs."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloud.settings import CloudSettings, load_settings
from evaluation.__main__ import app
from evaluation.load.generator import Outcome, Outcomes
from evaluation.load.load import Service, ran_on
from evaluation.load.scaling import Figures, answer_times, as_dict, modes_of
from evaluation.load.sleeping_device import SleepingModel
from tests.cloud.running import run_cloud
from tests.cloud.test_instances import Pair


def test_every_service_has_valid_settings_of_its_own(tmp_path: Path) -> None:
    """One that sleeps has a device for each part and each instance."""
    found: dict[str, CloudSettings] = {}
    for name, rows in modes_of(2, 3, ["cuda:0"], asleep=True, ray=True).items():
        config = tmp_path / "cloud.toml"
        config.write_text("".join(f"{key} = {value}\n" for key, value in rows.items()))
        found[name] = load_settings(config)
    assert list(found) == [
        "one at a time", "batches", "3 stages", "2 instances", "Ray, 1 worker", "Ray, 2 workers",
    ]  # fmt: skip
    assert [one.max_batch for one in found.values()] == [1, 8, 8, 8, 8, 8]
    assert found["3 stages"].stage_engines == ("fake:0", "fake:1", "fake:2")
    assert found["2 instances"].devices == ("fake:0", "fake:1")
    assert (found["Ray, 2 workers"].ray, found["Ray, 2 workers"].instances) == ("local", 2)
    real = modes_of(2, 1, [], asleep=False, ray=False)
    assert real == {
        "one at a time": {"max_batch": "1"}, "batches": {}, "2 instances": {"instances": "2"}
    }  # fmt: skip


def test_answers_that_come_early_are_compared_with_the_last() -> None:
    """Three answers at 1, 2 and 3 s: their mean is 2 s, a third less."""
    rois = [Outcome(0, False, took_s, 0.0) for took_s in (1.0, 2.0, 3.0)] * 2
    assert answer_times(Outcomes(rois=rois), 3) == (3.0, 2.0)
    figures = {
        "one at a time": Figures([10.0, 10.0], [4.0, 4.0], [2.0, 2.0]),
        "batches": Figures([40.0, 50.0], [1.0, 1.0], [0.75, 0.75]),
        "2 instances": Figures([80.0, 50.0], [0.75, 0.75], [0.5, 0.5]),
    }
    single, batches, two = as_dict(figures, dict.fromkeys(figures, "engine"))["services"]
    assert (single["throughput_ratio"], single["merging"]) == (1.0, -0.5)
    assert (batches["throughput_ratio"], batches["added_ms"]) == (4.5, 0.0)
    assert (two["throughput_ratio"], two["added_ms"]) == (1.5, -250.0)


@pytest.mark.parametrize(
    ("settings", "engine", "device"),
    [
        ({}, "asleep:fake", "fake"),
        ({"devices": ["cuda:0", "cuda:1"]}, "asleep:cuda:0 + asleep:cuda:1", "cuda:0, cuda:1"),
        ({"stages": 2, "stage_engines": ["GPU.0", "GPU.1"]}, None, "GPU.0, GPU.1"),
    ],
)
def test_a_result_says_on_what_it_was_measured(
    settings: dict[str, object], engine: str | None, device: str
) -> None:
    given = CloudSettings(**settings)
    model = SleepingModel(given, 0.0, 0.0)
    reader = Pair(tuple(model.open(name, 1) for name in given.devices or ("",)))
    with run_cloud(reader, max_batch=1) as cloud:  # type: ignore[arg-type]
        on = ran_on(Service("batches", cloud.address, ""))
    assert on["device"] == device
    assert on["engine"].replace("1 x ", "") == (engine or "asleep:GPU.0 + asleep:GPU.1")
    assert on["cpu"]


def test_the_command_measures_batches_and_instances() -> None:
    options = ["--synthetic", "20,1", "--rounds", "1", "--seconds", "0.5", "--batches", "1"]
    result = CliRunner().invoke(app, ["scaling", *options, "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["reader"], said["device"], said["rois_a_study"]) == ("asleep 20,1 ms", "fake", 8)
    names = [one["name"] for one in said["services"]]
    assert names == ["one at a time", "batches", "2 instances"]
    assert said["services"][2]["engine"] == "1 x asleep:fake:0 + 1 x asleep:fake:1"
    assert all(one["rois_per_s"] > 0 for one in said["services"])
