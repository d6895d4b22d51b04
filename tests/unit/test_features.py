"""What a model is told of an event beside its item: from the log's columns to an answer."""

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from loop_kit import Stream, recipe

from headrace.bundles.bundle import bundle_of, load_bundle
from headrace.catalogue.ids import Catalogue
from headrace.errors import ConfigError
from headrace.feed.landing import Landing, shard_name
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.rows import cut_rows
from headrace.history.past import history_columns
from headrace.history.segments import SegmentLog
from headrace.inputs.contexts import Contexts, contexts_of
from headrace.inputs.examples import Examples
from headrace.inputs.told import feature_code, features_of, kind_of, tell, tell_one
from headrace.models.features import Features
from headrace.records import KEY_GROUPS, kind_code
from headrace.replay.packed import concatenate, pack
from headrace.serving.ask import read_context
from headrace.serving.check import mixed
from headrace.serving.request import RequestError, parse
from headrace.serving.service import answer
from headrace.store.arrays import load_arrays
from headrace.store.fence import take_epoch
from headrace.train.group import Solo
from headrace.train.intake import take
from headrace.train.questions import queries
from headrace.train.state import restore, resume
from headrace.train.targets import targets

DEVICES = ("phone", "desk")
GOALS = {"phone": 30, "desk": 31}
TOLD = ('columns.context=["device","hour"]', 'model.features=["device","hour"]')


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def visits(shard):
    """Two hundred sessions: any item, and then the one that goes with the device."""
    draw = np.random.default_rng(shard)
    device = draw.choice(DEVICES, 200)
    return pa.table(
        {
            "item_id": np.stack([draw.integers(30, size=200), [GOALS[name] for name in device]], axis=1).reshape(-1),
            "ts": 1_000_000 * shard + 1000 * np.arange(400),
            "session_id": np.repeat(1000 * shard + np.arange(200), 2),
            "user_id": np.repeat(np.arange(200), 2),
            "event": ["view"] * 400,
            "device": np.repeat(device, 2),
            "hour": pa.array([None if row % 3 else row % 24 for row in range(400)], pa.int32()),
        }
    )


def learned(folder, *overrides, shards=3, stops=()):
    """Trained to the end, in as many starts as there are stops, and one."""
    stream = Stream(folder, recipe("train.warmup_epochs=8", "train.epochs=4", "train.learning_rate=0.01", *overrides))
    for shard in range(shards):
        stream.land(visits(shard))
    return stream, [manifest for until in (*stops, None) for manifest in stream.advance(until=until)]


def ask(loaded, **body):
    return answer(loaded, [parse(json.dumps(body).encode())], 0, "r1")[0]


@pytest.mark.parametrize("kind", ["sasrec", "nsp"])
def test_what_decides_is_learned_where_it_is_told_and_asked_for_alike(tmp_path, kind):
    stream, manifests = learned(tmp_path, *TOLD, f"model.kind={kind}", 'methods=[{kind="online"},{kind="replay"}]')
    loaded = load_bundle(stream.store, bundle_of(manifests[-1]))
    for device, goal in GOALS.items():
        told = ask(loaded, items=[5], context={"device": device}, k=5)
        assert told.items[0] == goal
        assert told.unknown_context is None
    rows = visits(2).to_pylist()
    for row in rows[::2][:20]:  # what history knows of an event is what a request may say of it
        as_of = row["ts"] + 500
        known = ask(loaded, user_id=row["user_id"], session_id=row["session_id"], ts=as_of)
        said = {name: row[name] for name in ("device", "hour") if row[name] is not None}
        sent = ask(loaded, items=[row["item_id"]], session_id=row["session_id"], ts=as_of, context=said)
        assert known.items[0] == sent.items[0]
        if kind == "sasrec":  # the other is told of kinds and times, too, which a request does not send
            assert (known.items, known.scores) == (sent.items, sent.scores)
    body = json.dumps({"items": [5], "context": {"device": "desk", "moon": 1}}).encode()
    got = answer(loaded, [parse(body)], 0, "r1")[0]
    assert got.unknown_context == ["moon"]
    assert json.loads(got.to_json())["unknown_context"] == ["moon"]
    assert mixed(loaded, body, json.loads(got.to_json())) is False
    other = json.dumps({"items": [5], "context": {"device": "phone"}}).encode()
    assert mixed(loaded, other, json.loads(got.to_json())) is True


