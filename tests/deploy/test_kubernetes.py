"""The manifests for Kubernetes: valid by its own schemas, and in agreement with the service.

Schemas come with the package kubernetes-validate, of the extra ``dev``. They hold no schema of
ServiceMonitor, kustomization and prometheus-adapter; these are checked for names and references
alone, and no cluster has taken the manifests here.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cloud.settings import load_settings
from tests.deploy.test_deploy import DEPLOY, ROOT, check_rules, needs, run
from tests.served_metrics import served

FOLDER = DEPLOY / "kubernetes"
VERSIONS = ("1.30.0", kubernetes_validate.latest_version())
"""Oldest and newest version of Kubernetes; 1.30 is the first with the pause of preStop."""
NO_SCHEMA = ("Kustomization", "Component", "ServiceMonitor")


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(FOLDER.rglob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            if "kind" in one:
                yield path.name, one


def of(kind: str) -> dict[str, Any]:
    (found,) = [one for _, one in objects() if one["kind"] == kind]
    return found


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = of("Deployment")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return dict(found)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(version: str) -> None:
    known = [one for _, one in objects() if one["kind"] not in NO_SCHEMA]
    assert len(known) == 5
    for one in known:
        kubernetes_validate.validate(one, version, strict=True)


def test_a_misspelt_field_is_an_error_of_the_schema() -> None:
    """Which shows that the schemas are looked at."""
    given = of("PodDisruptionBudget")
    given["spec"]["maxUnavailble"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="maxUnavailble"):
        kubernetes_validate.validate(given, VERSIONS[-1], strict=True)


def test_the_settings_start_a_service_and_fit_the_pod() -> None:
    settings, ports = load_settings(FOLDER / "cloud.toml"), container()["ports"]
    numbers = {one["name"]: one["containerPort"] for one in ports}
    assert settings.address == f"0.0.0.0:{numbers['grpc']}"
    assert settings.metrics_address == f"0.0.0.0:{numbers['metrics']}"
    assert settings.threads == int(container()["resources"]["requests"]["cpu"])
    assert settings.tls.encryption == "mutual TLS"
    # the pause of preStop counts too, and the service closes after grace_s
    pause_s = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["terminationGracePeriodSeconds"] >= pause_s + settings.grace_s + 5


def test_probes_ask_the_pages_that_the_service_has() -> None:
    """The pod starts and is used when it is ready, and is restarted when it is not alive."""
    probes = {name: container()[name] for name in container() if name.endswith("Probe")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/healthz",
    }
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {"metrics"}


def test_the_files_of_the_settings_are_mounted() -> None:
    settings = load_settings(FOLDER / "cloud.toml")
    mounts = {one["name"]: one["mountPath"] for one in container()["volumeMounts"]}
    volumes = {one["name"]: one for one in pod()["volumes"]}
    assert mounts.keys() == volumes.keys()
    files = [settings.tls.ca, settings.tls.cert, settings.tls.key]
    assert {str(file.parent) for file in files if file} == {mounts["tls"]}
    assert container()["args"][-2:] == ["--config", mounts["settings"]]
    # the keys of the secret are those of the command that makes it
    made = re.findall(r"--from-file=(\S+?)=", (FOLDER / "kustomization.yaml").read_text())
    assert sorted(made) == sorted(file.name for file in files if file)
    (generated,) = of("Kustomization")["configMapGenerator"]
    assert generated["name"] == volumes["settings"]["configMap"]["name"]
    # what the process writes is on volumes, because the rest is read-only
    home = re.search(r"--home-dir (\S+)", (DEPLOY / "containers" / "Containerfile").read_text())
    assert home is not None
    assert {home.group(1), "/tmp"} < set(mounts.values())


def test_the_pod_has_no_rights() -> None:
    inner, outer = container()["securityContext"], pod()["securityContext"]
    assert outer["runAsNonRoot"]
    uid = re.search(r"--uid (\d+)", (DEPLOY / "containers" / "Containerfile").read_text())
    assert uid is not None
    assert outer["runAsUser"] == outer["fsGroup"] == int(uid.group(1))
    assert inner["readOnlyRootFilesystem"]
    assert not inner["allowPrivilegeEscalation"]
    assert inner["capabilities"] == {"drop": ["ALL"]}
    assert not pod()["automountServiceAccountToken"]


def test_every_selector_finds_the_pods_and_every_port_has_its_name() -> None:
    deployment, service = of("Deployment"), of("Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert [one for one in selectors if not one.items() <= labels] == []
    monitor = of("ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    names = {one["name"]: one["containerPort"] for one in container()["ports"]}
    assert service["spec"]["clusterIP"] == "None"
    assert {one["name"]: one["port"] for one in service["spec"]["ports"]} == names
    allowed = [one["port"] for rule in of("NetworkPolicy")["spec"]["ingress"]
               for one in rule["ports"]]  # fmt: skip
    assert sorted(allowed) == sorted(names)
    assert [one["port"] for one in monitor["endpoints"]] == ["metrics"]
    # the rules for alarms know the service by this name
    (job,) = set(re.findall(r'job=~"(.+?)"', (DEPLOY / "prometheus" / "alerts.yml").read_text()))
    assert re.fullmatch(job, service["metadata"]["name"])


def test_the_autoscaler_s_metrics_come_from_series_that_are_served() -> None:
    scaler = of("HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == of("Deployment")["metadata"]["name"]
    wanted = {one["pods"]["metric"]["name"] for one in scaler["metrics"]}
    adapter = yaml.safe_load((FOLDER / "monitoring" / "adapter.yaml").read_text())
    rules = adapter["rules"]["custom"]
    assert {rule["name"]["as"] for rule in rules} == wanted
    queries = " ".join(rule["seriesQuery"] + rule["metricsQuery"] for rule in rules)
    used = set(re.findall(r"\boverread_cloud_\w+", queries))
    assert used
    assert used - served() == set()


@pytest.mark.long
@needs("promtool")
def test_prometheus_understands_the_adapter_s_queries(tmp_path: Path) -> None:
    adapter = yaml.safe_load((FOLDER / "monitoring" / "adapter.yaml").read_text())
    queries = [
        rule["metricsQuery"]
        .replace("<<.GroupBy>>", "namespace, pod")
        .replace("<<.LabelMatchers>>", 'namespace="a", pod=~"b|c"')
        for rule in adapter["rules"]["custom"]
    ]
    check_rules(tmp_path / "rules.yml", *queries)


@pytest.mark.long
@needs("kubectl")
@pytest.mark.parametrize("monitored", [False, True])
def test_kustomize_builds_all_of_it(tmp_path: Path, monitored: bool) -> None:
    """With monitoring the autoscaler alone says how many replicas there are."""
    folder = shutil.copytree(FOLDER, tmp_path / "kubernetes")
    file = folder / "kustomization.yaml"
    if monitored:
        file.write_text(file.read_text().replace("# components:", "components:"))
    built = list(yaml.safe_load_all(run("kubectl", "kustomize", folder)))
    kinds = {"ConfigMap", "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy"}
    more = {"ServiceMonitor", "HorizontalPodAutoscaler"} if monitored else set()
    assert {one["kind"] for one in built} == kinds | more
    (deployment,) = [one for one in built if one["kind"] == "Deployment"]
    assert ("replicas" in deployment["spec"]) is not monitored
    (settings,) = [one for one in built if one["kind"] == "ConfigMap"]
    names = [one["configMap"]["name"] for one in deployment["spec"]["template"]["spec"]["volumes"]
             if "configMap" in one]  # fmt: skip
    assert names == [settings["metadata"]["name"]]
    (image,) = [one["image"] for one in deployment["spec"]["template"]["spec"]["containers"]]
    assert image.startswith("registry.example.org/overread:")


def test_the_image_has_the_version_of_the_package() -> None:
    (image,) = of("Kustomization")["images"]
    assert f'\nversion = "{image["newTag"]}"\n' in (ROOT / "pyproject.toml").read_text()
