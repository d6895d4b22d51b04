"""What is deployed is checked where Ray publishes a schema, and for what docs/deploy promises; nothing is started."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = {"data", "train", "serve"}
TOKEN = "RAY_AUTH_MODE=token"


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def start_commands(cluster):
    return [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]


def test_the_cluster_is_one_that_ray_knows(cluster):
    from ray.autoscaler._private.util import validate_config

    validate_config(cluster)


def test_no_work_goes_to_the_head(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}


def test_every_role_has_nodes(cluster):
    workers = {name: kind for name, kind in cluster["available_node_types"].items() if name != "head"}
    assert {kind["labels"]["headrace.io/role"] for kind in workers.values()} == ROLES
    assert all(0 <= kind["min_workers"] <= kind["max_workers"] for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) <= cluster["max_workers"]
    assert all(("GPU" in kind["resources"]) == name.startswith("train") for name, kind in workers.items())


def test_spot_comes_after_what_stays(cluster):
    kinds = cluster["available_node_types"]
    assert kinds["train_spot"]["priority"] < kinds["train"]["priority"]
    assert "InstanceMarketOptions" not in kinds["train"]["node_config"]
    assert "enable_autoscaler_v2=1" in cluster["head_start_ray_commands"][-1]  # version 1 has no priorities


def test_every_start_asks_for_the_token(start_commands):
    assert all(TOKEN in command for command in start_commands)


def test_the_dashboard_is_on_loopback(start_commands):
    assert not [command for command in start_commands if "0.0.0.0" in command]
    head = [command for command in start_commands if "--head" in command]
    assert len(head) == 1
    assert "--dashboard-host=127.0.0.1" in head[0]


def test_an_increment_may_end_before_a_job_is_killed(start_commands):
    starts = [command for command in start_commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_JOB_STOP_WAIT_TIME_S=300" in command for command in starts)
    assert all("RAY_SERVE_ENABLE_HA_PROXY=1" in command for command in starts)
