"""The folder of a study: a file per finished cycle, so that whoever was stopped goes on, and several may work at once.

A cycle that was stopped while it trained goes on after its last whole pass.

results.json, forgetting.json, table.md, report.html    made of all that is done
commands/                     how each part of it was made
log/                          the log as it landed, once for all methods
rows/METHOD/seed-1/           a cycle's figures; ranks/: every query's ranks; forgetting/: a row of the matrix
runs/METHOD/seed-1/           the learner's store, from which it goes on; its recipe, samples of past queries, and the
                              passes over a period that is being trained
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headrace.bench.study.answers import Answers, Blend
from headrace.bench.study.variants import Variant, folder_of
from headrace.blend.calibration import Calibration
from headrace.blend.split import Split
from headrace.blend.weights import Weights
from headrace.clock import wall_ms
from headrace.commit.manifest import Envelope
from headrace.config.load import dump_recipe, read_resolved
from headrace.config.recipe import Recipe
from headrace.errors import ConfigError
from headrace.store.store import Store
from headrace.train.checkpoint import Checkpoint

Row = dict[str, Any]
_ASIDE = ("run", "store", "serve", "tracking")
"""Sections that change nothing of what is learned."""
_TRAINED = ("train", "replay", "consolidate")
"""An increment's laps that are training."""


class Cells:
    """What is done of one method with one seed."""

    def __init__(self, folder: Path, method: str, place: str, seed: int) -> None:
        self.method = method
        self.seed = seed
        self._folder, self._place = folder, f"{place}/seed-{seed}"
        self.run = folder / "runs" / self._place

    def begin(self, recipe: Recipe, log: str) -> None:
        """ConfigError where what is done was done with another recipe or on another log (by its digest)."""
        path, wanted = self.run / "recipe.json", _comparable(recipe)
        if not path.is_file():
            _write(path, json.dumps({"method": self.method, "log": log, "recipe": dump_recipe(recipe)}))
            return
        held = json.loads(path.read_text())
        before = _comparable(read_resolved(held["recipe"]))
        changed = [name for name in Recipe.model_fields if getattr(before, name) != getattr(wanted, name)]
        changed += ["log"] if held["log"] != log else []
        changed += ["name"] if held["method"] != self.method else []
        if changed:
            raise ConfigError(
                f"{self._folder} holds {self.method}, seed {self.seed}, with another {', '.join(changed)}: give --out "
                f"another folder, or remove {self.run} and its rows"
            )

    def store(self) -> Store:
        """The learner's commits."""
        return Store(str(self.run / "store"))

    def checkpoint(self, cycle: int) -> Checkpoint:
        """Where the passes over a cycle's update are kept while they go on."""
        return Checkpoint(Store(str(self._epochs)), f"cycle-{cycle:03d}.safetensors")

    def end(self) -> None:
        """Nothing is under way any more."""
        shutil.rmtree(self._epochs, ignore_errors=True)

    def sample(self, period: int) -> Path:
        """Where past queries are kept, that forgetting is measured on."""
        return self.run / "samples" / f"period-{period:03d}.safetensors"

    def has(self, cycle: int) -> bool:
        """Whether this cycle was tested."""
        return self._row(cycle).is_file()

    def row(self, cycle: int) -> Row | None:
        """Its figures; None where it was not tested."""
        return json.loads(self._row(cycle).read_text()) if self.has(cycle) else None

    def put(self, row: Row, answers: Answers) -> None:
        """A cycle is tested; the row comes last, since it says that the cycle is done."""
        answers.save(self.ranks(row["cycle"]))
        _write(self._row(row["cycle"]), json.dumps({"method": self.method, **row}))

    def ranks(self, cycle: int) -> Path:
        """Where every query's ranks are kept."""
        return self._folder / "ranks" / self._place / f"cycle-{cycle:03d}.npz"

    def measured(self, cycle: int) -> Path:
        """Where the row of the forgetting matrix is kept that the learner of this test has."""
        return self._folder / "forgetting" / self._place / f"cycle-{cycle:03d}.json"

    def put_measured(self, cycle: int, row: Mapping[str, Any]) -> None:
        """The learner of this test has answered past queries."""
        _write(self.measured(cycle), json.dumps({"method": self.method, **row}))

    def blend(self, cycle: int) -> Blend | None:
        """What ``put_blend`` kept of the newest cycle before this one; None where there is none."""
        before = {int(done): kept for done, kept in self._blends().items() if int(done) < cycle}
        if not before:
            return None
        kept = before[max(before)]
        split = Split.from_state(kept["split"]) if kept.get("split") else None
        return Blend(Weights.from_mapping(kept["weights"]), Calibration.from_state(kept["calibration"]), split)

    def put_blend(self, cycle: int, blend: Blend) -> None:
        """The blend after a cycle, for learners that have no store to keep it in."""
        kept: Row = {"weights": blend.weights.as_mapping(), "calibration": blend.calibration.state()}
        if blend.split is not None:
            kept["split"] = blend.split.state()
        _write(self.run / "blend.json", json.dumps({**self._blends(), str(cycle): kept}))

    @property
    def _epochs(self) -> Path:
        return self.run / "epochs"

    def _blends(self) -> dict[str, Any]:
        path = self.run / "blend.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def _row(self, cycle: int) -> Path:
        return self._folder / "rows" / self._place / f"cycle-{cycle:03d}.json"


