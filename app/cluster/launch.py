"""Starts a cluster: Ray, its proxy, the coordinator, and the replicas.

The proxy is HAProxy, which Ray Serve starts and configures. Ray's own proxy loses requests when a
replica is killed; HAProxy sends them to another replica. Ray reads the proxy's settings from the
environment of its processes, so they are set before Ray starts. Read `app.cluster.replica` next.
Tested by tests/integration/app/test_cluster.py.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cluster.coordinator import Coordinator
from app.cluster.replica import APP, COORDINATOR, DEPLOYMENT, MIDDLEWARE, Replica, wanted_replicas
from app.process.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.config import AutoscalingConfig

logger = logging.getLogger("app")

_PROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # A request is repeated only if its replica has died. All of HAProxy's retryable errors would
    # repeat answers, too: of requests that make any server fail, and of changes that were made.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
    "RAY_SERVE_HAPROXY_RETRIES": "2",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # A replica that is removed answers for so long, until the proxy has noticed.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
}
# More than any setting of the queue, so that refusals are the server's own (429, in the form of its
# errors). With a limit below the queue's, batches would starve.
_MAX_ONGOING = 10_000_000
_STORE_BYTES = 100 * 2**20  # of Ray's object store, which takes nothing large here
_CONFIG_FILE = "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"
_ALL_DOWN = "no server can be reached; repeat the request after a few seconds"
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 2.0, 30.0
_SPIN_COUNT = "10000"  # see `app.__main__`


@dataclass(frozen=True)
class ClusterOptions:
    """Says how many replicas there are.

    Attributes:
        replicas: replicas at the start, and the least.
        max_replicas: the most; the same as `replicas` for a fixed number.
        threads: CPU threads of each.
        address: a running cluster of Ray; None starts one on this machine.
    """

    replicas: int
    max_replicas: int
    threads: int
    address: str | None = None


@contextmanager
def running_cluster(settings: Settings, options: ClusterOptions) -> Iterator[None]:
    """Serve from a cluster within the block, which begins when all replicas are ready.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came while it was starting.
    """
    folder = _prepare_environment()  # Ray reads it when it is imported
    try:
        with _started(settings, options):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _started(settings: Settings, options: ClusterOptions) -> Iterator[None]:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    import ray
    from ray import serve

    is_ours = options.address is None
    here: dict[str, Any] = {}
    if is_ours:
        here = {
            "num_cpus": options.max_replicas * options.threads,
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
        }
    ray.init(options.address or "local", namespace=APP, **here)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has put its own in place
    try:
        # The replicas look it up by its name, which outlives this process.
        coordinator = ray.remote(Coordinator).options(
            name=COORDINATOR,
            namespace=APP,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=10_000,
        )
        handle = coordinator.remote()
        host, port = settings.host, settings.port
        serve.start(http_options={"host": host, "port": port})  # the app knows its root path
        _answer_in_json(Path(os.environ[_CONFIG_FILE]).parent)
        serve.run(_deployment(settings, options), name=APP, route_prefix="/")
        logger.info("listening on http://%s:%d with %d replicas", host, port, options.replicas)
        try:
            yield
        finally:
            serve.delete(APP)
            ray.kill(handle)
    finally:
        if is_ours:
            serve.shutdown()
        ray.shutdown()


def _prepare_environment() -> str:
    """Set the variables that Ray reads; values that are given stay.

    Returns a new folder for the files of the proxy.
    """
    for name, value in _PROXY.items():
        os.environ.setdefault(name, value)
    folder = tempfile.mkdtemp(prefix="deltabert-")
    os.environ.setdefault(_CONFIG_FILE, f"{folder}/haproxy.cfg")
    for name, file in {
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }.items():
        os.environ.setdefault(f"RAY_SERVE_HAPROXY_{name}", f"{folder}/{file}".rstrip("/"))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # lines of requests differ in their numbers alone
    return folder


def _answer_in_json(folder: Path) -> None:
    """Give the proxy's own errors the form of the server's; it reads the file at its next reload.

    Ray writes the file when it starts the proxy, and reloads the proxy with each new replica.
    """
    body = json.dumps(
        {"error": {"code": "not_ready", "message": _ALL_DOWN, "details": None, "request_id": "-"}}
    )
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Retry-After: 5\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for file in folder.glob("*/500.http"):
        file.write_text(head + body, encoding="ascii", newline="")


def _deployment(settings: Settings, options: ClusterOptions) -> Application:
    """Describe the replicas to Ray."""
    from ray import serve

    environment = {
        "OMP_NUM_THREADS": str(options.threads),
        "GOMP_SPINCOUNT": _SPIN_COUNT,
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": MIDDLEWARE,
        # The app reads bodies and answers in the event loop of Ray's server, as `RayHeaders` asks.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    }
    number: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas > options.replicas:
        number = {"autoscaling_config": _autoscaling(options)}
    deployment = serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=_MAX_ONGOING,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        logging_config={"enable_access_log": False},  # the app writes a line for each request
        graceful_shutdown_timeout_s=settings.shutdown_timeout_s + 1,
        ray_actor_options={
            "num_cpus": options.threads,
            "runtime_env": {"env_vars": environment},
        },
        **number,
    )(serve.ingress()(Replica))
    return deployment.bind(settings.model_copy(update={"threads": options.threads}))


def _autoscaling(options: ClusterOptions) -> AutoscalingConfig:
    """Have Ray ask `wanted_replicas` for the number of replicas."""
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    return AutoscalingConfig(
        min_replicas=options.replicas,
        initial_replicas=options.replicas,
        max_replicas=options.max_replicas,
        look_back_period_s=30.0,
        upscale_delay_s=30.0,
        downscale_delay_s=300.0,
        downscaling_factor=0.2,
        policy=AutoscalingPolicy(policy_function=wanted_replicas),
    )


def wait_for_signal() -> str:
    """Wait until SIGINT or SIGTERM asks for the end; returns its name."""
    asked = threading.Event()
    names: list[str] = []

    def stop(number: int, frame: object) -> None:
        del frame
        names.append(signal.Signals(number).name)
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    asked.wait()
    return names[0]