def test_methods_learn_with_features_the_same_bytes_twice(tmp_path):
    methods = 'methods=[{kind="online"},{kind="replay"},{kind="distill"},{kind="progressive",every=1}]'
    digests = []
    for run in ("once", "again"):
        words = (*TOLD, methods, "train.warmup_epochs=1", "train.epochs=1")
        _, manifests = learned(tmp_path / run, *words)
        assert [manifest.verdict for manifest in manifests] == ["publish"] * 3
        digests.append([manifest.state_digest for manifest in manifests])
    assert digests[0] == digests[1]


def test_a_state_with_features_goes_on_to_the_byte(tmp_path):
    methods = 'methods=[{kind="online"},{kind="replay"},{kind="progressive",every=1,max_columns=2,consolidate_steps=2}]'
    experts = 'experts=[{kind="popular"},{kind="encodings"}]'
    words = (*TOLD, methods, experts, "train.warmup_epochs=1", "train.epochs=1", "evaluation.eval_share=0.2")
    _, at_once = learned(tmp_path / "once", *words, shards=4)
    _, stopped = learned(tmp_path / "twice", *words, shards=4, stops=(1,))
    assert [manifest.state_digest for manifest in stopped] == [manifest.state_digest for manifest in at_once]


def test_rows_that_a_window_reads_again_are_told_of_as_at_first(tmp_path):
    window = 'feed.window={kind="all",window_s=1000000}'
    stream = Stream(
        tmp_path, recipe(*TOLD, window, "train.warmup_epochs=1", "train.epochs=6", "train.learning_rate=0.01")
    )
    for shard in range(3):
        stream.land(visits(shard) if shard != 1 else visits(shard).drop_columns(["hour"]))
    loaded = load_bundle(stream.store, bundle_of(stream.advance()[-1]))
    for device, goal in GOALS.items():
        assert ask(loaded, items=[5], context={"device": device}, k=5).items[0] == goal


def test_without_features_nothing_is_told(tmp_path):
    stream, manifests = learned(tmp_path, 'columns.context=["device"]', shards=2)
    loaded = load_bundle(stream.store, bundle_of(manifests[-1]))
    plain, told = ask(loaded, items=[5]), ask(loaded, items=[5], context={"device": "phone"})
    assert (plain.items, plain.scores) == (told.items, told.scores)
    assert told.unknown_context == ["device"]


@pytest.mark.parametrize("features", ['["hour","device"]', '["hour"]', "[]"])
def test_a_state_does_not_go_on_with_other_features(tmp_path, features):
    stream, manifests = learned(tmp_path, *TOLD, shards=1)
    changed = recipe(TOLD[0], f"model.features={features}")
    assert manifests[-1].verdict == "publish"
    with pytest.raises(ConfigError, match=r"this state was made with \['device', 'hour'\]"):
        resume(stream.store, changed, Solo(), torch.device("cpu"))


def test_a_value_that_shares_its_vector_is_not_taken_for_nothing():
    values = Features(1, 4)
    torch.nn.init.ones_(values.value_FVD)
    code_BL = np.array([[0, 1023 << 15, 1 << 15]], dtype=np.int64)
    added_BLD = values(code_BL)
    added_BLD.sum().backward()
    counted_V = values.value_FVD.grad[0].sum(dim=1)
    assert counted_V[0] == 0.0
    assert counted_V.sum() == 8.0


def test_a_shard_without_the_column_tells_nothing(tmp_path):
    stream = Stream(tmp_path, recipe(*TOLD))
    stream.land(visits(0).drop_columns(["device", "hour"]))
    assert stream.advance()[-1].verdict == "publish"


def test_numbers_and_words_are_told_apart_by_name():
    assert feature_code("a", 5) == feature_code("a", 5.0) == feature_code("a", "5") == feature_code("a", np.int64(5))
    assert feature_code("a", True) == feature_code("a", "true") != feature_code("a", 1)
    assert len({feature_code("a", 5), feature_code("b", 5), feature_code("a", 6), feature_code("a", 5.5)}) == 4
    assert feature_code("a", None) == feature_code("a", math.nan) == feature_code("a", "") == 0
    assert feature_code("a", 1e300) > 0
    assert feature_code("a", math.inf) > 0


