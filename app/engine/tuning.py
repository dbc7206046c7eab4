"""The numbers that a start has measured, kept on disk for the next start on the same machine.

They hold for the machine, the versions, the backbone and the settings that they were measured with;
with any other, `app.engine.warm_up` measures again. The file lies in the cache folder of
`deltas.kernels.disk_cache`, which can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from app.engine.engine import Engine
from deltas.hardware import cpu_model
from deltas.kernels import disk_cache
from deltas.kernels.compiled import EPILOGUE, machine_code

logger = logging.getLogger(__name__)

_IDLE_SHARE = 0.1  # of the cores: other programs that take more make a measurement doubtful
_STAT = Path("/proc/stat")
_IDLE_COLUMNS = 3, 4  # idle, and waiting for a disk
_BUSY_COLUMNS = 8  # user, nice, system, the two above, two kinds of interrupts, stolen by the host


@dataclass(frozen=True)
class Tuning:
    """The numbers chosen for a server."""

    threads: int  # per forward pass that has the full machine
    workers: int  # forward passes that may run at the same time
    share_threads: int  # per forward pass while several run
    batch_tokens: int  # limit for a batch that has the full machine


def num_cpus() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LoadMeter:
    """Measures how much of this process's cores other programs take, from its making on."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._own_s = time.process_time()
        self._busy_s = _busy_seconds()

    def share_of_others(self) -> float:
        """Return the share of the cores' time, from 0 to 1; 0 where the system does not tell."""
        if self._busy_s is None or (busy_s := _busy_seconds()) is None:
            return 0.0
        others_s = busy_s - self._busy_s - (time.process_time() - self._own_s)
        passed_s = (time.perf_counter() - self._began) * num_cpus()
        return min(max(others_s / passed_s, 0.0), 1.0)


def _busy_seconds() -> float | None:
    """Return the seconds that the cores of this process have worked for all programs."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    try:
        for line in _STAT.read_text(encoding="utf-8").splitlines():
            name, *columns = line.split()
            if name in cores:
                spent = [int(column) for column in columns[:_BUSY_COLUMNS]]
                ticks += sum(spent) - sum(spent[column] for column in _IDLE_COLUMNS)
    except (OSError, ValueError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def installed_version() -> str:
    """Return DeltaBERT's version, or "0+unknown" if it runs from a checkout without installing."""
    try:
        return version("deltabert")
    except PackageNotFoundError:
        return "0+unknown"


def recall(engine: Engine, given: tuple[int, int, int]) -> Tuning | None:
    """Return what an earlier start has measured; None if there is nothing that can be used.

    Args:
        engine: the engine to be tuned.
        given: threads, workers and tokens that are set, 0 for those to be measured.
    """
    name, facts = _entry(engine, given)
    content = disk_cache.read(name)
    if content is None:
        return None
    try:
        stored = json.loads(content)
        tuning = Tuning(**stored["tuning"])
        is_sound = stored["facts"] == facts and all(
            type(number) is int and number > 0 for number in asdict(tuning).values()
        )
    except (ValueError, TypeError, KeyError):
        is_sound = False
    if not is_sound:
        logger.warning("%s has no such numbers; measuring again", disk_cache.folder() / name)
        return None
    numbers = " ".join(f"{field.name}={getattr(tuning, field.name)}" for field in fields(tuning))
    logger.info("measured by an earlier start: %s (%s)", numbers, disk_cache.folder() / name)
    return tuning


def remember(
    engine: Engine, given: tuple[int, int, int], tuning: Tuning, share_of_others: float
) -> None:
    """Keep what was measured for the next start, unless other programs have disturbed it.

    Args:
        engine: the engine that was tuned.
        given: threads, workers and tokens that are set, 0 for measured ones.
        tuning: the result.
        share_of_others: share of the cores that other programs took meanwhile.
    """
    if share_of_others > _IDLE_SHARE:
        logger.warning(
            "other programs took %.0f %% of the processor while the fastest settings were "
            "measured; the next start measures again",
            100 * share_of_others,
        )
        return
    name, facts = _entry(engine, given)
    document = {"facts": facts, "tuning": asdict(tuning)}
    disk_cache.write(name, json.dumps(document, indent=1).encode())


def _entry(engine: Engine, given: tuple[int, int, int]) -> tuple[str, dict[str, str]]:
    """Return the name of the file, and what the numbers depend on."""
    on_gpu = engine.device.type == "cuda"
    facts = {
        "device": torch.cuda.get_device_name(engine.device) if on_gpu else cpu_model(),
        "cores": str(num_cpus()),
        "torch": torch.__version__,
        "deltabert": installed_version(),
        "kernels": machine_code.key(EPILOGUE),
        "backbone": engine.backbone.ref.fingerprint,
        "precision": engine.precision,
        "slots": str(engine.cache.max_slots or "all"),
        "threads, workers, tokens": " ".join(map(str, given)),
    }
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return f"tuning-{digest}.json", facts
