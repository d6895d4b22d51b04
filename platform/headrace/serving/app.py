"""Starts and stops the Serve application on loopback, and the client that watches it."""

import io
import json
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from headrace.bundles.publish import read_pointer
from headrace.config.recipe import Recipe
from headrace.config.run import ServeConfig
from headrace.errors import ConfigError, HeadraceError
from headrace.host import check_labels, signals, start_ray, stop_ray
from headrace.serving.check import Checker
from headrace.serving.client import Client, StoreSessions
from headrace.serving.connection import Connection
from headrace.serving.deployment import Recall
from headrace.serving.replica import RETRY_AFTER_S
from headrace.serving.samples import sample_answers
from headrace.store.store import Store
from headrace.tracking.report import Requests
from headrace.tracking.samples import Sample

APP = "headrace"
_LOOK_S = 0.2
_COUNT_S = 1.0
_SURGE_PERCENT = 25  # rounded up: one of up to four
_SPARE_S = 1.0
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


def build(store_uri: str, config: ServeConfig) -> serve.Application:
    """The application that answers from this store; nothing is started.

    New code comes in by new replicas, each started before an old one ends, so it takes a CPU that is free.
    """
    deployment = serve.deployment(Recall).options(
        name="recall",
        **_replicas(config),
        ray_actor_options={"num_cpus": 1, "label_selector": dict(config.labels)},
        max_ongoing_requests=8 * config.max_batch,
        max_queued_requests=config.max_queued,
        backpressure_config={"retry_after_s": RETRY_AFTER_S},
        max_surge_percent=_SURGE_PERCENT,
        graceful_shutdown_timeout_s=config.request_timeout_s + _SPARE_S,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=5.0,
    )
    return deployment.bind(store_uri, config.poll_s, config.max_batch, config.batch_wait_s)


def _replicas(config: ServeConfig) -> dict[str, Any]:
    """Serve's options for how many there are."""
    scaling = config.autoscaling
    if scaling is None:
        return {"num_replicas": config.num_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": config.num_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing,
            "metrics_interval_s": _COUNT_S,
            "look_back_period_s": scaling.look_back_s,
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
        }
    }


def start(store_uri: str, config: ServeConfig) -> str:
    """Start the application on a running Ray; its address once every replica is there.

    ConfigError where the port is taken, HeadraceError where somebody else answers there. There may be no version yet:
    then replicas answer 503.
    """
    port = _free_port(config.host, config.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": config.host, "port": port, "request_timeout_s": config.request_timeout_s},
        logging_config=_QUIET,
    )
    deploy(store_uri, config)
    address = f"http://{config.host}:{port}"
    status, content = Connection(address).call("GET", "/healthz")
    if status != HTTPStatus.OK:
        raise HeadraceError(
            f"{address}/healthz says {status}, {content.decode(errors='replace')[:200]!r}: it is not ours to serve on. "
            "Where Serve already runs on this cluster, stop it first (serve shutdown); otherwise set serve.port"
        )
    return address


def deploy(store_uri: str, config: ServeConfig) -> None:
    """Start the application on a running Serve, or replace it; back once replicas with these settings answer."""
    serve.run(build(store_uri, config), name=APP, route_prefix="/", logging_config=_QUIET)


def stop() -> None:
    """Let requests end, then stop the application and Serve."""
    serve.shutdown()


def stop_with_ray() -> None:
    """``stop``, and then end or leave Ray."""
    with redirect_stdout(io.StringIO()):  # Serve's controller ends by being killed, which Ray tells of in yellow
        stop()
        stop_ray()


def serve_until_stopped(store_uri: str, config: ServeConfig, ray_address: str, say: Callable[[str], None]) -> None:
    """Answer from this store until SIGINT or SIGTERM; Ray is started, or joined where ``ray_address`` names a cluster.

    ConfigError where the port is taken, or the store is not there.
    """
    store = Store(store_uri if "://" in store_uri else str(Path(store_uri).expanduser().absolute()))
    if read_pointer(store) is None:
        raise ConfigError(f"nothing is published in {store.uri} yet: train a first version there (headrace run)")
    _free_port(config.host, config.port)
    check_labels(ray_address, [config.labels])
    stopping = threading.Event()
    start_ray(ray_address, config.most_replicas + 1)
    try:
        with signals(stopping.set):
            address = start(store.uri, config)
            status = json.loads(Connection(address).call("GET", "/v1/version")[1])
            say(f"version {status['version']} of {store.uri} answers at {address}; newer ones follow by themselves")
            say(f"try: headrace ask --address {address} ID ID; Ctrl-C ends it")
            while not stopping.wait(_LOOK_S):
                pass
            say("stopping: requests under way are answered first")
    finally:
        stop_with_ray()


class Serving:
    """What ``headrace run`` serves with: the application, and a client that asks it all the while."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._started = False

    def check(self, recipe: Recipe) -> None:
        """ConfigError where the port is taken, before Ray is started."""
        _free_port(recipe.serve.host, recipe.serve.port)

    def start(self, recipe: Recipe, run_dir: Path) -> str:
        """Start replicas and client on a running Ray; the address. The client waits for the first version."""
        store_uri = str(recipe.store_uri)
        address = start(store_uri, recipe.serve)
        self._started = True
        if recipe.serve.client_rps > 0:
            store = Store(store_uri)
            self._client = Client(
                address,
                StoreSessions(store, recipe.seed),
                recipe.serve.client_rps,
                run_dir / "requests.jsonl",
                recipe.serve.num_replicas,
                Checker(store),
            )
            self._client.start()
        return address

    def requests(self, newest_versions: int | None = None) -> Requests:
        """What the client has met so far, earlier starts of this run included; see ``Requests.copy``."""
        return Requests() if self._client is None else self._client.requests(newest_versions)

    def samples(self, recipe: Recipe) -> list[Sample]:
        """What the newest version answers to those who came last; StoreError where it cannot be read."""
        return sample_answers(recipe)

    def stop(self) -> None:
        """Let requests end, then stop client and replicas."""
        if self._client is not None:
            self._client.stop()
        if self._started:
            stop()
            self._started = False


def _free_port(host: str, port: int) -> int:
    """The port, if nobody listens there; any free one for 0."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"serve.port = {port} on {host} cannot be had ({error.strerror}): another program listens there; "
                "set serve.port to a free one, or serve.port=0 for any"
            ) from error
        return int(probe.getsockname()[1])