def test_codes_come_back_out_of_one_integer():
    kind_N = np.array([kind_code("view"), kind_code("buy")], dtype=np.int16)
    assert tell(kind_N, {"a": np.array([1, 2])}, ()) is kind_N
    context = {"a": np.array([7.0, np.nan]), "b": np.array(["x", None], dtype=object)}
    told_N = tell(kind_N, context, ("a", "b", "c"))
    assert kind_of(told_N).tolist() == kind_N.tolist()
    a_N, b_N, c_N = features_of(told_N, 3)
    assert a_N.tolist() == [feature_code("a", 7), 0]
    assert b_N.tolist() == [feature_code("b", "x"), 0]
    assert c_N.tolist() == [0, 0]
    assert tell_one(("a", "b"), {"b": "x", "a": 7}) == told_N[0] - kind_N[0]


def test_replay_keeps_what_was_told():
    told_T = np.array([2**59 + 5, 7, -(2**14)], dtype=np.int64)
    contexts = Contexts(
        np.array([1, 2, 3]),
        np.array([1, 2, 3]),
        told_T,
        np.array([0, 2, 3]),
        np.array([9, 9]),
        np.zeros(2, np.uint64),
        told_T[:2],
    )
    one = np.ones(2, dtype=np.int64)
    examples = Examples(contexts, np.arange(2), 0 * one, one, one.astype(np.float32), one, one, np.arange(2))
    kept = pack(examples, np.zeros(2, dtype=np.uint8), 0)
    twice = concatenate([kept, kept])
    assert twice.examples().contexts.kind_T.tolist() == told_T.tolist() * 2
    assert twice.examples().contexts.told_Q.tolist() == told_T[:2].tolist() * 2
    assert concatenate([]).examples().contexts.kind_T.tolist() == []


