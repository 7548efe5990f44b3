"""The manifests are valid by the schemas of Kubernetes, and say what the service needs to be true of a pod."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
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
NGINX_FOLDER = DEPLOY / "nginx"
KUBECTL = shutil.which("kubectl")
VERSIONS = ("1.29", "1.33", "1.37")
OPERATOR = "monitoring.coreos.com/v1"
KUSTOMIZATIONS = [path.parent for path in sorted(FOLDER.rglob("kustomization.yaml"))]


def resources(folder: Path) -> list[Any]:
    """The manifests that a kustomization names."""
    return [found for name in document(folder / "kustomization.yaml")["resources"] for found in documents(folder / name)]


def manifests(folder: Path) -> dict[str, Any]:
    """By kind."""
    return {found["kind"]: found for found in resources(folder)}


BASE = manifests(FOLDER)
POD = BASE["Deployment"]["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]
NAME = {"app.kubernetes.io/name": "nextarm"}


def everything() -> Iterator[Any]:
    for folder in KUSTOMIZATIONS:
        yield from resources(folder)


def is_known(manifest: Any) -> bool:
    """The kinds of the Prometheus operator are none of Kubernetes' own: there is no schema of them here."""
    return bool(manifest["apiVersion"] != OPERATOR)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "manifest",
    [pytest.param(found, id=f"{found['kind']} {found['metadata']['name']}") for found in everything() if is_known(found)],
)
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
    limit = size(CONTAINER["resources"]["limits"]["memory"])
    assert settings.max_state_bytes <= limit / 2
    assert settings.max_state_bytes <= settings.memory_bytes == int(0.6 * limit)
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


AFFINITY = {(found["kind"], found["metadata"]["name"]): found for found in resources(FOLDER / "affinity")}
BALANCER = AFFINITY["Deployment", "nextarm-balancer"]["spec"]["template"]
OF_BALANCER = {"app.kubernetes.io/name": "nextarm-balancer"}


def test_the_balancer_finds_every_pod_by_name_and_its_service_finds_it() -> None:
    replicas = AFFINITY["Service", "nextarm-replicas"]["spec"]
    assert replicas["clusterIP"] == "None", "the name stands for the pods, not for an address in front of them"
    assert replicas["selector"] == NAME
    (nginx,) = BALANCER["spec"]["containers"]
    given = {variable["name"]: variable.get("value") for variable in nginx["env"]}
    assert given["REPLICAS"] == f"nextarm-replicas.$(NAMESPACE).svc.cluster.local:{CONTAINER['ports'][0]['containerPort']}"
    assert list(given).index("NAMESPACE") < list(given).index("REPLICAS"), "a variable is known after its line"
    assert BALANCER["metadata"]["labels"] == OF_BALANCER == AFFINITY["Service", "nextarm-balancer"]["spec"]["selector"]
    assert AFFINITY["PodDisruptionBudget", "nextarm-balancer"]["spec"]["selector"]["matchLabels"] == OF_BALANCER
    labels = [AFFINITY["Service", name]["metadata"]["labels"] for name in ("nextarm-replicas", "nextarm-balancer")]
    assert NAME not in labels, "or the monitor would scrape a pod twice, and nginx"
    (literals,) = (generated["literals"] for generated in document(FOLDER / "kustomization.yaml")["configMapGenerator"])
    assert f"NEXTARM_TRUSTED_PROXIES={given['TRUSTED_PROXIES']}" in literals, "both trust the same network"


def test_the_balancer_is_that_of_docker_compose() -> None:
    kustomization = document(FOLDER / "affinity" / "kustomization.yaml")
    (generated,) = document(NGINX_FOLDER / "kustomization.yaml")["configMapGenerator"]
    assert [(FOLDER / "affinity" / path).resolve() for path in kustomization["components"]] == [NGINX_FOLDER]
    compose = document(DEPLOY.parent / "docker-compose.yml")["services"]["nginx"]
    assert {f"./deploy/nginx/{name}" for name in generated["files"]} == {mount.split(":")[0] for mount in compose["volumes"]}
    (image,) = kustomization["images"]
    assert f"{image['name']}:{image['newTag']}" == compose["image"]
    (nginx,) = BALANCER["spec"]["containers"]
    volumes = {volume["name"]: volume for volume in BALANCER["spec"]["volumes"]}
    assert volumes["configuration"]["configMap"]["name"] == generated["name"]
    mounted = {mount["mountPath"]: mount["name"] for mount in nginx["volumeMounts"]}
    assert mounted == {"/tmp": "tmp", "/etc/nginx/nginx.conf": "configuration", "/etc/nextarm": "configuration"}
    assert nginx["command"] == ["sh", "/etc/nextarm/balance.sh"]
    security = BALANCER["spec"]["securityContext"]
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == compose["user"]
    assert nginx["securityContext"] == CONTAINER["securityContext"]
    assert size(nginx["resources"]["limits"]["memory"]) == size(compose["deploy"]["resources"]["limits"]["memory"])
    asked = compose["healthcheck"]["test"][-1]
    for probe in ("readinessProbe", "livenessProbe"):
        assert asked.endswith(f":{nginx['ports'][0]['containerPort']}{nginx[probe]['httpGet']['path']}")


def test_a_pod_stays_until_the_balancer_has_noticed_that_it_leaves() -> None:
    (patch,) = document(FOLDER / "affinity" / "kustomization.yaml")["patches"]
    match = re.search(r"preStop/exec/command, value: \[sleep, \"(\d+)\"\]", patch["patch"])
    assert match is not None
    assert int(match[1]) >= 5 + 2 + 1, "the name server's answers live for 5 s, and the balancer asks every 2 s"
    assert POD["spec"]["terminationGracePeriodSeconds"] >= int(match[1]) + GRACE_S + 15


@pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl on this machine")
@pytest.mark.parametrize("components", [(), ("autoscaling", "monitoring"), ("affinity",)], ids=["base", "all", "affinity"])
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
    built_manifests = documents(whole)
    names = Counter((manifest["kind"], manifest["metadata"]["name"]) for manifest in built_manifests)
    assert max(names.values()) == 1
    expected = [found["kind"] for folder in (FOLDER, *(FOLDER / name for name in components)) for found in resources(folder)]
    maps = 2 if "affinity" in components else 1
    assert Counter(kind for kind, _ in names) == Counter([*expected, *["ConfigMap"] * maps])
    for manifest in built_manifests:
        if is_known(manifest):
            kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "nextarm"
    found = {manifest["kind"]: manifest for manifest in built_manifests if "balancer" not in manifest["metadata"]["name"]}
    if "affinity" in components:
        (balancer,) = (
            one for one in built_manifests if (one["kind"], one["metadata"]["name"]) == ("Deployment", "nextarm-balancer")
        )
        (given,) = (one for one in built_manifests if one["kind"] == "ConfigMap" and "nginx.conf" in one["data"])
        assert given["data"]["nginx.conf"] == (NGINX_FOLDER / "nginx.conf").read_text()
        (volume,) = (one for one in balancer["spec"]["template"]["spec"]["volumes"] if one["name"] == "configuration")
        assert volume["configMap"]["name"] == given["metadata"]["name"], "a change of the configuration starts new pods"
    assert ("replicas" in found["Deployment"]["spec"]) == ("autoscaling" not in components)
    container = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"].startswith("registry.example/nextarm:")
    assert container["envFrom"][0]["configMapRef"]["name"] == found["ConfigMap"]["metadata"]["name"]
