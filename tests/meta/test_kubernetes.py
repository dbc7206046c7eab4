"""The manifests of Kubernetes are valid, and agree with the server and its image.

KServe's own fields have no schema in a package: docs/guide/kubernetes.md says how they were
checked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.http.routes import operation
from app.http.telemetry.metrics import Metrics
from app.process.settings import PREFIX, Settings, load_settings
from app.server.server import _SPARE_S

VERSION = "1.37"
CUSTOM = {"ServingRuntime", "InferenceService"}
UNITS = {"Mi": 2**20, "Gi": 2**30}


@pytest.fixture(scope="module")
def documents(root: Path) -> list[dict[str, Any]]:
    """Every document of every manifest."""
    found = sorted((root / "docs/guide/kubernetes").glob("*.yaml"))
    found = [path for path in found if path.name != "prometheus-adapter.yaml"]  # values of a chart
    assert len(found) == 3
    return [
        document
        for path in found
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


def named(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return the one document of a kind."""
    (document,) = [each for each in documents if each["kind"] == kind]
    return document


def pod_specs(documents: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the parts that describe pods."""
    yield named(documents, "Deployment")["spec"]["template"]["spec"]
    runtime = named(documents, "ServingRuntime")["spec"]
    yield {name: runtime[name] for name in ("containers", "volumes")}


@pytest.fixture(params=["Deployment", "ServingRuntime"])
def pod(request: pytest.FixtureRequest, documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The pod of one manifest."""
    number = ["Deployment", "ServingRuntime"].index(request.param)
    return list(pod_specs(documents))[number]


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    """The one container of the pod."""
    (found,) = pod["containers"]
    return dict(found)


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_kinds_of_kubernetes_follow_its_schemas(documents: list[dict[str, Any]]) -> None:
    kinds = {document["kind"] for document in documents}
    assert kinds - CUSTOM == {
        *("ServiceAccount", "Deployment", "Service"),
        *("PodDisruptionBudget", "HorizontalPodAutoscaler"),
    }
    for document in documents:
        if document["kind"] not in CUSTOM:
            validate(document)


def test_pods_follow_the_schema(pod: dict[str, Any]) -> None:
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "made"}, "spec": pod}
    validate(made)
    made["spec"] = pod | {"containers": [pod["containers"][0] | {"startupProb": {}}]}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(made)


def test_the_number_of_pods_follows_a_metric_that_exists(
    documents: list[dict[str, Any]], root: Path
) -> None:
    spec = named(documents, "HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"]["name"] == named(documents, "Deployment")["metadata"]["name"]
    (asked,) = spec["metrics"]
    path = root / "docs/guide/kubernetes/prometheus-adapter.yaml"
    (rule,) = yaml.safe_load(path.read_text(encoding="utf-8"))["rules"]["custom"]
    assert rule["name"]["as"] == asked["pods"]["metric"]["name"]
    used = set(re.findall(r"deltabert_\w+", rule["metricsQuery"]))
    assert used == {"deltabert_queue_seconds_sum", "deltabert_queue_seconds_count"}
    text = Metrics(1).render()
    assert used <= set(re.findall(r"^deltabert_\w+", text.decode(), re.MULTILINE))
    target = asked["pods"]["target"]["averageValue"]
    assert 0 < int(target.removesuffix("m")) / 1000 < Settings().max_queue_s


def test_variables_are_settings(container: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)
    given = {each["name"]: each["value"] for each in container["env"]}
    assert f"{PREFIX}DELTAS" in given
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.host == "0.0.0.0"
    assert str(settings.threads) == container["resources"]["requests"]["cpu"]


def test_probes_ask_routes_of_the_server(container: dict[str, Any]) -> None:
    paths = {getattr(route, "path", "") for route in operation.operation.routes}
    (port,) = container["ports"]
    assert port["containerPort"] == Settings().port
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[name]["httpGet"]
        assert asked["path"] in paths
        assert asked["port"] in (port["name"], port["containerPort"])
        is_ready = asked["path"].endswith("ready")
        assert is_ready is (name != "livenessProbe")
        assert container[name]["timeoutSeconds"] > (Settings().ready_timeout_s if is_ready else 1)


def test_a_first_start_fits_into_its_probe(container: dict[str, Any], root: Path) -> None:
    report = json.loads((root / "docs/performance/http.json").read_text(encoding="utf-8"))
    probe = container["startupProbe"]
    assert (
        probe["periodSeconds"] * probe["failureThreshold"] >= 3 * report["ratios"]["start_first_s"]
    )


def test_a_stopped_pod_may_finish(documents: list[dict[str, Any]]) -> None:
    pod = named(documents, "Deployment")["spec"]["template"]["spec"]
    waits = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = waits + Settings().shutdown_timeout_s + _SPARE_S
    assert pod["terminationGracePeriodSeconds"] > needed


def test_the_memory_is_that_of_the_measurements(container: dict[str, Any], root: Path) -> None:
    report = json.loads((root / "docs/performance/soak.json").read_text(encoding="utf-8"))
    scale = json.loads((root / "docs/performance/scale.json").read_text(encoding="utf-8"))
    most = max(report["memory_mb"]) * 1e6
    tasks = scale["ratios"]["memory_vs_deltas"] * scale["memory"]["1,000 tasks"]["delta_bytes"]
    limit, request = (container["resources"][name]["memory"] for name in ("limits", "requests"))
    assert limit == request, "a pod that uses more than it asked for may be evicted"
    assert size(limit) >= most + tasks + Settings().max_bodies_bytes


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def test_the_pod_is_as_restricted_as_the_image_allows(
    pod: dict[str, Any], container: dict[str, Any], root: Path
) -> None:
    dockerfile = (root / "Dockerfile").read_text(encoding="utf-8")
    (user,) = set(re.findall(r"^USER (\d+)$", dockerfile, re.MULTILINE))
    security = pod.get("securityContext", {}) | container["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == int(user)
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    (cache,) = re.findall(r"XDG_CACHE_HOME=(\S+)", dockerfile)
    assert set(mounted) == {"/tmp", cache}
    assert set(mounted.values()) == {volume["name"] for volume in pod["volumes"]}
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"])


def test_selectors_find_the_pods(documents: list[dict[str, Any]]) -> None:
    deployment = named(documents, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    service = named(documents, "Service")["spec"]
    budget = named(documents, "PodDisruptionBudget")["spec"]
    for wanted in (
        deployment["selector"]["matchLabels"],
        service["selector"],
        budget["selector"]["matchLabels"],
    ):
        assert wanted.items() <= labels.items()
    (port,) = service["ports"]
    (inside,) = deployment["template"]["spec"]["containers"][0]["ports"]
    assert port["targetPort"] == inside["name"]
    annotations = deployment["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(inside["containerPort"])
    service_runtime = named(documents, "InferenceService")["spec"]["predictor"]["model"]
    runtime = named(documents, "ServingRuntime")
    assert service_runtime["runtime"] == runtime["metadata"]["name"]
    (kind,) = runtime["spec"]["supportedModelFormats"]
    assert service_runtime["modelFormat"]["name"] == kind["name"]
