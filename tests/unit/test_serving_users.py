"""Requests that name a user: answered from the bundle's history, as evaluation asks the same contexts."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from loop_kit import Stream, recipe

from headrace.bundles.bundle import Loader, bundle_of, load_bundle
from headrace.config.feed import ColumnsConfig
from headrace.feed.ledger import LedgerReader
from headrace.feed.rows import cut_rows
from headrace.records import KEY_GROUPS
from headrace.serving.check import Checker, mixed
from headrace.serving.request import Question, parse
from headrace.serving.service import answer
from headrace.train import questions as asked_of
from headrace.train.group import Solo
from headrace.train.intake import take
from headrace.train.state import resume

NOW_MS = 1_000


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def visits(seed, start_ms, text_ids=False):
    """Two hundred clicks of 12 users, each with two sessions that go on from shard to shard."""
    draw = np.random.default_rng(seed)
    user = draw.integers(12, size=200)
    session = 2 * user + draw.integers(2, size=200)
    name = [f"u{number}" for number in user] if text_ids else user
    return pa.table(
        {
            "item_id": draw.integers(40, size=200),
            "ts": start_ms + 1000 * np.sort(draw.integers(150, size=200)),
            "session_id": session,
            "user_id": name,
            "event": draw.choice(["click", "view"], size=200),
        }
    )


def stream_of(folder, *overrides, text_ids=False, shards=4):
    stream = Stream(
        folder, recipe("model.dropout=0.0", "evaluation.eval_share=0.1", "evaluation.frozen_every=9", *overrides)
    )
    for shard in range(shards):
        stream.land(visits(shard, shard * 1_000_000, text_ids))
    return stream


def newest(stream, manifests, with_past=True):
    return load_bundle(stream.store, bundle_of(manifests[-1]), with_past=with_past)


def ask(loaded, **body):
    return answer(loaded, [parse(json.dumps(body).encode())], NOW_MS, "r1")[0]


@pytest.mark.parametrize("context", ["session", "user"])
@pytest.mark.parametrize("text_ids", [False, True])
def test_the_answer_is_the_one_that_evaluation_scored(tmp_path, context, text_ids):
    stream = stream_of(tmp_path, f"inputs.context={context}", text_ids=text_ids)
    manifests = stream.advance(until=2)
    loaded = newest(stream, manifests)
    reader = LedgerReader(stream.store)
    part = cut_rows(reader, reader.cut(3), stream.recipe.columns, range(KEY_GROUPS))
    state = resume(stream.store, stream.recipe, Solo(), torch.device("cpu"))
    state.catalogue.admit(part.item_I)
    intake = take(part.rows, state.catalogue, state.history, state.seen, stream.recipe)
    asked = asked_of.queries(intake, stream.recipe.inputs)
    top = state.live.top(asked.contexts, 20)
    table = visits(3, 3_000_000, text_ids)
    key = "user_id" if context == "user" else "session_id"
    begun, compared = set(), 0
    row_of = {int(row): place for place, row in enumerate(asked.row_Q)}
    for row, event in enumerate(table.to_pylist()):
        fresh = event[key] not in begun
        begun.add(event[key])
        if not fresh or row not in row_of:  # later events of the cut are not in the bundle's history yet
            continue
        place = row_of[row]
        body = {"user_id": event["user_id"], "session_id": event["session_id"], "ts": event["ts"]}
        got = ask(loaded, **body)
        assert got.items == loaded.catalogue.raw_ids(top.number_QK[place][top.number_QK[place] >= 0])
        assert np.array(got.scores, dtype=np.float32).tobytes() == top.score_QK[place].tobytes()
        assert got.num_recent == asked.contexts.length_Q[place] > 0
        compared += 1
    assert compared >= 10


def test_the_newest_session_counts_unless_another_is_named_and_items_come_after(tmp_path):
    stream = stream_of(tmp_path, "inputs.max_events=40", shards=1)
    loaded = newest(stream, stream.advance())
    rows = [event for event in visits(0, 0).to_pylist() if event["user_id"] == 3]
    last = rows[-1]["session_id"]
    num_last = sum(event["session_id"] == last for event in rows)
    assert 0 < num_last < len(rows) < 40
    late_ms, other = 10_000_000, 4 * 3 + 1 - last
    newest_one = ask(loaded, user_id=3, ts=late_ms)
    assert newest_one.num_recent == num_last
    assert ask(loaded, user_id=3, ts=late_ms, session_id=last) == newest_one
    assert ask(loaded, user_id=3, ts=late_ms, session_id=other).num_recent == len(rows) - num_last
    assert ask(loaded, user_id=3, ts=rows[0]["ts"]).num_recent == 0
    with_items = ask(loaded, user_id=3, ts=late_ms, items=[1, "nope", 2])
    assert (with_items.num_recent, with_items.unknown) == (num_last, ["nope"])
    full = ask(loaded, user_id=3, ts=late_ms, items=[1] * 40)
    assert full.num_recent == 0
    assert full.scores == ask(loaded, items=[1] * 40, ts=late_ms, session_id=last).scores


def test_what_the_user_has_seen_is_left_out_whole(tmp_path):
    stream = stream_of(tmp_path, "inputs.max_events=400", shards=2)
    loaded = newest(stream, stream.advance())
    seen = {event["item_id"] for shard in (0, 1) for event in visits(shard, 0).to_pylist() if event["user_id"] == 5}
    whole = ask(loaded, user_id=5, k=100)
    unseen = ask(loaded, user_id=5, k=100, exclude_seen=True, items=[0], exclude=[1])
    assert seen & set(whole.items)
    assert not (seen | {0, 1}) & set(unseen.items)
    assert set(unseen.items) == set(whole.items) - seen - {0, 1}
    assert 7 not in ask(loaded, items=[7], k=100, exclude_seen=True).items


def test_unknown_users_are_told_so(tmp_path):
    stream = stream_of(tmp_path, shards=1)
    loaded = newest(stream, stream.advance())
    unknown = ask(loaded, user_id="nobody")
    assert unknown.fallback == 'nothing is known of user "nobody", and no items were sent: these are the popular ones'
    assert (unknown.num_recent, unknown.items) == (0, ask(loaded, items=[]).items)
    assert ask(loaded, user_id=3, ts=-5).fallback.startswith("nothing that counts is known of user 3 before that time")
    assert "none of the newest items is known" in ask(loaded, user_id="3", items=["nope"]).fallback
    assert ask(loaded, user_id="nobody", items=[3]).fallback is None
    assert ask(loaded, user_id=3).fallback is None
    nameless = pickle.loads(pickle.dumps(loaded.bundle))
    loaded = load_bundle(stream.store, nameless)
    object.__setattr__(loaded, "columns", ColumnsConfig())
    assert ask(loaded, user_id=77).fallback.startswith("the log names no users, and no items were sent")


def test_a_batch_with_users_answers_each_as_it_would_alone(tmp_path):
    stream = stream_of(tmp_path, shards=2)
    loaded = newest(stream, stream.advance())
    asked = [
        Question((1,), 3),
        Question(user=3),
        Question((4, 5), user=3, exclude_seen=True),
        Question(user=3, as_of_ms=50_000),
        Question(user="nobody", exclude_seen=True),
        Question(user=7, session=1),
    ]
    assert answer(loaded, asked, NOW_MS, "r1") == [answer(loaded, [one], NOW_MS, "r1")[0] for one in asked]


def test_answers_to_users_can_be_checked(tmp_path):
    stream = stream_of(tmp_path, shards=3)
    manifests = stream.advance()
    checker, request = Checker(stream.store), b'{"user_id": 3, "k": 10, "exclude_seen": true}'
    for manifest in manifests:
        loaded = load_bundle(stream.store, bundle_of(manifest))
        right = json.loads(answer(loaded, [parse(request)], NOW_MS, "r1")[0].to_json())
        assert checker.is_mixed(b'{"items": [1]}', right | {"version": manifest.version}) is True
        assert checker.is_mixed(request, right) is False
        assert mixed(loaded, request, right | {"num_recent": right["num_recent"] + 1})
    assert mixed(newest(stream, manifests[:1]), request, right)


def test_a_swap_reads_only_new_segments_and_training_none_at_all(tmp_path):
    stream = stream_of(tmp_path, shards=6)
    loader, manifests = Loader(stream.store), stream.advance()
    for before, manifest in zip([None, *manifests], manifests, strict=False):
        fetched = loader.num_fetched
        loaded = loader.load(bundle_of(manifest))
        old = {ref.sha256 for ref in before.parts.values()} if before else set()
        new = {ref.sha256 for name, ref in bundle_of(manifest).parts.items()} - old
        assert loader.num_fetched - fetched == len(new)
        assert len(loaded.past) > 0
    assert load_bundle(stream.store, bundle_of(manifests[-1]), with_past=False).past is None
