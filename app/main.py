"""Wires the server: `create_app` makes the app, its lifespan loads the backbone and the deltas.

`python -m app` runs it, and so does `uvicorn --factory app.main:create_app`. Read
`app.http.routes.predictions` next. Tested by tests/http/test_live_server.py and all other tests of
that folder.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from app.batching.batcher import Batcher
from app.batching.queue import BatchLimits
from app.batching.workers import FULL_MACHINE_TOKENS, Parallelism
from app.engine.changes import DeltaChanges
from app.engine.engine import Engine
from app.engine.traffic import Traffic
from app.engine.tuning import Tuning, installed_version
from app.engine.warm_up import tune_without_measuring, warm_up
from app.engine.watch import watch
from app.errors import STATUSES, error_response
from app.http.catalogue import CatalogueViews
from app.http.context import Serving
from app.http.json_route import STICKY_HEADER, TIMEOUT_HEADER
from app.http.middleware import (
    REQUEST_ID_HEADER,
    BodyLimitMiddleware,
    LoadSheddingMiddleware,
    RequestContextMiddleware,
)
from app.http.openapi import methods_at, openapi_of
from app.http.readiness import Readiness
from app.http.routes import catalogue, explain, operation, predictions
from app.http.routes import changes as change_routes
from app.http.routes.clients.registry import CLIENT_ROUTERS, add_client_examples
from app.http.routes.clients.repository import repository
from app.http.routes.details import details
from app.http.routes.shadow import ShadowTraffic
from app.http.telemetry.metrics import Metrics
from app.http.telemetry.tracing import TracingMiddleware, open_tracing
from app.keys.key import KeysError
from app.keys.keyring import Caller, Keyring
from app.keys.middleware import API_KEY_HEADER, KeyMiddleware
from app.pipeline import Pipeline
from app.process.lifetime import (
    memory_given_back,
    prepare_process,
    run_in_own_thread,
    settle_process,
    warn_of_factory_start,
)
from app.process.logs import configure_logging, logged
from app.process.settings import (
    DEFAULT_BATCH_TOKENS,
    PREFIX,
    Settings,
    SettingsError,
    load_settings,
)
from deltas import Backbone, DeltaError, DeltaNotFoundError, Record, Store, load_backbone, zoo_path
from deltas.store.address import RemoteAddress
from deltas.store.versions import remove_left_over_uploads

if TYPE_CHECKING:
    from deltas.store.sync import Synced

logger = logging.getLogger(__name__)

_MAX_LOGGED = 100  # lines about refused files; a wrong folder may hold any number of them
_CORS_HEADERS = [
    *("Authorization", "Content-Type", API_KEY_HEADER),
    *(REQUEST_ID_HEADER, TIMEOUT_HEADER, STICKY_HEADER),
]
_DESCRIPTION = """\
Answers many text-classification tasks from one frozen BERT. A task is a *delta*: a small file with
the few parameter values that training changed. Rows of all tasks share one forward pass.

