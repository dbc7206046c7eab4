"""Plans the runs of `make bench-quality`, makes each in a process of its own, and records it."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltas.format import read_manifest
from deltas.manifest import SplitMetrics
from tests.bench.quality.results import (
    BASELINES,
    OURS,
    STOCK,
    QualityRun,
    Variant,
    append_run,
    is_ours,
    is_stock,
    read_runs,
    run_key,
)
from tests.bench.quality.sets import LoadedSet
from tests.bench.report import machine
from training.errors import ConfigError, TrainingError
from training.strategies import grammar

GROUPS = {
    "all": (*BASELINES, *OURS, *STOCK),
    "baselines": BASELINES,
    "ours": OURS,
    "stock": STOCK,
}
_FACTS = ("steps", "epochs", "batch_size", "learning_rate", "precision", "head_start")
_PROGRAM = "tests.bench.quality"


class RunFailedError(TrainingError):
    """A run's process has failed; its last words are the message."""


@dataclass(frozen=True)
class Planned:
    """A run to make."""

    rows: LoadedSet
    method: str
    seed: int

    @property
    def title(self) -> str:
        """The words for a run in messages."""
        return f"{self.rows.set.name} {self.method} seed {self.seed}"


def choose_methods(words: Sequence[str]) -> list[str]:
    """Return the methods that `--methods` names, in the order in which they run."""
    given = [method for word in words for method in GROUPS.get(word, (word,))]
    for method in given:
        if is_ours(method):
            grammar.canonical(method)  # raises an error that lists all strategies
        elif is_stock(method) and not re.fullmatch(r"stock:\d+(\.\d+)?(e-?\d+)?", method):
            raise ConfigError(f"--methods {method}: give a learning rate, as in stock:5e-5")
    return sorted(dict.fromkeys(given), key=is_stock)


def plan(loaded: Sequence[LoadedSet], options: argparse.Namespace) -> Iterator[Planned]:
    """Yield the runs in their order: all baselines, then each seed's runs on all sets."""
    methods = choose_methods(options.methods)
    for rows in loaded:
        for method in methods:
            if method in BASELINES and applies(method, rows):
                yield from (Planned(rows, method, seed) for seed in options.seeds)
    for seed in options.seeds:
        for rows in loaded:
            yield from (Planned(rows, each, seed) for each in methods if each not in BASELINES)


def applies(method: str, rows: LoadedSet) -> bool:
    """Return whether a method can answer a set."""
    if method == "cosine":
        return rows.is_pair and (rows.kind == "regression" or rows.num_labels == 2)
    return rows.is_pair or method != "sklearn:apart"


