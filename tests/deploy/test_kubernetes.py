"""The manifests are valid by the schemas of Kubernetes, and say what the service needs to be true of a pod."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it ships no types
import pytest

from service.api.auth import parse_keys
from service.cli.serve import GRACE_S, check_exposure
from service.settings import Settings
from tests.deploy.files import DEPLOY, SETTINGS, document, documents, size

FOLDER = DEPLOY / "kubernetes"
KUBECTL = shutil.which("kubectl")
VERSIONS = ("1.29", "1.33", "1.37")
OPERATOR = "monitoring.coreos.com/v1"
KUSTOMIZATIONS = [path.parent for path in sorted(FOLDER.rglob("kustomization.yaml"))]


def manifests(folder: Path) -> dict[str, Any]:
    """Those that a kustomization names, by kind."""
    return {
        found["kind"]: found
        for name in document(folder / "kustomization.yaml")["resources"]
        for found in documents(folder / name)
    }


BASE = manifests(FOLDER)
POD = BASE["Deployment"]["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]
NAME = {"app.kubernetes.io/name": "nextarm"}


def everything() -> Iterator[Any]:
    for folder in KUSTOMIZATIONS:
        yield from manifests(folder).values()


def is_known(manifest: Any) -> bool:
    """The kinds of the Prometheus operator are none of Kubernetes' own: there is no schema of them here."""
    return bool(manifest["apiVersion"] != OPERATOR)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [pytest.param(found, id=found["kind"]) for found in everything() if is_known(found)])
