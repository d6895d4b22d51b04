"""Weights & Biases: one run for each start of a training run, owned by a thread of the driver.

wandb is imported, and called, in that thread alone: what goes wrong there, or is slow there, neither stops nor slows
training; it is said once in the log, and tracking ends. Increments are an axis of their own, since wandb drops steps
that go back. It cannot go on with an offline run either: so every start is a run of its own, in one group for each
folder, and logs only what is committed from then on. Lineage lives in our commits: a bundle is named, not copied.
"""

import json
import logging
import netrc
import os
import queue
import re
import secrets
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from headrace.bundles.publish import bundle_name
from headrace.clock import train_s
from headrace.commit.summary import KEPT_FIGURES, Summary
from headrace.config.load import dump_recipe
from headrace.config.recipe import Recipe
from headrace.config.run import TrackingConfig
from headrace.tracking.samples import label

_log = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]

_PATIENCE_S = 60.0  # for the end: an upload that takes longer is left to ``wandb sync``
_INIT_TIMEOUT_S = 30.0
_ENVIRONMENT = {
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",  # rows and log are the run's own
    "WANDB_ERROR_REPORTING": "false",
    "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "0.5",  # seconds of rows that a kill may cost; 15 otherwise
}
_FOLDERS = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")
"""What an offline run is synced from stays beside it."""


@dataclass(frozen=True)
class _Increment:
    commit: Summary
    freshness_s: float | None


@dataclass(frozen=True)
class _End:
    report: Path
    failed: bool


class WandbRun:
    """Mirrors one start of a run to W&B. Its methods return at once, but for ``close``, and never raise."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[_Increment | _End] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._folder: Path | None = None

    @property
    def folder(self) -> Path | None:
        """Where this start's run lies on this machine; None before it is open, and where there is none."""
        return self._folder

    def start(self, recipe: Recipe, run_dir: Path) -> None:
        """Open the run. ``recipe`` is the resolved one; its store's URI is absolute."""
        mode = mode_of(recipe.tracking, os.environ)
        if mode != "disabled":
            self._thread = threading.Thread(
                target=self._work, args=(recipe, run_dir, mode), name="wandb-run", daemon=True
            )
            self._thread.start()

    def increment(self, commit: Summary, freshness_s: float | None) -> None:
        """An increment has been committed, by this start; freshness of its cut where it is known."""
        if self._thread is not None and self._thread.is_alive():
            self._told.put(_Increment(commit, freshness_s))

    def close(self, report: Path, failed: bool) -> None:
        """Add the report, written for the last time, and sample answers; end. Waits for that, but not for ever."""
        if self._thread is None:
            return
        self._told.put(_End(report, failed))
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            _log.warning("W&B has not ended after %.0f s: it is left behind (%s)", _PATIENCE_S, self._folder)

    def _work(self, recipe: Recipe, run_dir: Path, mode: Mode) -> None:
        try:
            with _environment(run_dir):
                self._track(recipe, run_dir, mode)
        except Exception as error:  # noqa: BLE001 (a thread's edge: the run goes on without it)
            _log.warning("W&B tracking ends here, and the run goes on: %s: %s", type(error).__name__, error)

    def _track(self, recipe: Recipe, run_dir: Path, mode: Mode) -> None:
        group = _group(run_dir, recipe.run.name)
        run = _open(recipe, run_dir, group, mode)
        self._folder = Path(run.settings.sync_dir)
        run.define_metric("increment")
        run.define_metric("*", step_metric="increment")
        verdicts = Counter(publish=0, hold=0, reject=0)
        newest: Summary | None = None
        while isinstance(told := self._told.get(), _Increment):
            newest = told.commit
            verdicts[newest.verdict] += 1
            run.log(row_of(newest, told.freshness_s, verdicts, recipe.store_uri))
        try:
            _add_report(run, told.report, group)
            if newest is not None:
                _add_samples(run, newest.cut, told.report)
        finally:
            run.finish(exit_code=int(told.failed))


def mode_of(config: TrackingConfig, environment: Mapping[str, str]) -> Mode:
    """How to track: what the recipe says, else ``WANDB_MODE``; online only for a user who is logged in."""
    wanted = environment.get("WANDB_MODE", "online") if config.mode == "auto" else config.mode
    if wanted == "disabled" or not config.enabled:
        return "disabled"
    if wanted in ("offline", "dryrun"):
        return "offline"
    if _is_logged_in(environment):
        return "online"
    if wanted == config.mode:
        _log.warning('tracking.mode is "online", but no W&B API key is set (wandb login): it is tracked offline')
    return "offline"