Every error has the same shape, and every response carries the header `X-Request-ID`; a request may
bring its own. `GET /tasks` lists what is served and which text fields each task takes.
"""


def create_app(
    settings: Settings | None = None,
    *,
    backbone: Backbone | None = None,
    store: Store | None = None,
) -> FastAPI:
    """Make the app; it loads nothing before it is started.

    Args:
        settings: settings of the server. None reads them from the environment and sets up logging
            and the process, for starts by uvicorn's factory.
        backbone: backbone that is loaded already; None loads the one of the settings at start.
        store: deltas that are found already; None finds those of the settings at start.

    Raises:
        SettingsError: settings or variables of OpenTelemetry cannot be used.
    """
    owns_process = settings is None
    if settings is None:
        settings = load_settings()
        configure_logging(settings.log_format, settings.log_level)
        prepare_process()
        warn_of_factory_start()
    app = FastAPI(
        title="DeltaBERT",
        summary="One frozen BERT, many tasks.",
        description=_DESCRIPTION,
        version=installed_version(),
        lifespan=_lifespan,
        docs_url=None,  # FastAPI's pages load scripts from another host
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # names of generated functions
        redirect_slashes=False,  # `app.http.middleware` removes them, since redirects surprise
    )
    app.state.settings = settings
    app.state.backbone = backbone
    app.state.store = store
    app.state.metrics = Metrics(settings.max_delta_series)
    app.state.keyring = open_keyring(settings)
    app.state.tracing = open_tracing(os.environ, app.version)
    app.state.serving = None
    app.state.owns_process = owns_process
    app.openapi = lambda: openapi_of(app, add_client_examples)  # type: ignore[method-assign]
    predicting = predictions.predictions, explain.explanations
    for router in (*predicting, details, catalogue.catalogue, operation.operation):
        app.include_router(router)
    takes_changes = app.state.keyring is not None
    for router in CLIENT_ROUTERS:
        app.include_router(router)
    for router in (change_routes.changes, change_routes.traffic, repository):
        app.include_router(router, include_in_schema=takes_changes)
    for kind in (*STATUSES, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer_error)
    _add_middleware(app, settings)
    return app


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """Surround the routes; the middleware that is added last is the outermost."""
    app.add_middleware(LoadSheddingMiddleware)
    app.add_middleware(
        BodyLimitMiddleware,
        max_body_bytes=settings.max_body_bytes,
        max_bodies_bytes=settings.max_bodies_bytes,
        timeout_s=settings.body_timeout_s,
        upload_timeout_s=settings.upload_timeout_s,
        max_upload_bytes=settings.max_delta_bytes,
    )
    if app.state.keyring is not None:
        app.add_middleware(KeyMiddleware, keyring=app.state.keyring)
        app.state.metrics.watch_file("keys", lambda: app.state.keyring.is_stale)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=_CORS_HEADERS,
            expose_headers=[REQUEST_ID_HEADER, "Retry-After"],
        )
    app.add_middleware(
        RequestContextMiddleware,
        metrics=app.state.metrics,
        deadline_s=settings.deadline_s,
        root_path=settings.root_path,
    )
    if app.state.tracing is not None:
        app.add_middleware(
            TracingMiddleware, tracing=app.state.tracing, root_path=settings.root_path
        )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    metrics: Metrics = app.state.metrics
    engine, tuning = await asyncio.to_thread(
        run_in_own_thread, lambda: _start_engine(settings, app.state.backbone, app.state.store)
    )
    described = {**engine.describe(), "threads": tuning.threads, "workers": tuning.workers}
    _log_start(settings, engine, described | {"batch_tokens": tuning.batch_tokens})
    parallelism = Parallelism(
        on_share=partial(engine.predict, threads=tuning.share_threads),
        on_full_machine=partial(engine.predict, threads=tuning.threads),
        num_workers=tuning.workers,
    )
    batcher = Batcher(parallelism, _limits(settings, tuning), metrics)
    pipeline = Pipeline(
        engine.backbone.tokenizer,
        engine.cache,
        batcher,
        shares_passes=engine.device.type == "cpu",
        max_rows=settings.max_rows_per_request,
        max_text_chars=settings.max_text_chars,
    )
    readiness = Readiness(engine, batcher, settings.ready_timeout_s)
    lasting = {name: value for name, value in described.items() if name != "deltas"}
    metrics.watch(engine, batcher, readiness, {"version": app.version, **lasting})
    batcher.start()
    managed = next(iter(_local_folders(settings)), None)  # takes uploads and rules of traffic
    changes = DeltaChanges(engine, managed, pipeline.try_out, keep_versions=settings.keep_versions)
    traffic = Traffic(engine, changes, managed, [r for r in engine.store.roots if r != managed])
    metrics.watch_file("traffic", lambda: bool(traffic.rejected))
    await traffic.load()
    serving = Serving(
        engine=engine,
        batcher=batcher,
        pipeline=pipeline,
        readiness=readiness,
        catalogue=CatalogueViews(engine),
        metrics=metrics,
        changes=changes,
        traffic=traffic,
        shadow=ShadowTraffic(traffic, pipeline, batcher, metrics),
    )
    app.state.serving = serving
    if app.state.owns_process:
        settle_process()
    tasks = _start_tasks(settings, app, serving)
    try:
        with memory_given_back():
            yield
    finally:
        for task in tasks:
            task.cancel()
        await batcher.stop(settings.shutdown_timeout_s)
        changes.close()
        if app.state.tracing is not None:
            await asyncio.to_thread(app.state.tracing.close)
        app.state.serving = None


def open_keyring(settings: Settings) -> Keyring | None:
    """Read the API keys, if the settings name any.

    Raises:
        SettingsError: the keys cannot be used.
    """
    if settings.keys is None and settings.keys_file is None:
        return None
    inline = settings.keys.get_secret_value() if settings.keys else ""
    try:
        return Keyring(inline, settings.keys_file, settings.max_queue_rows)
    except KeysError as error:
        raise SettingsError([str(error)]) from None


def _copy_of(address: RemoteAddress, settings: Settings) -> Synced:
    """Bring the local copy of a remote folder up to date, and log it."""
    from deltas.store.sync import sync

    synced = sync(address, max_bytes=settings.remote_max_bytes)
    logger.log(logging.WARNING if synced.problem else logging.INFO, "%s", synced.describe())
    return synced


def _limits(settings: Settings, tuning: Tuning) -> BatchLimits:
    return BatchLimits(
        max_batch_rows=settings.max_batch_rows,
        max_batch_tokens=tuning.batch_tokens,
        max_queue_rows=settings.max_queue_rows,
        max_queue_tokens=settings.max_queue_tokens,
        max_queue_s=settings.max_queue_s,
    )


def _local_folders(settings: Settings) -> list[Path]:
    return [root for root in settings.deltas if isinstance(root, Path)]


def _start_tasks(settings: Settings, app: FastAPI, serving: Serving) -> list[asyncio.Task[None]]:
    """Start the work beside requests, and let what depends on the store follow its changes."""
    serving.changes.listeners += [
        serving.readiness.forget_records,
        serving.catalogue.forget,
        partial(setattr, app, "openapi_schema", None),  # it has examples
    ]
    tasks = [asyncio.create_task(serving.readiness.watch())]
    folders = _local_folders(settings)
    if settings.watch and folders:
        tasks.append(asyncio.create_task(watch(folders, serving.reload)))
    if len(folders) < len(settings.deltas) and settings.remote_refresh_s:
        tasks.append(asyncio.create_task(_follow_remote(settings, serving)))
    if app.state.keyring is not None:
        tasks.append(asyncio.create_task(app.state.keyring.watch()))
    if (settings.keys or settings.keys_file) and folders:
        removal = asyncio.to_thread(remove_left_over_uploads, folders[0])
        tasks.append(asyncio.create_task(removal))
    return tasks


async def _follow_remote(settings: Settings, serving: Serving) -> None:
    """Bring the copies of remote folders up to date again and again, and serve what is new."""
    addresses = [root for root in settings.deltas if isinstance(root, RemoteAddress)]
    while True:
        await asyncio.sleep(settings.remote_refresh_s)
        for address in addresses:
            try:
                synced = await asyncio.to_thread(_copy_of, address, settings)
                known = serving.engine.store.not_copied.get(synced.folder, ())
                if synced.num_changed or synced.refused != known:
                    await serving.reload(not_copied={synced.folder: synced.refused})
            except Exception as error:  # noqa: BLE001 - the next round tries again
                logger.warning("%s: not refreshed (%s)", address, error)


def open_store(settings: Settings, backbone: Backbone) -> Store:
    """Find the deltas in the folders that the settings name, the shipped zoo last.

    Raises:
        DeltaError: a remote folder can't be used, and has no complete copy on this machine.
    """
    copies = {
        root: _copy_of(root, settings)
        for root in settings.deltas
        if isinstance(root, RemoteAddress)
    }
    roots = [root if isinstance(root, Path) else copies[root].folder for root in settings.deltas]
    store = Store([*roots, *([zoo_path()] if settings.zoo else [])], backbone=backbone.ref)
    store.not_copied = {synced.folder: synced.refused for synced in copies.values()}
    return store


def pinned_records(store: Store, settings: Settings) -> list[Record]:
    """Return the deltas that the settings pin; a task's name stands for its default strategy.

    Raises:
        SettingsError: names are not known, or no slot is left for the other deltas.
    """
    found: dict[tuple[str, str, str], Record] = {}
    problems: list[str] = []
    for name in settings.pinned:
        task, _, strategy = name.partition("/")
        try:
            record = store.resolve(task, strategy or None)
        except DeltaNotFoundError as error:
            problems.append(f"{PREFIX}PINNED names {name!r}: {error}")
        else:
            found[record.key] = record
    if len(store.records) > settings.max_slots > 0 and len(found) >= settings.max_slots:
        problems.append(
            f"{PREFIX}PINNED names {len(found)} deltas and {PREFIX}MAX_SLOTS is "
            f"{settings.max_slots}, so no slot is left for the other "
            f"{len(store.records) - len(found)}; raise {PREFIX}MAX_SLOTS or pin fewer"
        )
    if problems:
        raise SettingsError(problems)
    return list(found.values())


def _start_engine(
    settings: Settings, backbone: Backbone | None, store: Store | None
) -> tuple[Engine, Tuning]:
    """Load backbone and deltas, and warm up if there are any deltas."""
    backbone = backbone or load_backbone(settings.backbone)
    store = store or open_store(settings, backbone)
    with logged("loaded the deltas"):
        engine = Engine(
            backbone,
            store,
            device=settings.device,
            precision=settings.precision,
            max_slots=settings.max_slots,
            pinned=pinned_records(store, settings),
            threads=settings.threads,
        )
    threads, workers, tokens = settings.threads, settings.workers, settings.max_batch_tokens
    if settings.warm_up and engine.store.records:
        with logged("warmed up"):
            rows, reuse = settings.max_batch_rows, settings.reuse_tuning
            few = FULL_MACHINE_TOKENS
            return engine, warm_up(
                engine, threads, workers, tokens, rows, few_tokens=few, reuse=reuse
            )
    tokens = tokens or DEFAULT_BATCH_TOKENS
    return engine, tune_without_measuring(engine, threads, workers, tokens)


def _log_start(settings: Settings, engine: Engine, described: dict[str, Any]) -> None:
    effective = settings.model_dump(mode="json")
    logger.info("settings: %s", " ".join(f"{name}={value}" for name, value in effective.items()))
    logger.info("engine: %s", " ".join(f"{name}={value}" for name, value in described.items()))
    log_store(engine.store)


def log_store(store: Store) -> None:
    """Log how many deltas a store serves, and the files that it refuses."""
    logger.info("serving %d deltas of %d tasks", len(store.records), len(store.tasks))
    rejected = store.all_rejected
    for path, reason in rejected[:_MAX_LOGGED]:
        logger.warning("not served: %s: %s", path, reason)
    if (more := len(rejected) - _MAX_LOGGED) > 0:
        logger.warning("not served: %d more files; GET /deltas?status=refused names them", more)


async def _answer_error(request: Request, error: Exception) -> Response:
    caller = predictions.caller_of(request)
    if caller is not None:
        error = _for_caller(caller, error)
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(methods_at(request.app, request.scope))
        error = HTTPException(error.status_code, headers={"Allow": allowed})
    response = error_response(error, request.state.request_id, request.state.write_error())
    trace = request.state.trace
    trace.code, trace.cause_status = response.code, response.cause_status
    # The request's log line shows errors of the client; their messages may quote the input.
    if response.cause_status >= 500:
        level = logging.ERROR if response.cause_status == 500 else logging.WARNING
        cause = error.__cause__
        is_told = isinstance(cause, OSError | DeltaError)  # a full disk is no fault of the code
        logger.log(
            level, "%s: %s", type(error).__name__, error, exc_info=None if is_told else cause
        )
    return response


def _for_caller(caller: Caller, error: Exception) -> Exception:
    """Hide the tasks of other keys in an error."""
    if isinstance(error, DeltaNotFoundError) and error.kind == "task":
        return DeltaNotFoundError("task", error.name, filter(caller.may_use, error.available))
    return error
