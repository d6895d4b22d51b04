"""Roll back: what goes back, what stays, that a restart anywhere changes nothing, and that the law holds."""

from pathlib import Path

import pyarrow as pa
import pytest
from loop_kit import NUM_ITEMS, POISONED, RING, Stream, lawful, poisoned_stream, recipe, walks

from headrace.bundles.publish import read_pointer
from headrace.commit.chain import Chain
from headrace.commit.manifest import Manifest
from headrace.store.arrays import load_arrays
from headrace.store.store import part_name


def went_back(manifests: list[Manifest]) -> list[int]:
    return [m.cut for m in manifests if m.facts["review"]["rolled_back_to"] is not None]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stream, list[Manifest]]:
    stream = poisoned_stream(tmp_path_factory.mktemp("poison"))
    return stream, stream.advance()


def test_a_poisoned_increment_is_rolled_back_on_the_next_cut(told: tuple[Stream, list[Manifest]]) -> None:
    _, manifests = told
    assert [m.verdict for m in manifests] == ["publish"] * 10, "the hard rules saw nothing"
    assert went_back(manifests) == [POISONED + 1]
    found = manifests[POISONED + 1]
    trusted = manifests[found.facts["review"]["trusted"]]
    assert 0 < trusted.cut < POISONED
    assert found.reason.startswith(f"rolled back to version {trusted.version}: ")
    assert "targets that trusted finds" in found.reason
    assert found.facts["review"]["e_values"]["neural"] >= 200
    assert found.facts["trial"]["trusted"] == trusted.cut
    before, poisoned, mended = (
        manifests[cut].facts["metrics"]["experts"]["neural"]["recall@20"]
        for cut in (POISONED - 1, POISONED + 1, POISONED + 2)
    )
    assert poisoned < min(before, mended) - 0.2


def test_its_bundle_is_served(told: tuple[Stream, list[Manifest]]) -> None:
    stream, manifests = told
    pointer = read_pointer(stream.store)
    assert pointer is not None
    assert pointer.version == manifests[-1].version == 10


def test_lost_training_is_accounted_for(told: tuple[Stream, list[Manifest]]) -> None:
    _, manifests = told
    assert all(lawful(m) for m in manifests)
    found = manifests[POISONED + 1]
    trained = [m.facts["fates"]["trained"] for m in manifests]
    lost = sum(trained[found.facts["review"]["trusted"] + 1 : POISONED + 1])
    assert found.facts["counters"]["reverted"] == found.facts["review"]["reverted"] == lost > 0
    assert manifests[-1].facts["counters"]["trained_once"] == sum(trained) - lost


def test_counters_and_catalogue_stay_and_rows_of_younger_items_start_afresh(
    told: tuple[Stream, list[Manifest]],
) -> None:
    stream, manifests = told
    found = manifests[POISONED + 1]
    trusted = manifests[found.facts["review"]["trusted"]]
    assert found.facts["num_items"] == NUM_ITEMS + 10 > trusted.facts["num_items"]
    assert load_arrays(stream.store.get_part(found.parts["optimizer/encoder"]))["steps"][0] < 1.1 * (
        _steps(manifests[: trusted.cut + 1]) + found.facts["training"]["steps"]
    )


def _steps(manifests: list[Manifest]) -> int:
    return sum(m.facts["training"]["steps"] for m in manifests)


def test_what_the_test_may_go_back_to_stays_in_the_store(tmp_path: Path) -> None:
    stream = poisoned_stream(tmp_path, "store.keep_s=0")
    for cut in range(10):
        (made,) = stream.advance(until=cut)
        trial = made.facts["trial"]
        kept = {0, max(cut - 1, 0), cut, trial["trusted"]}
        kept |= {trial["opened"]} if trial["opened"] is not None else set()
        manifests = Chain(stream.store).manifests()
        whole = {m.cut for m in manifests if all(stream.store.exists(part_name(r.sha256)) for r in m.parts.values())}
        assert whole == kept