def tell(text: str) -> None:
    """Write a line for the user, beside the results on standard output."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Bench:
    """Makes runs and records them."""

    def __init__(self, options: argparse.Namespace, variant: Variant) -> None:
        self._options, self._variant = options, variant
        self._cpu = str(machine(options.threads)["cpu"])

    def key(self, run: Planned) -> str:
        """Return the key of a run; that of a stock run has its steps."""
        digest = run.rows.digest(run.seed)
        more = {"steps": self._stock_steps(run)} if is_stock(run.method) else {}
        return run_key(run.method, run.seed, digest, self._variant, set=run.rows.set.name, **more)

    def missing(self, planned: Sequence[Planned]) -> list[Planned]:
        """Return the runs that have no line, each key once."""
        known = set(read_runs(self._options.json))
        found = {self.key(run): run for run in reversed(planned)}
        wanted = {id(run) for key, run in found.items() if key not in known}
        return [run for run in planned if id(run) in wanted]

    def make(self, group: Sequence[Planned]) -> None:
        """Make a run, or some baselines of one set, and append a line for each.

        Raises:
            RunFailedError: the process has failed.
        """
        group = self.missing(group)  # another process may have made some of them
        if not group:
            return
        first = group[0]
        if is_ours(first.method):
            self._record(first, self._fit(first))
        elif first.method in BASELINES:
            names = ",".join(f"{run.method}@{run.seed}" for run in group)
            command = [f"{_PROGRAM}.baselines", names, *first.rows.words(first.seed)]
            by_name = {(run.method, run.seed): run for run in group}
            run_process(
                command,
                self._options.threads,
                lambda line: self._record(by_name[line["method"], line["seed"]], line),
            )
        else:
            rate, steps = first.method.removeprefix("stock:"), self._stock_steps(first)
            if not steps:
                raise RunFailedError(
                    "our full run of the same rows and seed gives the number of steps, and it has "
                    "no line yet; add full to --methods, or give --stock-epochs"
                )
            command = [f"{_PROGRAM}.stock", rate, steps, *first.rows.words(first.seed)]
            run_process(command, self._options.threads, lambda line: self._record(first, line))

    def _stock_steps(self, run: Planned) -> str:
        """Return the steps of a stock run: those of our full run of the same rows, if known."""
        if self._options.stock_epochs:
            return f"epochs:{self._options.stock_epochs:g}"
        full = Planned(run.rows, "full", run.seed)
        found = read_runs(self._options.json).get(self.key(full))
        return str(found.facts["steps"]) if found else ""

    def _fit(self, run: Planned) -> dict[str, Any]:
        """Run `training.fit` as a user would, and describe the delta that it has written."""
        with tempfile.TemporaryDirectory() as folder:
            words = [*run.rows.words(run.seed), "--freeze", run.method, "--out", folder, "--json"]
            lines: list[dict[str, Any]] = []
            before = _children_cpu()
            run_process(["training.fit", *words], self._options.threads, lines.append)
            used = _children_cpu() - before
            manifest, _ = read_manifest(Path(lines[-1]["file"]))
        task, training = manifest.task, manifest.training
        facts = {"bytes": lines[-1]["bytes"], "pooling": task.pooling, "pairs": task.pairs}
        for name in _FACTS:
            facts[name] = getattr(training, name)
        return {
            "metric": manifest.primary_metric,
            "digest": training.data_digest,
            "data_note": training.data_note,
            "versions": training.versions,
            "git_commit": training.git_commit,
            "train_rows": training.train_rows,
            "selection_rows": training.selection_rows,
            "scores": {split: _values(part) for split, part in manifest.metrics.items()},
            "rows": {split: part.rows for split, part in manifest.metrics.items()},
            "seconds": training.duration_s,
            "cpu_s": round(used, 1),
            "facts": facts | {"trained_parameters": manifest.trainable_parameters},
        }

    def _record(self, run: Planned, found: dict[str, Any]) -> None:
        if found["digest"] != run.rows.digest(run.seed):
            raise RunFailedError("its rows are not those that this program has read")
        known = {
            "key": self.key(run),
            "set": run.rows.set.name,
            "method": run.method,
            "seed": run.seed,
            "variant": self._variant,
            "command": self._shown(run),
            "kind": run.rows.kind,
            "labels": run.rows.num_labels,
            "is_pair": run.rows.is_pair,
            "threads": self._options.threads,
            "cpu": self._cpu,
        }
        line = QualityRun.model_validate(found | known)
        append_run(self._options.json, line)
        tell(f"{run.title}: {line.metric} {line.score:.4f}, {line.seconds:,.0f} s")

    def _shown(self, run: Planned) -> str:
        """Return the command of a run, with files relative to the set's folder."""
        words = run.rows.shown(run.seed)
        if is_ours(run.method):
            return shlex.join(["training.fit", *words, "--freeze", run.method])
        if run.method in BASELINES:
            return shlex.join([f"{_PROGRAM}.baselines", f"{run.method}@{run.seed}", *words])
        rate, steps = run.method.removeprefix("stock:"), self._stock_steps(run)
        return shlex.join([f"{_PROGRAM}.stock", rate, steps, *words])


def _values(part: SplitMetrics) -> dict[str, float]:
    """Return the metrics of a split, with the expected calibration error if a run states it."""
    stated = getattr(part, "reliability", None)
    errors = {} if stated is None else {"ece": stated.error, "ece_before": stated.error_before}
    return part.values | errors


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_process(words: Sequence[str], threads: int, take: Callable[[dict[str, Any]], None]) -> None:
    """Run a module in a process that ends with this one; hand over each line of its output.

    Raises:
        RunFailedError: the process has failed.
    """
    limits = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as log,
        subprocess.Popen(
            [sys.executable, "-m", *words],
            env=os.environ | limits,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=_end_with_parent,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    take(json.loads(line))
        finally:
            if sys.exc_info()[0] is not None:
                process.terminate()
        if process.wait():
            log.seek(0)
            last = (log.read().strip().splitlines() or ["no message"])[-1]
            raise RunFailedError(f"exit status {process.returncode}: {last}")


def _end_with_parent() -> None:
    """Have Linux end this process when its parent ends, be it by kill -9."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
