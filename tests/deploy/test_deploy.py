"""What installs Overread fits the programs: units, containers, alert rules and dashboard."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from cloud.settings import CloudSettings
from edge.settings.core import EdgeSettings
from process.endpoints import serving_metrics
from process.settings import settings_of
from tests.served_metrics import served

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def run(*command: str | Path, **environment: str) -> str:
    """The output of a command that must end with 0."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@pytest.mark.parametrize("file", ["prometheus/alerts.yml", "grafana/overread.json"])
def test_every_time_series_of_alerts_and_dashboard_is_served(file: str) -> None:
    used = set(re.findall(r"\boverread_(?:edge|cloud)_\w+", (DEPLOY / file).read_text()))
    assert len(used) > 10
    assert used - served() == set()


def test_the_dashboard_has_a_query_in_each_panel_and_no_panel_twice() -> None:
    board = json.loads((DEPLOY / "grafana" / "overread.json").read_text())
    panels = [one for one in board["panels"] if one["type"] != "row"]
    assert all(target["expr"] for one in panels for target in one["targets"])
    assert len({one["title"] for one in panels}) == len(panels) >= 15
    cells = [(x, y) for one in board["panels"] for x, y in cells_of(**one["gridPos"])]
    assert len(set(cells)) == len(cells)


def cells_of(x: int, y: int, w: int, h: int) -> list[tuple[int, int]]:
    """The cells of the dashboard's grid that a panel covers."""
    return list(product(range(x, x + w), range(y, y + h)))


def check_rules(file: Path, *expressions: str) -> None:
    """Let promtool read these expressions; ``file`` is made."""
    rules = [{"record": f"query_{n}", "expr": one} for n, one in enumerate(expressions)]
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    run("promtool", "check", "rules", file)


@pytest.mark.long
@needs("promtool")
def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    board = json.loads((DEPLOY / "grafana" / "overread.json").read_text())
    queries = [target["expr"] for one in board["panels"] for target in one.get("targets", ())]
    check_rules(tmp_path / "rules.yml", *(re.sub(r"\$\w+", "a", one) for one in queries))


@pytest.mark.long
@needs("promtool")
def test_prometheus_loads_the_alert_rules_and_they_fire() -> None:
    run("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    run("promtool", "test", "rules", Path(__file__).with_name("alerts_test.yml"))


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    """With the programs of this environment, because /opt/overread is not there."""
    here = tmp_path / unit.name
    here.write_text(
        unit.read_text().replace("/opt/overread/current/venv/bin", str(Path(sys.prefix, "bin")))
    )
    output = run("systemd-analyze", "verify", here)
    assert unit.name not in output


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_service_may_do_little(unit: Path) -> None:
    """Of 10, which is all, at most 2; before system calls were filtered it was 3.5."""
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_what_a_service_writes_is_for_its_user_alone(unit: Path) -> None:
    text = unit.read_text()
    assert "\nUMask=0077\n" in text
    assert "\nStateDirectoryMode=0700\n" in text


def test_the_unit_of_the_cloud_needs_no_folder_of_the_edge() -> None:
    """A unit whose ReadWritePaths are missing does not start."""
    edge, cloud = ((DEPLOY / "systemd" / f"overread-{n}.service").read_text()
                   for n in ("edge", "cloud"))  # fmt: skip
    assert "ReadWritePaths=/srv/overread" in edge
    assert "/srv/overread" not in cloud


def test_the_settings_of_the_containers_exist_and_start(monkeypatch: pytest.MonkeyPatch) -> None:
    services = yaml.safe_load((DEPLOY / "containers" / "compose.yaml").read_text())["services"]
    for service, settings in (("edge", EdgeSettings), ("cloud", CloudSettings)):
        given = services[service]["environment"]
        prefix = settings.model_config["env_prefix"]
        names = {name.removeprefix(prefix).lower().replace("__", ".") for name in given}
        assert names - settings_of(settings).keys() == set()
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        assert settings().metrics_address.startswith("0.0.0.0")


def test_the_image_installs_what_is_pinned_and_nothing_else() -> None:
    """All that the package depends on, in the versions of constraints.txt, each with its hashes."""
    text = (DEPLOY / "containers" / "requirements.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    del pinned["colorama"]  # for Windows alone
    constraints = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    assert dict(line.split("==") for line in constraints.split()).items() >= pinned.items()
    assert (
        len(re.findall(r"^\S+==.* \\\n    --hash=sha256:", text, re.MULTILINE)) == len(pinned) + 1
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["build-system"]["requires"]
    assert {re.match(r"[\w-]+", one)[0].lower() for one in wanted} - pinned.keys() == set()  # type: ignore[index]


@pytest.mark.parametrize(("wrong", "status"), [("", 0), ("stalled", 1)])
def test_the_health_check_of_the_image(wrong: str, status: int) -> None:
    text = (DEPLOY / "containers" / "Containerfile").read_text()
    (command,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.MULTILINE)
    with serving_metrics(CollectorRegistry(), "127.0.0.1:0", {"loop": lambda: wrong}, {}) as at:
        for given in ({}, {"OVERREAD_EDGE_METRICS_ADDRESS": f"0.0.0.0:{str(at).split(':')[1]}"}):
            done = subprocess.run(
                json.loads(command), env=os.environ | given, capture_output=True, check=False
            )
            assert done.returncode == (status if given else 0), done.stderr


def test_the_container_gets_every_package() -> None:
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    packages = {Path(one).parts[0] for one in hatch["build"]["targets"]["wheel"]["only-include"]}
    copied = (ROOT / ".containerignore").read_text().splitlines()
    assert [one for one in packages if f"!{one}" not in copied] == []