def test_a_run_stopped_after_every_increment_rolls_back_to_the_same_bytes(
    told: tuple[Stream, list[Manifest]], tmp_path: Path
) -> None:
    stream = poisoned_stream(tmp_path)
    for cut in range(10):
        stream.advance(until=cut)
    latest = Chain(stream.store).latest()
    assert latest is not None
    assert latest.state_digest == told[1][-1].state_digest


def test_two_ranks_stopped_around_the_roll_back_end_with_the_same_state(tmp_path: Path) -> None:
    undisturbed = poisoned_stream(tmp_path / "a").advance_pair()
    assert went_back(undisturbed) == [POISONED + 1]
    assert all(lawful(m) for m in undisturbed)
    disturbed = poisoned_stream(tmp_path / "b")
    for cut in (2, POISONED, POISONED + 1):
        disturbed.advance_pair(until=cut)
    assert disturbed.advance_pair()[-1].state_digest == undisturbed[-1].state_digest


def test_trusted_follows_live_by_windows(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe(*RING, "gate.window=2"))
    for cut in range(8):
        stream.land(walks(1000 if cut == 0 else 100, cut))
    manifests = stream.advance()
    assert [m.facts["trial"]["trusted"] for m in manifests] == [0, 0, 0, 1, 1, 3, 3, 5]
    assert [m.facts["review"]["window_cut"] for m in manifests] == [None, None, 1, 2, 1, 2, 1, 2]
    assert went_back(manifests) == []


def test_a_cut_without_queries_is_not_compared(tmp_path: Path) -> None:
    stream = Stream(tmp_path, recipe(*RING, "gate.window=2"))
    for cut in range(6):
        stream.land(walks(1000 if cut == 0 else 100, cut).slice(0, 1 if cut == 3 else None))
    manifests = stream.advance()
    assert manifests[3].facts["metrics"]["queries"] == 0
    assert [m.facts["review"]["window_cut"] for m in manifests] == [None, None, 1, None, 2, 1]
    assert manifests[3].facts["review"]["e_values"] == {}


def test_without_a_window_whatever_is_published_is_trusted(tmp_path: Path) -> None:
    manifests = poisoned_stream(tmp_path, "gate.window=0").advance()
    assert went_back(manifests) == []
    assert all(m.facts["review"]["e_values"] == {} for m in manifests)
    assert manifests[-1].facts["trial"]["trusted"] == 8


def test_after_holds_in_a_row_the_learner_goes_back_to_trusted(tmp_path: Path) -> None:
    stream = poisoned_stream(tmp_path, "gate.max_churn=0.0", "gate.max_holds=3", shards=6)
    manifests = stream.advance()
    assert [m.verdict for m in manifests] == ["publish", *["hold"] * 3, "publish", "hold"]
    assert [m.facts["num_holds"] for m in manifests] == [0, 1, 2, 3, 0, 1]
    assert went_back(manifests) == [4]
    assert manifests[4].reason.startswith("rolled back to version 1: 3 increments in a row were held; ")
    assert all(lawful(m) for m in manifests)


def test_a_rejected_increment_takes_its_roll_back_with_it(tmp_path: Path) -> None:
    stream = poisoned_stream(tmp_path, shards=POISONED + 1)
    spam = walks(250, POISONED + 1)
    user = spam.column_names.index("user_id")
    stream.land(spam.set_column(user, "user_id", pa.array([7] * 250)))
    stream.land(walks(250, POISONED + 2))
    manifests = stream.advance()
    rejected, after = manifests[-2:]
    assert rejected.verdict == "reject"
    assert rejected.facts["review"]["alarms"]
    assert rejected.facts["review"]["rolled_back_to"] is None
    assert rejected.parts == manifests[-3].parts
    assert rejected.facts["trial"] == manifests[-3].facts["trial"], "nothing of a rejected cut counts as evidence"
    assert after.facts["review"]["rolled_back_to"] is not None
    assert all(lawful(m) for m in manifests)
