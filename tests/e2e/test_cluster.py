"""A cluster as its user meets it: a job that trains, an application that outlives it, each on the nodes of its labels.

One story, since starting is what costs: a run is submitted and an application deployed on its store; each part is
where its label says; the job is stopped, and evaluated; with the trainer gone, replicas come and go with the load, and
the code is replaced while versions are swapped.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cluster_kit import HEAD, MEMORY, PATIENCE_S, ROLE, ROOT, WORKER, TwoNodes, free_port, two_nodes, until
from run_kit import newest

from headrace.bench.crowd import Crowd, Met
from headrace.bench.serving import publishing
from headrace.bundles.publish import read_bundle, read_pointer
from headrace.feed.ledger import LedgerReader
from headrace.serving.check import Checker
from headrace.serving.client import StoreSessions
from headrace.serving.connection import Connection
from headrace.store.store import Store

pytestmark = pytest.mark.ray

JOB = "headrace-train"
WORDS = [
    "jobs/recipes/quickstart.toml",
    "feed.synthetic.warmup_events=2000",
    "feed.synthetic.shard_interval_s=0.5",
    "feed.synthetic.num_shards=none",
    "feed.keep_landed=true",  # jobs/evaluate.py goes over it
    "train.warmup_epochs=1",
    "train.epochs=1",
    'methods=[{kind="online"},{kind="replay"}]',
    "replay.max_bytes=1048576",
    "tracking.enabled=false",
    "serve.enabled=false",
]
# Without labels Ray puts trainers on the head, replay and replicas on the worker, and readers on either.
LABELS = [
    f'run.train_labels={{"{ROLE}"="{WORKER}"}}',
    f'run.read_labels={{"{ROLE}"="{WORKER}"}}',
    f'run.replay_labels={{"{MEMORY}"="large"}}',
]
PARTS = {
    "RayTrainWorker": {WORKER},
    "ReadLedger": {WORKER},
    "ReplayActor": {HEAD},
    "ServeReplica:headrace:recall": {HEAD},
}
"""The nodes that each part must be on."""
SERVE = {
    "num_replicas": 1,
    "autoscaling": {
        "max_replicas": 3,
        "target_ongoing": 3.0,
        "look_back_s": 3.0,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 3.0,
    },
    "labels": {ROLE: HEAD},
}
LOG = """
[feed.replay]
slice_s = "file"

[columns]
user_id = "user_id"
event = "event"

[model]
width = 16
blocks = 1

[train]
warmup_epochs = 1
"""
MANY = 12
NEWEST = 40


@dataclass(frozen=True)
class Live:
    """A run that trains on the cluster, and an application that answers from its store."""

    cluster: TwoNodes
    folder: Path
    run: Path
    store: Store
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def deploy(self, **serve: object) -> None:
        """``serve deploy`` of serve/config.yaml, but for store, port, and the recipe's section."""
        config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
        config["http_options"] |= {
            "port": self.port,
            "request_timeout_s": PATIENCE_S,
        }  # a busy machine turns nobody away
        config["applications"][0]["args"] = {"store": self.store.uri, "serve": SERVE | serve}
        path = self.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        self.cluster.serve("deploy", "--address", self.cluster.dashboard, str(path))

    def job(self, *words: str) -> str:
        """``ray job WORDS``."""
        command, *further = words
        return self.cluster.ray("job", command, "--address", self.cluster.dashboard, *further)

    def crowd(self) -> Crowd:
        return Crowd(self.address, StoreSessions(self.store, 1), keep_every=5)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("cluster")
    run = folder / "run"
    with two_nodes() as cluster:
        live = Live(cluster, folder, run, Store(str(run / "store")), free_port())
        submit = ["submit", "--submission-id", JOB, "--no-wait", "--working-dir", ".", "--"]
        live.job(*submit, "python", "jobs/train.py", *WORDS, *LABELS, f"run.dir={run}")
        live.deploy()
        connection = Connection(live.address)
        until(lambda: connection.call("GET", "/v1/version")[0] == 200, "a first version")
        yield live


