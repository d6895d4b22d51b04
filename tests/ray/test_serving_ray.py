"""The application on a real Serve: swapped under load, refused in words."""

import json
import os
import runpy
import signal
import socket
import urllib.error
import urllib.request
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from serving_kit import publish_version

from headrace.bundles.bundle import Loader
from headrace.bundles.publish import read_bundle
from headrace.clock import monotonic_s
from headrace.config.recipe import Recipe
from headrace.config.run import ServeConfig, StoreConfig
from headrace.errors import HeadraceError
from headrace.inputs.contexts import contexts_of
from headrace.serving.check import mixed
from headrace.serving.client import StoreSessions
from headrace.serving.connection import Connection
from headrace.store.fence import take_epoch
from headrace.store.store import Store

pytestmark = pytest.mark.ray

ITEMS = [f"item-{number}" for number in range(500)]
NUM_VERSIONS = 30
QUEUED = 8


@pytest.fixture(scope="module")
def application(ray_cluster, tmp_path_factory):
    from headrace.serving.app import Serving

    folder = tmp_path_factory.mktemp("served")
    store = Store(str(folder / "store"))
    # nobody waits so long that a question which is to be turned away times out first
    serve = ServeConfig(port=0, poll_s=0.02, client_rps=20.0, max_queued=QUEUED, request_timeout_s=60.0)
    serving = Serving()
    address = serving.start(Recipe(serve=serve, store=StoreConfig(uri=store.uri)), folder)
    yield store, address, serving
    serving.stop()


def test_the_road_of_a_replica(application):
    """One test, since a start of Serve is what costs: before a version, its errors, and thirty swaps under load."""
    store, address, serving = application
    connection = Connection(address)

    def call(method, path, body=None):
        status, content = connection.call(method, path, body)
        return status, json.loads(content)

    assert call("GET", "/healthz")[0] == 200
    status, content = call("POST", "/v1/recall", b'{"items": []}')
    assert status == 503
    assert "no version is published yet" in content["error"]
    assert refused(address) == (503, "1")

    epoch = take_epoch(store)
    publish_version(store, 1, ITEMS, epoch)
    wait_for_version(call, 1)
    status, content = call("POST", "/v1/recall", b'{"items": ["item-4", "nope"], "k": 3, "session_id": "s"}')
    assert (status, content["version"], content["unknown"], content["fallback"]) == (200, 1, ["nope"], None)
    assert len(content["items"]) == len(content["scores"]) == 3
    assert content["replica"] == call("GET", "/v1/version")[1]["replica"]
    assert "popular" in call("POST", "/v1/recall", b'{"items": []}')[1]["fallback"]

    assert call("POST", "/v1/recall", b'{"items": 1}') == (
        400,
        {"error": '"items" is 1; send a list of item ids'},
    )
    assert call("DELETE", "/v1/recall")[0] == 405
    assert call("GET", "/nothing")[0] == 404

    check_agreement(store, call)

    met = swap_under_load(store, address, epoch, call)
    assert [exchange for exchange in met if exchange[1] != 200] == []
    responses = [(request, json.loads(content)) for request, _, content in met]
    seen = {response["version"] for _, response in responses}
    assert {1, NUM_VERSIONS} <= seen
    assert len(seen) > NUM_VERSIONS // 2
    loader, num_mixed = Loader(store), 0
    for version in seen:
        loaded = loader.load(read_bundle(store, version))
        of_version = [(request, response) for request, response in responses if response["version"] == version]
        num_mixed += sum(mixed(loaded, request, response) for request, response in of_version[:20])
    assert num_mixed == 0
    watched = serving.requests()
    assert watched.total > 0
    assert (watched.failed, watched.mixed_version) == (0, 0)
    check_full_queue(address, call("GET", "/v1/version")[1]["pid"])


def test_a_taken_port_is_refused_in_words(ray_cluster, tmp_path):
    from headrace.serving import app

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HeadraceError, match=f"serve.port = {port}") as caught:
            app.start(str(tmp_path), ServeConfig(port=port))
        assert "serve.port=0" in str(caught.value)


