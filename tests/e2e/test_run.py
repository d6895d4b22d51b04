"""A run as its user meets it: killed, stopped, started again; what it ends with does not depend on any of that."""

import json
import os
import random
import shutil
import signal
import urllib.request
from pathlib import Path

import pytest
from run_kit import Run

from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest
from headrace.feed.ledger import LedgerReader
from headrace.store.store import Store

RECIPE = Path(__file__).resolve().parents[2] / "jobs" / "recipes" / "quickstart.toml"
LAST = 40
WORDS = [
    str(RECIPE),
    "feed.synthetic.warmup_events=2000",
    "feed.synthetic.shard_interval_s=0.4",
    "feed.synthetic.num_shards=none",
    f"run.max_increments={LAST}",
    "store.keep=100",  # all of them are compared
    "feed.keep_landed=true",  # for the run over a copy of the ledger
    "train.warmup_epochs=1",
    "train.epochs=1",
    "serve.port=0",
    "serve.client_rps=20",
    'experts=[{kind="popular",half_life_s=20},{kind="covisit"},{kind="similar_sessions"},{kind="own_items"}]',
    'methods=[{kind="online"},{kind="replay"}]',
    "replay.max_bytes=1048576",
]
"""Everything on: whatever keeps state is part of the bit test."""
UNTRACKED = ["tracking.enabled=false"]

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of 40 increments in three starts: killed at a random one, stopped with SIGTERM, then to its end."""
    folder = tmp_path_factory.mktemp("disturbed") / "run"
    with Run(folder, WORDS) as run:
        run.until_commit(random.Random().randint(2, 8))
        run.kill()
    with Run(folder, WORDS) as run:
        run.until_commit(14)
        assert run.terminate() == 0, run.output()[-3000:]
    with Run(folder, WORDS) as run:
        assert run.finish() == 0, run.output()[-3000:]
    return run


@pytest.fixture(scope="module")
def undisturbed(disturbed: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, never disturbed, over a copy of the ledger, cuts included."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    for part in ("ledger", "epochs"):
        shutil.copytree(disturbed.dir / "store" / part, folder / "store" / part)
    with Run(folder, [*WORDS, *UNTRACKED, "serve.enabled=false"]) as run:
        assert run.finish() == 0, run.output()[-3000:]
    return run


def test_killed_or_not_the_state_is_the_same(disturbed: Run, undisturbed: Run) -> None:
    killed, whole = disturbed.manifests(), undisturbed.manifests()
    assert [m.cut for m in killed] == [m.cut for m in whole] == list(range(LAST + 1))
    assert {m.facts["world"] for m in killed} == {2}
    assert [m.state_digest for m in killed] == [m.state_digest for m in whole]
    assert len({m.envelope.epoch for m in killed}) == 3


def test_the_conservation_law_holds_at_every_commit(disturbed: Run) -> None:
    for manifest in disturbed.manifests():
        counters = dict(manifest.facts["counters"])
        assert counters.pop("events_in") == sum(counters.values()), manifest.cut


def test_sigterm_ends_all_ranks_after_the_same_cut(disturbed: Run) -> None:
    manifests = disturbed.manifests()
    reader = LedgerReader(Store(str(disturbed.dir / "store")))
    assert reader.last_cut == LAST
    by_epoch: dict[int, list[Manifest]] = {}
    for manifest in manifests:
        by_epoch.setdefault(manifest.envelope.epoch, []).append(manifest)
    assert [m.cut for ms in by_epoch.values() for m in ms] == list(range(LAST + 1)), "each start went on where it stood"
    assert "stopping" in disturbed.output()


def test_nobody_waited_and_no_answer_mixed_versions(disturbed: Run) -> None:
    report = json.loads((disturbed.dir / "report.json").read_text())
    assert report["increments"] == LAST + 1
    assert report["requests"]["total"] > 0
    assert report["requests"]["failed"] == 0
    assert report["requests"]["mixed_version"] == 0
    assert len(report["versions_served"]) >= 30
    assert len(report["recall_at_20"]["live"]) == LAST + 1
    assert report["recall_at_20"]["live"][0] is None
    assert report["freshness_s"]["p50"] is not None


def test_every_start_is_an_offline_run_of_wandb(disturbed: Run, undisturbed: Run) -> None:
    mirrors = sorted((disturbed.dir / "wandb").glob("offline-run-*"))
    assert len(mirrors) == 3
    assert all(list(mirror.glob("run-*.wandb")) for mirror in mirrors)
    assert json.loads((disturbed.dir / "report.json").read_text())["wandb_dir"] == str(mirrors[-1])
    assert json.loads((undisturbed.dir / "report.json").read_text())["wandb_dir"] is None
    assert not (undisturbed.dir / "wandb").exists()


def test_the_rows_say_what_happened(disturbed: Run) -> None:
    output = disturbed.output()
    assert "Traceback" not in output
    for word in ("cut", "live", "frozen", "fresh", "version", "failed"):
        assert word in output


def test_a_dead_worker_is_replaced_a_second_trainer_refused_and_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    folder, words = tmp_path / "run", [*WORDS, *UNTRACKED, "run.max_increments=none"]
    with Run(folder, words) as run:
        run.until_commit(1)
        os.kill(training_workers(run)[0], signal.SIGKILL)
        with Run(folder, words) as second:
            assert second.finish() == 2
        assert "another trainer" in run.output()
        address = next(word for word in run.output().split() if word.startswith("http://127.0.0.1"))
        with urllib.request.urlopen(f"{address}/v1/version") as answer:  # replicas go on without a trainer
            assert json.load(answer)["version"] >= 1
        run.until(lambda: "begins again" in run.output(), "the next start")
        run.until_commit(max(cut for cut, _ in Chain(run.store).names()) + 2)
        assert run.interrupt() == 0, run.output()[-3000:]
    manifests = run.manifests()
    assert [m.cut for m in manifests] == list(range(len(manifests)))
    assert len({m.envelope.epoch for m in manifests}) == 2
    assert "stopping" in run.output()
    assert "Traceback" not in run.output()
    assert json.loads((folder / "report.json").read_text())["requests"]["failed"] == 0


def training_workers(run: Run) -> list[int]:
    """Process ids of this run's own training workers."""
    parents, workers = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
                title = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
            parents[int(entry.name)] = int(status.rsplit(")", 1)[1].split()[1])
            if b"RayTrainWorker" in title:
                workers.append(int(entry.name))

    def is_ours(process: int) -> bool:
        return process == run.process.pid or (process in parents and is_ours(parents[process]))

    ours = [process for process in workers if is_ours(process)]
    assert ours, "no training worker of this run is alive"
    return ours