@pytest.fixture(scope="module")
def landed(live: Live) -> dict[str, set[str]]:
    """Where each part was while the job trained."""
    until(lambda: newest(live.store) >= 2, "commit 2")
    return live.cluster.roles(*PARTS)


@pytest.fixture(scope="module")
def stopped(live: Live, landed: dict[str, set[str]]) -> str:
    """What the job had said when ``ray job stop`` came back."""
    assert "was stopped" in live.job("stop", JOB)
    return live.job("logs", JOB)


def test_every_part_is_on_a_node_that_its_label_asks_for(landed: dict[str, set[str]]) -> None:
    assert landed == PARTS


def test_a_job_that_is_stopped_ends_at_a_commit(live: Live, stopped: str) -> None:
    last_cut = LedgerReader(live.store).last_cut
    assert "stopping: the increment under way is finished first" in stopped
    assert f"{last_cut + 1} increments" in stopped, "it came to its own end, and was not killed"
    assert "Traceback" not in stopped
    assert newest(live.store) == last_cut
    report = json.loads((live.run / "report.json").read_text())
    assert report["increments"] == last_cut + 1


def test_a_job_evaluates_what_the_other_left(live: Live, stopped: str) -> None:
    recipe, log, out = live.folder / "log.toml", live.folder / "log", live.folder / "evaluated"
    recipe.write_text(LOG)
    log.mkdir()
    for shard in sorted((live.run / "landing").glob("*.parquet"))[:4]:
        shutil.copy(shard, log)
    submit = ["submit", "--entrypoint-num-cpus", "1", "--working-dir", ".", "--", "python", "jobs/evaluate.py"]
    assert "written to" in live.job(*submit, "--data", str(log), "--out", str(out), str(recipe))
    means = json.loads((out / "stream.json").read_text())["result"]["means"]
    assert [span["blend"]["recall@20"] > 0 for span in means["default"].values()] == [True]


def test_replicas_come_and_go_with_the_load_and_nobody_is_turned_away(live: Live, stopped: str) -> None:
    crowd, pointer = live.crowd(), read_pointer(live.store)
    assert pointer is not None
    with crowd.asking(1, 0.05) as before:
        until(lambda: answered_by(before, 1), "one replica")
    with crowd.asking(MANY) as busy:
        until(lambda: answered_by(busy, 3), "three replicas")
    with crowd.asking(1, 0.05) as after:
        until(lambda: answered_by(after, 1), "one replica again")
    exchanges = [*before.exchanges, *busy.exchanges, *after.exchanges]
    assert [exchange for exchange in exchanges if exchange.failed] == []
    assert {exchange.version for exchange in exchanges} == {pointer.version}, "new replicas begin with the newest"


def test_new_code_comes_in_while_versions_are_swapped_and_nobody_is_turned_away(live: Live, stopped: str) -> None:
    pointer = read_pointer(live.store)
    assert pointer is not None
    bundles = [read_bundle(live.store, version) for version in (pointer.version - 1, pointer.version)]
    with publishing(live.store, bundles), live.crowd().asking(2, 0.05) as met:
        until(lambda: answered_by(met, 1), "answers")
        old = met.replicas()
        live.deploy(max_batch=8)
        until(lambda: not old & met.replicas(NEWEST), "answers from new replicas alone")
    assert [exchange for exchange in met.exchanges if exchange.failed] == []
    swapped = {exchange.version for exchange in met.exchanges if exchange.replica not in old}
    assert len(swapped) > 1
    assert min(swapped) > pointer.version, "new replicas begin with the newest"
    checker = Checker(live.store)
    assert {checker.is_mixed(request, answer) for request, answer in met.answers} == {False}


def answered_by(met: Met, num: int) -> bool:
    """Whether so many replicas gave the newest answers."""
    return len(met.exchanges) >= NEWEST and len(met.replicas(NEWEST)) == num
