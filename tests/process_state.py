"""Puts back what a test changes for the whole process, so that no test depends on another one."""

from __future__ import annotations

import gc
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

LOGGERS = ("", "app", "deltas", "training", "uvicorn", "uvicorn.error", "uvicorn.access")


def remember() -> Callable[[], None]:
    """Return a function that puts back the environment, loggers and limits of this moment."""
    environment = _environment()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    logs = [(log, log.level, log.propagate, log.disabled, _handlers(log)) for log in loggers]
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    thresholds = gc.get_threshold()

    def put_back() -> None:
        now = _environment()
        for name in now.keys() - environment.keys():
            del os.environ[name]
        for name, value in environment.items() - now.items():
            os.environ[name] = value
        for log, level, propagate, disabled, handlers in logs:
            log.setLevel(level)
            log.propagate, log.disabled = propagate, disabled
            if _handlers(log) != handlers:
                pytests = [handler for handler in log.handlers if handler not in _handlers(log)]
                log.handlers[:] = [*handlers, *pytests]
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode("default")  # a run switches it on for its process
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()

    return put_back


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let the system refuse to write files beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def _handlers(log: logging.Logger) -> list[logging.Handler]:
    """Return a logger's handlers without those that pytest adds for each phase of a test."""
    return [each for each in log.handlers if not type(each).__module__.startswith("_pytest")]
