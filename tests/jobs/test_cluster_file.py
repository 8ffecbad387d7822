"""cluster.yaml and docs/iam.md: what can be checked without an account is checked."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
NODE_KEYS = {
    "InstanceType",
    "IamInstanceProfile",
    "InstanceMarketOptions",
    "MetadataOptions",
    "BlockDeviceMappings",
}


@pytest.fixture(scope="module")
def config() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def problems(config: dict) -> list[str]:
    """Everything wrong with a cluster file: Ray's schema, Ray's validation, our own rules."""
    import jsonschema
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    found = [e.message for e in jsonschema.Draft7Validator(schema).iter_errors(config)]
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:
        found.append(f"ray: {error}")
    return found + house_problems(config)


def house_problems(config: dict) -> list[str]:
    """Rules that neither of Ray's checks knows."""
    found = []
    if not config.get("auth", {}).get("ssh_user"):
        found.append("no auth.ssh_user")
    for name, kind in config.get("available_node_types", {}).items():
        node = kind.get("node_config", {})
        for key in node.keys() - NODE_KEYS:
            found.append(f"{name}: node_config.{key} is not known")
        if not node.get("IamInstanceProfile", {}).get("Name"):
            found.append(f"{name}: no instance profile")
        if re.match(r"[gp]\d", node.get("InstanceType", "")) and not kind["resources"].get("GPU"):
            found.append(f"{name}: a GPU machine without GPU in its resources")
        spot = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        if spot != bool(kind.get("resources", {}).get("spot")):
            found.append(f"{name}: spot in the market and in the resources differ")
    head = config.get("available_node_types", {}).get(config.get("head_node_type"), {})
    if head.get("resources", {}).get("CPU") != 0 or "InstanceMarketOptions" in head["node_config"]:
        found.append("the head must be on demand and offer no CPU")
    starts = config.get("head_start_ray_commands", []) + config.get("worker_start_ray_commands", [])
    if any("ray start" in line and "RAY_AUTH_MODE=token" not in line for line in starts):
        found.append("a node starts without token authentication")
    text = yaml.safe_dump(config)
    if re.search(r"AKIA|aws_secret|RAY_AUTH_TOKEN|/home/|/root/|/Users/|\.pem\b", text, re.I):
        found.append("a secret or a private path")
    return found


def test_cluster_file_is_valid(config):
    assert problems(config) == []


def set_at(config: dict, dotted: str, value: object) -> dict:
    config = copy.deepcopy(config)
    at = config
    *parents, last = dotted.split(".")
    for part in parents:
        at = at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return config


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        ("autoscaling_mode", "default"),
        ("max_workers", "ten"),
        ("available_node_types.gpu_spot.max_worker", 3),
        ("head_node_type", "boss"),
        ("available_node_types.gpu_spot.min_workers", 99),
        ("provider", None),
        ("auth", None),
        ("available_node_types.gpu_spot.node_config.InstanceTyp", "g6.xlarge"),
        ("available_node_types.gpu_spot.node_config.IamInstanceProfile", None),
        ("available_node_types.gpu_spot.resources", {"CPU": 8}),
        ("available_node_types.gpu_on_demand.resources", {"CPU": 8, "GPU": 1, "spot": 1}),
        ("available_node_types.head.resources", {"CPU": 2}),
        ("head_start_ray_commands", ["ray start --head"]),
        ("file_mounts", {"~/key": "/home/me/key.pem"}),
    ],
)
def test_planted_error_is_found(config, dotted, value):
    try:
        found = problems(set_at(config, dotted, value))
    except (KeyError, TypeError) as error:  # a house rule met a missing head
        found = [repr(error)]
    assert found


def test_image_and_packages_are_those_of_the_project(config):
    image = config["docker"]["image"]
    constraints = ROOT / "constraints.txt"
    pinned = version("ray")
    if constraints.exists():
        pinned = re.search(r"^ray(?:\[.*\])?==(\S+)", constraints.read_text(), re.M)[1]
    assert image == f"rayproject/ray:{pinned}-py311-gpu"
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    installed = {
        str(Requirement(text))
        for line in config["setup_commands"]
        for text in line.split('"')[1::2]
    }
    assert installed == {str(r) for r in map(Requirement, wanted) if r.name != "ray"}


NEEDS = {
    "get": {"s3:GetObject"},
    "get_range": {"s3:GetObject"},
    "get_suffix": {"s3:GetObject"},
    "entry": {"s3:GetObject"},
    "size": {"s3:GetObject"},
    "put": {"s3:PutObject", "s3:AbortMultipartUpload"},
    "create": {"s3:PutObject", "s3:GetObject"},
    "copy": {"s3:GetObject", "s3:PutObject"},
    "delete": {"s3:DeleteObject"},
    "list": {"s3:ListBucket"},
    "zarr": {"s3:GetObject", "s3:PutObject"},
    "check": {"s3:ListBucket"},
    "tidy": set(),  # local folders only
    "address": set(),
}
"""Operations of an object store -> what AWS must allow."""


def test_policies_allow_what_storage_does_and_no_more():
    from pipeline.storage import Objects

    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "iam.md").read_text(), re.S)
    worker, head = (json.loads(block) for block in blocks)
    operations = {name for name in vars(Objects) if not name.startswith("_")}
    assert operations <= NEEDS.keys(), "say which rights a new operation of Objects needs"
    needed = set().union(*(NEEDS[name] for name in operations))
    allowed = {a for s in worker["Statement"] for a in s["Action"]}
    assert allowed == needed
    by_name = {s["Sid"]: s for s in worker["Statement"]}
    assert by_name["ReadDataset"]["Action"] == ["s3:GetObject"]
    for statement in [*worker["Statement"], *head["Statement"]]:
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in statement["Action"])
    passed = next(s for s in head["Statement"] if "iam:PassRole" in s["Action"])
    assert passed["Resource"].endswith("role/fieldmill-worker")
