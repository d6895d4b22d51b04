import asyncio
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from serving_kit import WATERMARK_MS, publish_version

from headrace.bundles.bundle import load_bundle
from headrace.inputs.contexts import contexts_of
from headrace.serving.batcher import Batcher
from headrace.serving.check import Checker, mixed
from headrace.serving.client import Client, Exchange, StoreSessions, exchange_over, read_log
from headrace.serving.connection import Connection
from headrace.serving.replica import NotReadyError, Replica, respond
from headrace.serving.request import MAX_IDS, Question, RequestError, parse
from headrace.serving.service import answer
from headrace.serving.slot import Slot
from headrace.store.fence import take_epoch
from headrace.store.store import Store, part_name

ITEMS = [f"item-{number}" for number in range(60)]
NOW_MS = 1_750_000_060_000


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture
def loaded(store):
    return load_bundle(store, publish_version(store, 1, ITEMS, take_epoch(store)))


def ask(loaded, **body):
    return answer(loaded, [parse(json.dumps(body).encode())], NOW_MS, "r1")[0]


# slot


def test_a_swap_waits_for_nobody_and_frees_after_the_last_user():
    freed = []
    slot = Slot(freed.append)
    with slot.use() as nothing:
        assert nothing is None
    slot.put("one")
    with slot.use() as first, slot.use() as also:
        slot.put("two")
        with slot.use() as second:
            assert (first, also, second) == ("one", "one", "two")
        assert freed == []
        assert slot.num_draining == 1
    assert freed == ["one"]
    assert slot.num_draining == 0
    slot.put("three")
    assert freed == ["one", "two"]


def test_a_failing_user_lets_go_too():
    freed = []
    slot = Slot(freed.append)
    slot.put(1)

    def fail():
        with slot.use():
            slot.put(2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert freed == [1]


def test_many_readers_and_swaps():
    freed = []
    slot = Slot(freed.append)
    slot.put(0)
    with ThreadPoolExecutor(4) as threads:

        def read(_):
            with slot.use() as value:
                return value not in freed

        for number in range(1, 50):
            assert all(threads.map(read, range(8)))
            slot.put(number)
    assert freed == list(range(49))


# requests


def test_a_request_with_everything():
    body = {"items": [1, "b"], "k": 5, "exclude": ["b"], "ts": "2026-01-31T12:00:00+01:00", "session_id": 7}
    question = parse(json.dumps(body).encode())
    assert (question.items, question.k, question.exclude) == ((1, "b"), 5, ("b",))
    assert question.as_of_ms == 1_769_857_200_000
    assert question.session != 0
    assert parse(b'{"items": [], "ts": "2026-01-31T11:00:00"}').as_of_ms == 1_769_857_200_000
    assert parse(b'{"items": [], "ts": 5}').as_of_ms == 5


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"items=1", "not JSON"),
        (b"[1, 2]", "JSON object"),
        (b"{}", '"items" and "user_id" are missing'),
        (b'{"user_id": 1.5}', '"user_id" is 1.5; send an integer of 64 bits or a string'),
        (b'{"user_id": true}', '"user_id" is true'),
        (b'{"user_id": 18446744073709551616}', "64 bits"),
        (b'{"user_id": null}', '"items" and "user_id" are missing'),
        (b'{"user_id": 1, "exclude_seen": 1}', '"exclude_seen" is 1; send true or false'),
        (b'{"itms": [1]}', "no such key: itms; the keys are items, user_id, k"),
        (b'{"items": "abc"}', '"items" is "abc"; send a list'),
        (b'{"items": [1, 2.5]}', '"items"[1] is 2.5'),
        (b'{"items": [true]}', '"items"[0] is true'),
        (b'{"items": [1], "k": 0}', '"k" is 0; send a whole number from 1 to 1000'),
        (b'{"items": [1], "k": "ten"}', '"k" is "ten"'),
        (b'{"items": [1], "k": 1001}', "from 1 to 1000"),
        (b'{"items": [1], "exclude": 3}', '"exclude" is 3'),
        (b'{"items": [1], "ts": "noon"}', '"ts" is "noon"; send milliseconds'),
        (b'{"items": [1], "ts": 1.5}', '"ts" is 1.5'),
        (b'{"items": [1], "session_id": [1]}', '"session_id" is [1]'),
        (json.dumps({"items": list(range(MAX_IDS + 1))}).encode(), "send at most 10000"),
        (b'{"items": [' + b'"' + b"x" * 2**20 + b'"]}', "bytes; send at most"),
    ],
)
def test_bad_requests_are_refused_in_words(body, words):
    with pytest.raises(RequestError) as caught:
        parse(body)
    assert words in str(caught.value)
    assert 400 <= caught.value.status < 500
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.status) == (str(caught.value), caught.value.status)