def test_a_manifest_is_valid_by_the_schema_of_its_kind(manifest: Any, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_sees_a_mistake() -> None:
    wrong = json.loads(json.dumps(BASE["Deployment"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_no_manifest_is_left_out() -> None:
    named = {folder / name for folder in KUSTOMIZATIONS for name in document(folder / "kustomization.yaml")["resources"]}
    assert named == {path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml"}


def test_everything_belongs_to_the_same_pods() -> None:
    assert POD["metadata"]["labels"] == NAME
    assert BASE["Deployment"]["spec"]["selector"]["matchLabels"] == NAME
    assert BASE["Service"]["spec"]["selector"] == NAME
    assert BASE["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == NAME
    assert all(spread["labelSelector"]["matchLabels"] == NAME for spread in POD["spec"]["topologySpreadConstraints"])
    assert [port["targetPort"] for port in BASE["Service"]["spec"]["ports"]] == [port["name"] for port in CONTAINER["ports"]]
    assert POD["spec"]["serviceAccountName"] == BASE["ServiceAccount"]["metadata"]["name"]


def test_a_pod_has_no_rights_and_bounded_resources() -> None:
    assert BASE["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod, container = POD["spec"]["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["spec"]["automountServiceAccountToken"] is False
    assert {"cpu", "memory"} == set(CONTAINER["resources"]["limits"]) == set(CONTAINER["resources"]["requests"])
    assert [mount["mountPath"] for mount in CONTAINER["volumeMounts"]] == ["/tmp"]
    assert all("emptyDir" in volume for volume in POD["spec"]["volumes"])


def test_the_user_is_the_image_s() -> None:
    match = re.search(r"^USER (\d+):(\d+)$", (DEPLOY.parent / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert match is not None
    pod = POD["spec"]["securityContext"]
    assert (str(pod["runAsUser"]), str(pod["runAsGroup"])) == match.groups()


def test_the_probes_ask_the_right_questions() -> None:
    paths = {probe: CONTAINER[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    assert CONTAINER["readinessProbe"]["timeoutSeconds"] > Settings().redis_timeout_s, "a slow store is a 503, not a timeout"


def test_a_pod_leaves_without_losing_a_request() -> None:
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert POD["spec"]["terminationGracePeriodSeconds"] >= pause + GRACE_S + 15
    assert BASE["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert BASE["Deployment"]["spec"]["replicas"] >= 2
    assert BASE["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_every_setting_exists_and_the_service_starts_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"store": "rediss://redis.example:6379/0", "api-keys": "admin:k1,reader:k2", "redis-password": "secret"}
    (generated,) = document(FOLDER / "kustomization.yaml")["configMapGenerator"]
    assert CONTAINER["envFrom"] == [{"configMapRef": {"name": generated["name"]}}]
    given = dict(line.split("=", 1) for line in generated["literals"])
    for variable in CONTAINER["env"]:
        given[variable["name"]] = secrets[variable["valueFrom"]["secretKeyRef"]["key"]]
    assert set(given) <= SETTINGS, set(given) - SETTINGS
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    check_exposure(settings)
    assert parse_keys(settings.api_keys)
    assert settings.port == CONTAINER["ports"][0]["containerPort"]
    assert settings.max_state_bytes <= size(CONTAINER["resources"]["limits"]["memory"]) / 2
    settings.open_storage()


def test_the_service_s_own_variables_do_not_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes gives each pod NEXTARM_PORT=tcp://... for a service `nextarm`, unless `enableServiceLinks` is off."""
    assert BASE["Service"]["metadata"]["name"].upper() + "_PORT" in SETTINGS
    assert POD["spec"]["enableServiceLinks"] is False


def test_the_secret_holds_no_value_here() -> None:
    assert not [found for found in everything() if found["kind"] == "Secret"]
    assert "secretGenerator" not in document(FOLDER / "kustomization.yaml")


# -- what is optional ---------------------------------------------------------------------------------------------------------


def test_the_autoscaler_is_of_this_deployment_and_alone_decides_how_many() -> None:
    scaler = manifests(FOLDER / "autoscaling")["HorizontalPodAutoscaler"]["spec"]
    deployment = BASE["Deployment"]
    target = scaler["scaleTargetRef"]
    assert target == {"apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]
    (patch,) = document(FOLDER / "autoscaling" / "kustomization.yaml")["patches"]
    assert "path: /spec/replicas" in patch["patch"]


def test_the_monitor_finds_the_service_and_the_rules_are_those_of_prometheus() -> None:
    found = manifests(FOLDER / "monitoring")
    monitor = found["ServiceMonitor"]
    assert monitor["apiVersion"] == OPERATOR
    assert monitor["spec"]["selector"]["matchLabels"].items() <= BASE["Service"]["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in BASE["Service"]["spec"]["ports"]]
    assert found["PrometheusRule"]["spec"] == document(DEPLOY / "prometheus-rules.yml")


@pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl on this machine")
@pytest.mark.parametrize("components", [(), ("autoscaling", "monitoring")], ids=["base", "all"])
def test_a_kustomization_of_one_s_own_builds_what_is_valid(components: tuple[str, ...], tmp_path: Path) -> None:
    assert KUBECTL is not None
    base = os.path.relpath(FOLDER, tmp_path)
    own = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "nextarm",
        "resources": [base],
        "components": [f"{base}/{name}" for name in components],
        "images": [{"name": "nextarm", "newName": "registry.example/nextarm"}],
    }
    (tmp_path / "kustomization.yaml").write_text(json.dumps(own))
    built = subprocess.run([KUBECTL, "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    whole = tmp_path / "whole.yaml"
    whole.write_text(built.stdout)
    found = {manifest["kind"]: manifest for manifest in documents(whole)}
    added = {"autoscaling": {"HorizontalPodAutoscaler"}, "monitoring": {"ServiceMonitor", "PrometheusRule"}}
    assert set(found) == set(BASE) | {"ConfigMap"} | {kind for name in components for kind in added[name]}
    for manifest in found.values():
        if is_known(manifest):
            kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "nextarm"
    assert ("replicas" in found["Deployment"]["spec"]) == ("autoscaling" not in components)
    container = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"].startswith("registry.example/nextarm:")
    assert container["envFrom"][0]["configMapRef"]["name"] == found["ConfigMap"]["metadata"]["name"]