class Study:
    """All methods of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def cells(self, method: Variant) -> Cells:
        """What is done of one method with its seed."""
        return Cells(self.folder, method.name, method.folder, method.recipe.seed)

    def rows(self) -> dict[str, list[Row]]:
        """By method, in the order in which they began: a row per seed and cycle."""
        rows: dict[str, list[Row]] = {}
        for row in self._read("rows"):
            rows.setdefault(row.pop("method"), []).append(row)
        return {method: sorted(of, key=lambda row: (row["seed"], row["cycle"])) for method, of in rows.items()}

    def note(self, command: Row) -> None:
        """Remember how a part of all this was made."""
        _write(self.folder / "commands" / f"{wall_ms()}-{os.getpid()}.json", json.dumps(command))

    def commands(self) -> list[Row]:
        """What ``note`` was told, oldest first."""
        paths = sorted((self.folder / "commands").glob("*.json"))
        return [json.loads(path.read_text()) for path in paths]

    def write(self, name: str, content: str) -> None:
        """A file of results, whole or not at all."""
        _write(self.folder / name, content)

    def forgetting(self) -> dict[str, dict[int, list[Row]]]:
        """By method and seed, the rows of its matrix that are measured, by cycle."""
        found: dict[str, dict[int, list[Row]]] = {}
        for row in self._read("forgetting"):
            found.setdefault(row.pop("method"), {}).setdefault(row["seed"], []).append(row)
        return found

    def ranks(self, method: str, seed: int, cycle: int) -> Answers:
        """Every query's ranks in a cycle that is done."""
        return Answers.load(Cells(self.folder, method, folder_of(method), seed).ranks(cycle))

    def _read(self, kind: str) -> Iterator[Row]:
        folders = sorted((self.folder / kind).glob("*/seed-*"), key=self._began)
        for folder in folders:
            yield from (json.loads(path.read_text()) for path in sorted(folder.glob("cycle-*.json")))

    def _began(self, folder: Path) -> tuple[float, str]:
        recipe = self.folder / "runs" / folder.parent.name / "seed-1" / "recipe.json"
        began_s = recipe.stat().st_mtime if recipe.is_file() else 0.0
        return began_s, str(folder)


def spent(envelope: Envelope) -> dict[str, float]:
    """Of an increment: seconds of training; and CPU seconds of what following costs apart from being asked."""
    return {
        "train_s": sum(envelope.seconds.get(step, 0.0) for step in _TRAINED),
        "cpu_s": sum(envelope.cpu_s.get(step, 0.0) for step in ("feed", *_TRAINED)),
    }


def _comparable(recipe: Recipe) -> Recipe:
    """Without what changes nothing of the figures."""
    plain = {name: type(getattr(recipe, name))() for name in _ASIDE}
    feed = recipe.feed.model_copy(update={"path": None})
    return recipe.model_copy(update={**plain, "feed": feed})


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text.rstrip("\n") + "\n")
    os.replace(temporary, path)