# answers


def test_an_answer_is_what_the_recommender_says(loaded):
    got = ask(loaded, items=["item-3", "item-5"], k=7)
    top = loaded.recommender.top(contexts_of([[3, 5]], WATERMARK_MS, 50), 7)
    assert got.items == loaded.catalogue.raw_ids(top.number_QK[0])
    assert np.array(got.scores, dtype=np.float32).tobytes() == top.score_QK[0].tobytes()
    assert (got.version, got.replica, got.unknown, got.fallback) == (1, "r1", [], None)


def test_time_passes_from_the_watermark(loaded):
    assert ask(loaded, items=[]).as_of_ms == WATERMARK_MS + 1 + 60_000
    assert ask(loaded, items=[], ts=99).as_of_ms == 99


def test_unknown_items_are_named_and_ignored(loaded):
    got = ask(loaded, items=["item-3", "nope", 17, "item-5", "nope"])
    known = ask(loaded, items=["item-3", "item-5"])
    assert got.unknown == ["nope", 17]
    assert (got.items, got.scores, got.fallback) == (known.items, known.scores, None)


def test_a_session_without_known_items_gets_the_popular_ones_and_says_so(loaded):
    empty, unknown = ask(loaded, items=[]), ask(loaded, items=["nope"])
    assert "no items were sent" in empty.fallback
    assert "none of the newest items is known" in unknown.fallback
    assert empty.items == unknown.items
    assert set(empty.items[:8]) == set(ITEMS[:8])


def test_excluded_items_and_more_than_there_are(loaded):
    got = ask(loaded, items=["item-1"], k=1000, exclude=["item-1", "item-2", "nope"])
    assert len(got.items) == len(got.scores) == 58
    assert not {"item-1", "item-2"} & set(got.items)


def test_a_batch_answers_each_as_it_would_alone(loaded):
    questions = [
        Question(("item-1",), 3),
        Question((), 20, ("item-0",)),
        Question(tuple(ITEMS[:55]), 1),
        Question(("nope", "item-9"), 9, as_of_ms=12),
    ]
    together = answer(loaded, questions, NOW_MS, "r1")
    alone = [answer(loaded, [question], NOW_MS, "r1")[0] for question in questions]
    assert together == alone


def test_shares_come_to_those_who_ask_and_sum_to_the_scores(loaded):
    body = {"items": ["item-1", "item-5"], "k": 7}
    questions = [parse(json.dumps(body | extra).encode()) for extra in ({}, {"explain": True})]
    plain, explained = answer(loaded, questions, NOW_MS, "r1")
    assert (plain.items, plain.scores) == (explained.items, explained.scores)
    assert "shares" not in json.loads(plain.to_json())
    shares = json.loads(explained.to_json())["shares"]
    assert list(shares) == ["neural", "popular", "uniform"]
    np.testing.assert_allclose(np.sum(list(shares.values()), axis=0), explained.scores, rtol=1e-5)
    with pytest.raises(RequestError, match='"explain" is "yes"; send true or false'):
        parse(b'{"items": [], "explain": "yes"}')


def test_tombstones_are_never_answered(store, loaded):
    bundle = replace(loaded.bundle, tombstones=(0, 3))
    got = ask(load_bundle(store, bundle), items=["item-3"], k=100)
    assert len(got.items) == 58
    assert not {"item-0", "item-3"} & set(got.items)


