"""The ready-made files under examples/cluster are what Ray and KubeRay take.

Ray's schema comes with Ray. KubeRay's custom resource definition is in no Python package: `RAY_JOB` below is written
by hand and holds what our file relies on. The file was checked once against the whole definition of KubeRay 1.7.
"""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

EXAMPLES = Path(__file__).parents[2] / "examples" / "cluster"

POD_TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {
                "containers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "image", "resources"],
                        "properties": {
                            "env": {
                                "items": {"required": ["name", "value"], "properties": {"value": {"type": "string"}}}
                            },
                            "volumeMounts": {"items": {"required": ["name", "mountPath"]}},
                        },
                    },
                },
                "volumes": {"type": "array", "items": {"required": ["name"]}},
            },
        }
    },
}
START_PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
RAY_JOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["entrypoint", "rayClusterSpec"],
            "properties": {
                "entrypoint": {"type": "string"},
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": {"type": "integer"},
                "backoffLimit": {"type": "integer"},
                "runtimeEnvYAML": {"type": "string"},
                "rayClusterSpec": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "authOptions": {"properties": {"mode": {"enum": ["disabled", "token"]}}},
                        "headGroupSpec": {
                            "additionalProperties": False,
                            "required": ["template"],
                            "properties": {"rayStartParams": START_PARAMS, "template": POD_TEMPLATE},
                        },
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": {
                                "additionalProperties": False,
                                "required": ["groupName", "minReplicas", "maxReplicas", "template"],
                                "properties": {
                                    "groupName": {"type": "string"},
                                    "replicas": {"type": "integer"},
                                    "minReplicas": {"type": "integer"},
                                    "maxReplicas": {"type": "integer"},
                                    "rayStartParams": START_PARAMS,
                                    "template": POD_TEMPLATE,
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


@pytest.fixture
def cluster() -> Any:
    return yaml.safe_load((EXAMPLES / "ray-cluster.yaml").read_text())


@pytest.fixture
def documents() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all((EXAMPLES / "rayjob.yaml").read_text())}


def test_the_cluster_file_satisfies_rays_own_schema(cluster: Any) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError, match="unexpected"):
        jsonschema.validate({**cluster, "min_workers": 2}, schema)


def test_ray_up_would_start_all_workers_of_the_cluster_file(cluster: Any) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == len(cluster["provider"]["worker_ips"])


def test_the_cluster_file_asks_for_a_token_on_every_node(cluster: Any) -> None:
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_the_job_manifest_is_what_kuberay_takes(documents: dict[str, Any]) -> None:
    jsonschema.validate(documents["RayJob"], RAY_JOB)


def test_the_job_manifest_is_consistent(documents: dict[str, Any]) -> None:
    job = documents["RayJob"]["spec"]
    groups = [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == set(volumes)
        assert volumes["experiment"]["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"]
        claim = volumes["runs"]["persistentVolumeClaim"]["claimName"]
        assert claim == documents["PersistentVolumeClaim"]["metadata"]["name"]
    assert job["rayClusterSpec"]["rayVersion"] == ray.__version__


def test_the_experiment_in_the_job_manifest_is_valid_and_fits_its_pods(
    documents: dict[str, Any], tmp_path: Path
) -> None:
    from orchestrator.config import load_experiment

    job = documents["RayJob"]["spec"]
    words = shlex.split(job["entrypoint"])
    assert words[:3] == ["orchestrator", "run", "/experiment/exp.yaml"]
    (tmp_path / "exp.yaml").write_text(documents["ConfigMap"]["data"]["exp.yaml"])
    experiment = load_experiment(tmp_path / "exp.yaml", [word for word in words if "=" in word]).experiment
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    cpus = group["replicas"] * float(container["resources"]["limits"]["cpu"])
    assert experiment.cluster.workers * experiment.cluster.resources_per_worker["CPU"] <= cpus