def _is_logged_in(environment: Mapping[str, str]) -> bool:
    """Whether wandb would find an API key; without one it would ask for it on the terminal."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(Path(environment.get("NETRC", "~/.netrc")).expanduser()).authenticators(host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False


def row_of(
    commit: Summary, freshness_s: float | None, verdicts: Mapping[str, int], store_uri: str
) -> dict[str, float | str]:
    """What is logged of a commit, under the report's names; what is not known is left out.

    ``verdicts`` counts those of this start, this commit's included.
    """
    row: dict[str, float | str | None] = {
        "increment": commit.cut,
        "events": commit.events,
        "queries": commit.queries,
        "freshness_s": freshness_s,
        "train_s": train_s(commit.seconds),
        "increment_s": commit.increment_s,
        "state_digest": commit.state_digest,
        "version": commit.version,
        "bundle": None if commit.version is None else f"{store_uri}/{bundle_name(commit.version)}",
    }
    for figure in KEPT_FIGURES:
        name = figure.replace("@", "_at_")
        row |= {f"{name}/{version}": (scores or {}).get(figure) for version, scores in commit.scores.items()}
        row |= {f"{name}/experts/{expert}": scores.get(figure) for expert, scores in commit.expert_scores.items()}
    row |= {f"blend_weights/{expert}": weight for expert, weight in commit.weights.items()}
    row |= {f"vitals/{name.replace('@', '_at_')}": value for name, value in commit.vitals.items()}
    if commit.vitals:
        live, frozen = (row.get(f"recall_at_20/{version}") for version in ("live", "frozen"))
        if isinstance(live, float) and isinstance(frozen, float):
            row["vitals/regret_at_20"] = frozen - live
    if commit.anchor is not None:
        row |= {
            f"forgetting/cut_{commit.anchor['cut']:.0f}/{name}": commit.anchor[name] for name in ("neural", "blend")
        }
    row |= {f"verdicts/{verdict}": count for verdict, count in verdicts.items()}
    return {name: value for name, value in row.items() if value is not None}


def _open(recipe: Recipe, run_dir: Path, group: str, mode: Mode) -> Any:  # noqa: ANN401 (wandb is not typed)
    """A new run; offline where W&B cannot be reached."""
    import wandb

    settings = wandb.Settings(init_timeout=_INIT_TIMEOUT_S, finish_timeout=_PATIENCE_S / 2)

    def init(mode: Mode) -> Any:  # noqa: ANN401
        return wandb.init(
            project=recipe.tracking.project,
            name=recipe.run.name,
            group=group,
            config=json.loads(dump_recipe(recipe)),
            dir=os.environ.get("WANDB_DIR") or str(run_dir),  # in a folder of the name wandb there
            mode=mode,
            reinit="create_new",
            settings=settings,
        )

    try:
        return init(mode)
    except Exception as error:
        if mode == "offline":
            raise
        _log.warning("W&B cannot be reached, so it is tracked offline: %s: %s", type(error).__name__, error)
        return init("offline")


def _add_report(run: Any, report: Path, group: str) -> None:  # noqa: ANN401
    """The report as an artifact, with its page where there is one."""
    import wandb

    files = [path for path in (report, report.with_suffix(".html")) if path.is_file()]
    if files:
        artifact = wandb.Artifact(f"report-{group}", type="report")
        for path in files:
            artifact.add_file(str(path))
        run.log_artifact(artifact)


def _add_samples(run: Any, cut: int, report: Path) -> None:  # noqa: ANN401
    """The report's sample recommendations, as a table."""
    import wandb

    if report.is_file() and (samples := json.loads(report.read_text()).get("samples")):
        rows = [["; ".join(map(label, sample[side])) for side in ("past", "answers")] for sample in samples]
        run.log({"increment": cut, "samples": wandb.Table(columns=["past", "answers"], data=rows)})


def _group(run_dir: Path, name: str) -> str:
    """The group of all starts in this folder; kept there, so that it moves with it."""
    path = run_dir / "wandb_group.txt"
    if path.is_file() and (known := path.read_text().strip()):
        return known
    group = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:64]}-{secrets.token_hex(4)}"
    path.write_text(f"{group}\n")
    return group


@contextmanager
def _environment(run_dir: Path) -> Iterator[None]:
    """Quiet, and everything in the run's folder, unless the user has said otherwise; undone at the end."""
    wanted = _ENVIRONMENT | {name: str(run_dir / "wandb") for name in _FOLDERS}
    ours = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