# replica


def meet(replica, method, path, body=b""):
    async def run():
        return await respond(replica, Batcher(replica.answer_batch, 16, 0.0), method, path, body)

    reply = asyncio.run(run())
    return int(reply.status), json.loads(reply.body)


def test_a_replica_answers_503_before_the_first_version_and_is_healthy(store):
    replica = Replica(store, "r1")
    assert not replica.refresh()
    assert meet(replica, "GET", "/healthz") == (200, {"status": "ok", "replica": "r1"})
    status, content = meet(replica, "POST", "/v1/recall", b'{"items": []}')
    assert status == 503
    assert "no version is published yet" in content["error"]
    assert meet(replica, "GET", "/v1/version")[0] == 503
    assert meet_raw(replica, "POST", "/v1/recall", b'{"items": []}').headers == {"Retry-After": "1"}
    assert meet_raw(replica, "GET", "/healthz", b"").headers == {}
    with pytest.raises(NotReadyError):
        replica.answer_batch([Question(())])


def test_a_replica_swaps_and_names_its_version(store):
    replica, epoch = Replica(store, "r1"), take_epoch(store)
    for version in (1, 2, 3):
        publish_version(store, version, ITEMS[: 40 + version], epoch)
        assert replica.refresh()
        assert not replica.refresh()
        status, content = meet(replica, "POST", "/v1/recall", b'{"items": ["item-1"], "k": 2}')
        assert (status, content["version"], len(content["items"])) == (200, version, 2)
        assert meet(replica, "GET", "/v1/version")[1]["num_items"] == 40 + version


def test_a_replica_goes_on_when_the_store_is_torn_or_gone(store, tmp_path):
    replica, epoch = Replica(store, "r1"), take_epoch(store)
    publish_version(store, 1, ITEMS, epoch)
    replica.refresh()
    bundle = publish_version(store, 2, ITEMS, epoch)
    store.put(part_name(bundle.parts["model/encoder"].sha256), b"torn")
    assert not replica.refresh()
    status = meet(replica, "GET", "/v1/version")[1]
    assert status["version"] == 1
    assert "damaged" in status["problem"]
    (tmp_path / "store").rename(tmp_path / "away")
    assert not replica.refresh()
    assert meet(replica, "POST", "/v1/recall", b'{"items": ["item-1"]}')[0] == 200


def test_http_errors_in_words(store):
    replica = Replica(store, "r1")
    assert meet(replica, "POST", "/v1/recall", b"{")[0] == 400
    status, content = meet(replica, "GET", "/v1/recall")
    assert (status, content["error"]) == (405, "received GET /v1/recall; use POST")
    status, content = meet(replica, "GET", "/v2")
    assert status == 404
    assert "POST /v1/recall" in content["error"]


# batches


def test_questions_that_wait_together_are_answered_together():
    batches = []

    def double(numbers):
        batches.append(len(numbers))
        return [2 * number for number in numbers]

    async def run():
        batcher = Batcher(double, 4, 0.05)
        return await asyncio.gather(*(batcher.ask(number) for number in range(10)))

    assert asyncio.run(run()) == [2 * number for number in range(10)]
    assert batches == [4, 4, 2]


def test_a_batch_that_fails_fails_those_who_asked_and_nobody_else():
    def grumpy(numbers):
        if 0 in numbers:
            raise KeyError("zero")
        return numbers

    async def run():
        batcher = Batcher(grumpy, 2, 0.0)
        first = await asyncio.gather(batcher.ask(0), batcher.ask(1), return_exceptions=True)
        return first, await batcher.ask(2)

    first, second = asyncio.run(run())
    assert [type(error) for error in first] == [KeyError, KeyError]
    assert second == 2