def test_what_cannot_be_is_refused_in_words():
    with pytest.raises(ConfigError, match=r"each must be one of columns\.context"):
        recipe('model.features=["device"]')
    with pytest.raises(ConfigError, match="none may stand there twice"):
        recipe(TOLD[0], 'model.features=["device","device"]')
    with pytest.raises(ConfigError, match=r"feed\.synthetic makes none"):
        recipe(*TOLD, "feed.synthetic={}")
    side = ("feed.items_path=items", 'catalogue.attributes=["a","b"]')
    with pytest.raises(ConfigError, match=r"each must be one of catalogue\.attributes"):
        recipe(*side, 'model.attributes=["c"]')
    with pytest.raises(ConfigError, match="are 4 together: 3 can be told"):
        recipe(*side, 'model.attributes=["a","b"]', *TOLD)
    with pytest.raises(ConfigError, match="--context phone: write it as column=value"):
        read_context(["a=b", "phone"])
    assert read_context(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    with pytest.raises(ConfigError, match="told of items alone"):
        recipe(*TOLD, 'methods=[{kind="ewc"}]')
    with pytest.raises(RequestError, match='"context" is 3; send an object'):
        parse(b'{"items": [], "context": 3}')
    with pytest.raises(RequestError, match=r'"context"\["a"\] is \[1\]; send a word'):
        parse(b'{"items": [], "context": {"a": [1]}}')


def landings(shard):
    """Two hundred sessions of users who come once: what they read first goes with the device."""
    return visits(shard).take(np.arange(1, 400, 2)).set_column(3, "user_id", [np.arange(200) + 1000 * shard])


@pytest.mark.parametrize(("asked_with", "is_learned"), [(True, True), (False, False)])
def test_a_session_of_an_unknown_user_is_answered_by_what_its_request_says(tmp_path, asked_with, is_learned):
    words = ('inputs.context="user"', 'inputs.sessions="set"', "model.kind=nsp", f"model.request={asked_with}".lower())
    stream = Stream(tmp_path, recipe(*TOLD, *words, "train.warmup_epochs=8", "train.learning_rate=0.01"))
    for shard in range(3):
        stream.land(landings(shard))
    manifests = stream.advance()
    num_trained = manifests[-1].facts["fates"]["trained"]
    assert manifests[-1].facts["training"]["targets"] == num_trained > 150
    assert manifests[-1].facts["metrics"]["queries"] == num_trained
    assert manifests[-1].facts["signs"]["coherence"] is None, "an empty context cannot tell a row that is mixed up"
    loaded = load_bundle(stream.store, bundle_of(manifests[-1]))
    got = {device: ask(loaded, user_id=77_777, context={"device": device}, k=5, explain=True) for device in GOALS}
    assert [answered.fallback for answered in got.values()] == [None, None]
    assert all(sum(answered.shares["neural"]) > 0 for answered in got.values())
    assert ({device: answered.items[0] for device, answered in got.items()} == GOALS) is is_learned


@pytest.mark.parametrize("sessions", ['columns.session_id="session_id"', "columns.session_id=none"])
def test_a_request_within_a_session_opens_none(tmp_path, sessions):
    words = ('inputs.context="user"', "model.kind=nsp", sessions)
    stream, manifests = learned(tmp_path, *TOLD, *words, shards=2)
    loaded = load_bundle(stream.store, bundle_of(manifests[-1]))
    row = visits(1).to_pylist()[0]

    def scores(minutes, **more):
        asked = {"ts": row["ts"] + 60_000 * minutes, "user_id": row["user_id"], "k": 5, **more}
        return [ask(loaded, **asked, context={"device": name}).scores for name in DEVICES]

    within, opening = scores(29), scores(32)
    assert within[0] == within[1]
    assert opening[0] != opening[1]


@pytest.mark.parametrize("shape", ["prefixes", "sessions"])
@pytest.mark.parametrize("levels", ["[]", '["seen","view"]'])
def test_a_set_is_told_what_its_first_row_is_whatever_becomes_of_it(tmp_path, shape, levels):
    rows = [("phone", "seen", 1, 0), ("desk", "seen", 2, 1), ("desk", "view", 1, 2)]
    device, event, item, second = (list(column) for column in zip(*rows, strict=True))
    table = {"item_id": item, "ts": [1000 * at for at in second], "device": device, "event": event}
    words = ('inputs.context="user"', 'inputs.sessions="set"', "model.kind=nsp", "evaluation.eval_share=0")
    made = recipe(*TOLD, *words, "columns.target_kinds=[]", f"objective.levels={levels}", f"objective.examples={shape}")
    stream = Stream(tmp_path, made)
    stream.land(pa.table({**table, "session_id": [1] * 3, "user_id": [1] * 3}))
    (cut,) = stream.cuts(LedgerWriter.open(stream.store, take_epoch(stream.store)))
    part = cut_rows(LedgerReader(stream.store), cut, made.columns, range(KEY_GROUPS))
    catalogue = Catalogue()
    catalogue.admit(part.item_I)
    taken = take(part.rows, catalogue, SegmentLog(history_columns(2), 50, 10**6), None, made)
    told = targets(taken, made, Solo(), reads_empty=True)
    assert set(features_of(told.contexts_of(np.arange(len(told.target_T))).told_Q, 1)[0]) == {code("phone")}
    assert set(features_of(queries(taken, made.inputs).contexts.told_Q, 1)[0]) == {code("phone")}


def code(device):
    return feature_code("device", device)


def test_requests_without_a_past_keep_what_they_say_in_replay():
    none, one = np.zeros(0, dtype=np.int64), np.ones(2, dtype=np.int64)
    told_Q = np.array([5 << 15 | 7 << 30, 6 << 15], dtype=np.int64)
    contexts = Contexts(none, none, none, np.zeros(3, dtype=np.int64), 9 * one, np.zeros(2, np.uint64), told_Q)
    examples = Examples(contexts, np.arange(2), 0 * one, one, one.astype(np.float32), one, one, np.arange(2))
    kept = pack(examples, np.zeros(2, dtype=np.uint8), 0)
    assert concatenate([kept, kept]).examples().contexts.told_Q.tolist() == told_Q.tolist() * 2


def test_attributes_of_the_item_that_is_asked_for_are_not_heard(tmp_path):
    words = (*described(tmp_path, 302), *TOLD[:1], 'model.features=["device"]', "model.kind=nsp")
    stream = Stream(tmp_path, recipe(*words, 'inputs.context="user"', 'inputs.sessions="set"'))
    stream.land(landings(0))
    loaded = load_bundle(stream.store, bundle_of(stream.advance()[-1]))
    assert loaded.recommender.model.encoder.request.value_FVD.shape[0] == 1
    torch.nn.init.normal_(loaded.recommender.model.encoder.request.value_FVD)
    asked = contexts_of([[]], 1000, 10)
    red, blue = (feature_code("item: make", make) << 30 for make in ("red", "blue"))
    desk = code("desk") << 15
    tops = [loaded.recommender.top(replace(asked, told_Q=np.array([told])), 5) for told in (red, blue, red | desk)]
    assert tops[0].score_QK.tolist() == tops[1].score_QK.tolist() != tops[2].score_QK.tolist()


def test_a_version_answers_before_the_side_feed_has_said_anything(tmp_path):
    words = ("feed.items_path=items", 'catalogue.attributes=["make"]', 'model.attributes=["make"]')
    stream = Stream(tmp_path, recipe(*words))
    stream.land(red_after_red(0))
    loaded = load_bundle(stream.store, bundle_of(stream.advance()[-1]))
    assert len(ask(loaded, items=[red_after_red(0)["item_id"][0].as_py()], k=3).items) == 3


def test_a_state_does_not_go_on_with_other_levels_or_from_another_layout(tmp_path):
    stream, manifests = learned(tmp_path, 'inputs.sessions="set"', 'inputs.context="user"', shards=1)
    words = ('inputs.sessions="set"', 'inputs.context="user"', 'objective.levels=["view"]')
    with pytest.raises(ConfigError, match=r"objective\.levels are \['view'\], and this state was made with \[\]"):
        resume(stream.store, recipe(*words), Solo(), torch.device("cpu"))
    older = replace(manifests[-1], facts={**manifests[-1].facts, "layout": 1})
    with pytest.raises(ConfigError, match="made by another version of Headrace"):
        restore(stream.store, older, stream.recipe, Solo(), torch.device("cpu"))


def described(folder, num_items):
    """A side feed of items of two makes, told before the first event."""
    side = Landing(str(folder / "items"))
    made = {"item_id": np.arange(num_items), "ts": [0] * num_items, "make": ["red", "blue"] * (num_items // 2)}
    side.land(shard_name(0), pa.table(made))
    return f"feed.items_path={side.uri}", 'catalogue.attributes=["make"]', 'model.attributes=["make"]'


def red_after_red(shard):
    """Two hundred sessions: any item, and then the one that goes with its make."""
    draw = np.random.default_rng(shard)
    first = draw.integers(300, size=200)
    table = visits(shard).drop_columns(["device", "hour"])
    return table.set_column(0, "item_id", [np.stack([first, 300 + first % 2], axis=1).reshape(-1)])


@pytest.mark.parametrize("kind", ["sasrec", "nsp"])
def test_what_the_side_feed_says_of_items_is_told_with_them(tmp_path, kind):
    words = (*described(tmp_path, 302), f"model.kind={kind}", "train.warmup_epochs=8", "train.learning_rate=0.01")
    stream = Stream(tmp_path, recipe(*words, "train.epochs=4"))
    for shard in range(3):
        stream.land(red_after_red(shard))
    manifests = stream.advance()
    loaded = load_bundle(stream.store, bundle_of(manifests[-1]))
    met = red_after_red(2)["item_id"].to_pylist()[::2][:40]
    answers = [ask(loaded, items=[item], k=1).items[0] for item in met]
    assert np.mean([answered == 300 + item % 2 for item, answered in zip(met, answers, strict=True)]) > 0.95
    refs = [ref for name, ref in manifests[-1].parts.items() if name.startswith("history/")]
    kept = np.concatenate([load_arrays(stream.store.get_part(ref))["kind"] for ref in refs])
    makes = [feature_code("item: make", make) for make in ("red", "blue")]
    assert set(features_of(kept, 1)[0].tolist()) == set(makes)
    shown = loaded.catalogue.listing.told(("make",), loaded.catalogue.numbers(np.array([met[0], 10**6])))
    assert shown["item: make"].tolist() == ["blue" if met[0] % 2 else "red", None]