def test_the_import_target_builds_the_application(ray_cluster, tmp_path, monkeypatch):
    from ray.serve.deployment import deployment_to_schema

    target = runpy.run_path(str(Path(__file__).parents[2] / "serve" / "app.py"))["app"]
    section = {
        "num_replicas": 2,
        "autoscaling": {"max_replicas": 5},
        "labels": {"role": "serve"},
        "request_timeout_s": 9,
    }
    built = deployment_to_schema(target({"store": str(tmp_path), "serve": section})._bound_deployment)
    assert (built.autoscaling_config.min_replicas, built.autoscaling_config.max_replicas) == (2, 5)
    assert built.ray_actor_options.label_selector == {"role": "serve"}
    assert built.max_surge_percent > 0, "a new replica comes before an old one goes"
    assert built.graceful_shutdown_timeout_s > 9, "who is being answered is answered to the end"
    monkeypatch.delenv("HEADRACE_STORE", raising=False)
    with pytest.raises(HeadraceError, match="HEADRACE_STORE"):
        target({})


def check_agreement(store, call):
    """Over HTTP, one by one, and in evaluation's way, all at once: the same ids, and scores equal to the byte."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded = Loader(store).load(read_bundle(store, 1))
    sessions = [StoreSessions(store, 9)(number) for number in range(20)]
    numbers = [loaded.catalogue.numbers(np.array(session, dtype=object)).tolist() for session in sessions]
    top = loaded.recommender.top(contexts_of(numbers, 10**12, loaded.recommender.max_events), 20)
    torch.set_num_threads(before)
    for row, session in enumerate(sessions):
        served = call("POST", "/v1/recall", json.dumps({"items": session}).encode())[1]
        assert served["items"] == loaded.catalogue.raw_ids(top.number_QK[row])
        assert np.array(served["scores"], dtype=np.float32).tobytes() == top.score_QK[row].tobytes()


def refused(address):
    """Status and Retry-After of a question that is not answered; (200, None) where it is."""
    try:
        with urllib.request.urlopen(f"{address}/v1/recall", b'{"items": []}') as answer:
            return answer.status, answer.headers["Retry-After"]
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Retry-After"]


def check_full_queue(address, pid):
    """While the replica stands still, so many wait as the queue holds, and the others are told when to come again."""
    with ThreadPoolExecutor(4 * QUEUED) as threads:
        os.kill(pid, signal.SIGSTOP)
        try:
            asked = [threads.submit(refused, address) for _ in range(4 * QUEUED)]
            first, _ = wait(asked, return_when=FIRST_COMPLETED)
        finally:
            os.kill(pid, signal.SIGCONT)
        met = [question.result() for question in asked]
    assert {question.result() for question in first} == {(503, "1")}
    assert set(met) == {(200, None), (503, "1")}


def wait_for_version(call, version):
    until_s = monotonic_s() + 60
    while call("GET", "/v1/version")[1]["version"] != version:
        assert monotonic_s() < until_s, f"version {version} never came"


def swap_under_load(store, address, epoch, call):
    """Two clients ask while versions 2 to 30 are published one after the other; (request, status, body) of each."""
    done = False

    def ask(client):
        connection, sessions, met = Connection(address), StoreSessions(store, client), []
        newest = False
        while not newest:
            newest = done  # the last question is asked after the last version is there
            request = json.dumps({"items": sessions(len(met)), "k": 20}).encode()
            met.append((request, *connection.call("POST", "/v1/recall", request)))
        return met

    with ThreadPoolExecutor(2) as threads:
        clients = [threads.submit(ask, client) for client in range(2)]
        try:
            for version in range(2, NUM_VERSIONS + 1):
                publish_version(store, version, ITEMS, epoch)
                wait_for_version(call, version)
        finally:
            done = True
        return [exchange for client in clients for exchange in client.result()]
