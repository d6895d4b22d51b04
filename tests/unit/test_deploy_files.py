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


def test_training_waits_for_nodes_that_are_started_for_it(cluster):
    assert cluster["available_node_types"]["train"]["min_workers"] == 0
    assert "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=900" in cluster["head_start_ray_commands"][-1]


def _read(name):
    return yaml.safe_load((ROOT / name).read_text())


def _clusters():
    job, service = _read("docs/deploy/rayjob.yaml"), _read("docs/deploy/rayservice.yaml")
    return [job["spec"]["rayClusterSpec"], service["spec"]["rayClusterConfig"]]


def _serve_configs():
    service = yaml.safe_load(_read("docs/deploy/rayservice.yaml")["spec"]["serveConfigV2"])
    return {
        "serve/config.yaml": _read("serve/config.yaml"),
        "docs/deploy/serve.yaml": _read("docs/deploy/serve.yaml"),
    } | {"docs/deploy/rayservice.yaml": service}


@pytest.mark.parametrize(("name", "kind"), [("rayjob", "RayJob"), ("rayservice", "RayService")])
def test_a_manifest_is_of_its_kind(name, kind):
    manifest = _read(f"docs/deploy/{name}.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}


@pytest.mark.parametrize("cluster", _clusters(), ids=["rayjob", "rayservice"])
def test_a_cluster_has_what_the_operator_requires(cluster):
    # the required fields of KubeRay's own schema, by hand: it comes with no Python package
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        [container] = group["template"]["spec"]["containers"]
        assert container["name"]
        assert container["image"]
        mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in group["template"]["spec"].get("volumes", ())}
    for group in cluster["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["labels"]["headrace.io/role"] == group["groupName"]
    assert len({group["template"]["spec"]["containers"][0]["image"] for group in groups}) == 1


@pytest.mark.parametrize("cluster", _clusters(), ids=["rayjob", "rayservice"])
def test_a_cluster_on_kubernetes_keeps_what_cluster_yaml_promises(cluster):
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_every_file_means_one_image(cluster):
    image = cluster["docker"]["image"]
    assert image in (ROOT / "docs/deploy/Dockerfile").read_text()
    assert all(c["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] == image for c in _clusters())


def test_the_image_has_the_ray_that_is_pinned():
    [base] = [line for line in (ROOT / "docs/deploy/Dockerfile").read_text().splitlines() if line.startswith("FROM")]
    version = base.partition(":")[2].partition("-")[0]
    assert f"ray=={version}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_a_job_runs_an_entry_point_with_a_recipe_that_loads():
    from headrace.config.load import load_recipe

    python, script, placement, recipe, *overrides = _read("docs/deploy/rayjob.yaml")["spec"]["entrypoint"].split()
    assert (python, recipe.startswith("/srv/headrace/")) == ("python", True)
    ours = [
        ROOT / path.removeprefix("/home/ray/headrace/") for path in (script, placement)
    ]  # where the Dockerfile puts it
    assert all(path.is_file() for path in ours)
    loaded = load_recipe([str(ours[1])], overrides)
    assert loaded.run.use_gpu
    assert not loaded.serve.enabled


def test_who_asks_for_labels_asks_for_some_that_nodes_have(cluster):
    from headrace.config.load import load_recipe

    recipe = load_recipe([str(ROOT / "docs/deploy/placement.toml")])
    run, job, service = recipe.run, *_clusters()
    asked = [run.train_labels, run.read_labels, run.replay_labels, recipe.serve.labels]
    assert [labels["headrace.io/role"] for labels in asked] == ["train", "data", "data", "serve"]
    kinds = [kind["labels"] for kind in cluster["available_node_types"].values()]
    pods = [group["labels"] for group in job["workerGroupSpecs"]]
    assert all(any(labels.items() <= has.items() for has in kinds) for labels in asked)
    assert all(any(labels.items() <= has.items() for has in pods) for labels in asked[:3])
    served = [config["applications"][0]["args"]["serve"].get("labels") for config in _serve_configs().values()]
    assert served == [None, recipe.serve.labels, recipe.serve.labels]
    assert [group["labels"] for group in service["workerGroupSpecs"]] == [recipe.serve.labels]


def test_serve_configs_are_ones_that_serve_knows():
    from ray.serve.schema import ServeDeploySchema

    from headrace.config.run import ServeConfig

    for config in _serve_configs().values():
        [application] = ServeDeploySchema.model_validate(config).applications
        assert application.import_path == "serve.app:app"
        assert application.args["store"].startswith("/")
        ServeConfig.model_validate(application.args["serve"])


def test_serve_is_open_to_the_network_only_where_haproxy_needs_it():
    hosts = {name: config["http_options"]["host"] for name, config in _serve_configs().items()}
    assert hosts.pop("serve/config.yaml") == "127.0.0.1"
    assert set(hosts.values()) == {"0.0.0.0"}
    configs = _serve_configs()
    assert configs["docs/deploy/serve.yaml"] == configs["docs/deploy/rayservice.yaml"]