def test_who_has_left_is_not_answered():
    seen = []

    async def run():
        batcher = Batcher(lambda numbers: seen.extend(numbers) or numbers, 8, 0.02)
        leaving = asyncio.create_task(batcher.ask(1))
        staying = asyncio.create_task(batcher.ask(2))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert asyncio.run(run()) == 2
    assert seen == [2]


# client


@pytest.fixture
def server(store):
    """A real HTTP server around a replica, as Serve is, without Ray."""
    replica = Replica(store, "r1")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = meet_raw(replica, self.command, self.path, body)
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        do_POST = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield replica, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def meet_raw(replica, method, path, body):
    async def run():
        return await respond(replica, Batcher(replica.answer_batch, 16, 0.0), method, path, body)

    return asyncio.run(run())


class Always(Checker):
    """Tells the test how many were recomputed."""

    num_checked = 0

    def is_mixed(self, request, response):
        self.num_checked += 1
        return super().is_mixed(request, response)


def wait_for(condition):
    moment = threading.Event()
    for _ in range(2000):
        if condition():
            return
        moment.wait(0.005)
    raise AssertionError("it never came")


def test_the_client_asks_logs_and_recomputes(store, server, tmp_path):
    replica, address = server
    log, checker = tmp_path / "requests.jsonl", Always(store)
    client = Client(address, StoreSessions(store, 1), 500.0, log, checker=checker, check_every=7)
    client.start()
    assert client.requests().total == 0
    epoch = take_epoch(store)
    publish_version(store, 1, ITEMS, epoch)
    replica.refresh()
    wait_for(lambda: client.requests().total >= 30)
    publish_version(store, 2, ITEMS, epoch)
    replica.refresh()
    wait_for(lambda: checker.num_checked >= 8)
    client.stop()
    met = list(read_log(log))
    assert not any(exchange.failed or exchange.mixed for exchange in met)
    assert {exchange.version for exchange in met} == {1, 2}
    assert sum(exchange.mixed is False for exchange in met) == checker.num_checked
    assert (client.requests().total, client.requests().recomputed) == (len(met), checker.num_checked)
    with log.open("a") as torn:
        torn.write('{"sent_mono')
    assert Client(address, list, 1.0, log).requests().first_s == client.requests().first_s
    assert list(read_log(log)) == met
    assert log.read_text().endswith("\n")


def test_a_dead_server_is_a_failed_request(store, tmp_path):
    exchange, response = exchange_over(Connection("http://127.0.0.1:9", timeout_s=1.0), b"{}")
    assert exchange.failed
    assert (exchange.status, exchange.version, response) == (None, None, {})
    assert Exchange(0.0, 0.5, 503, None, None).failed
    assert Exchange(0.0, 1.5, 200, 1, "r").slow


def test_mixed_answers_are_recognised(store):
    epoch = take_epoch(store)
    one, two = (load_bundle(store, publish_version(store, version, ITEMS, epoch)) for version in (1, 2))
    request = b'{"items": ["item-3", "nope"], "k": 10}'
    right = json.loads(answer(one, [parse(request)], NOW_MS, "r1")[0].to_json())
    other = json.loads(answer(two, [parse(request)], NOW_MS, "r1")[0].to_json())
    assert not mixed(one, request, right)
    assert mixed(two, request, right)
    assert mixed(one, request, right | {"items": other["items"]})
    assert mixed(one, request, right | {"scores": [1.001 * score for score in right["scores"]]})
    assert mixed(one, request, right | {"items": right["items"][:9], "scores": right["scores"][:9]})
    assert mixed(one, request, right | {"unknown": []})
    ties = json.loads(answer(one, [parse(b'{"items": [], "k": 10}')], NOW_MS, "r1")[0].to_json())
    swapped = ties | {"items": [*ties["items"][:9], "item-55"]}  # never counted, as the tenth
    assert ties["items"][9] != "item-55"
    assert not mixed(one, b'{"items": [], "k": 10}', swapped)
    checker = Checker(store)
    assert checker.is_mixed(request, right) is False
    assert checker.is_mixed(request, right | {"version": 2}) is True
    assert checker.is_mixed(request, right | {"version": 9}) is None
