"""Train the shipped deltas: `python -m training.zoo` (hours; safe to stop and start again).

For each cell, task x strategy, one run for each learning rate; the run with the best score on its
selection rows, which are train rows, gives the delta. The dev scores of the runs play no part in
the choice. Finished runs are kept below runs/zoo and not repeated. Several of these processes may
run at once: each cell is claimed by a file.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deltas.backbone import DEFAULT_BACKBONE
from deltas.format import read_manifest
from deltas.manifest import Manifest
from deltas.store import delta_path, zoo_path
from training.config import FitConfig
from training.fit import fit

logger = logging.getLogger(__name__)

_RATES = {
    "bitfit": (2e-3, 6e-3),
    "layernorm": (2e-3, 6e-3),
    "random:0.001": (1e-2, 3e-2),
    "head": (3e-3, 3e-2),
}


@dataclass(frozen=True)
class Cell:
    """One delta of the zoo.

    Attributes:
        task: GLUE task.
        strategy: as after `--freeze`.
        epochs: of each of its runs.
    """

    task: str
    strategy: str
    epochs: float


# Epochs are what a shared two-core machine finishes in two hours: see DECISIONS.md. They are equal
# for the strategies of a task, so that those compare; a head trains on features computed once.
_EPOCHS = {"rte": 5.0, "cola": 5.0, "mrpc": 4.0, "stsb": 2.0, "sst2": 0.3}
_BITFIT_EPOCHS = {"wnli": 5.0, "mnli": 1.0, "qnli": 1.0, "qqp": 0.5}
_HEAD_EPOCHS = {"rte": 60.0, "cola": 30.0, "mrpc": 60.0, "stsb": 40.0, "sst2": 10.0}

CELLS = (
    *(Cell(task, "bitfit", epochs) for task, epochs in _BITFIT_EPOCHS.items()),
    *(
        Cell(task, strategy, epochs)
        for task, epochs in _EPOCHS.items()
        for strategy in ("bitfit", "random:0.001", "layernorm")
    ),
    *(Cell(task, "head", epochs) for task, epochs in _HEAD_EPOCHS.items()),
)


def main() -> int:
    """Train what is missing of the zoo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.zoo", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/zoo"), help="where finished runs are kept"
    )
    parser.add_argument("--zoo", type=Path, default=zoo_path(), help="where the chosen deltas go")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for cell in CELLS:
        with _claim(arguments.work, cell) as claimed:
            if claimed:
                _train_cell(cell, arguments.work, arguments.zoo, arguments.seed)
    return 0


def _train_cell(cell: Cell, work: Path, zoo: Path, seed: int) -> None:
    runs = {rate: _run(cell, rate, seed, work) for rate in _RATES[cell.strategy]}
    best = max(runs, key=lambda rate: _selection_score(runs[rate]))
    source = _finished(cell, best, seed, work)
    target = delta_path(zoo, DEFAULT_BACKBONE, cell.task, cell.strategy)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    logger.info("%s %s: chose rate %g, %s", cell.task, cell.strategy, best, runs[best].metrics)


def _selection_score(manifest: Manifest) -> tuple[float, float]:
    values = manifest.metrics["selection"].values
    return values[manifest.primary_metric], -values["loss"]


def _finished(cell: Cell, rate: float, seed: int, work: Path) -> Path:
    """Where a run's delta lies; other options, another folder."""
    folder = work / f"lr{rate:g}-epochs{cell.epochs:g}-seed{seed}"
    return delta_path(folder, DEFAULT_BACKBONE, cell.task, cell.strategy)


def _run(cell: Cell, rate: float, seed: int, work: Path) -> Manifest:
    path = _finished(cell, rate, seed, work)
    if not path.exists():
        options: dict[str, object] = {"task": cell.task, "freeze": cell.strategy, "lr": rate}
        options |= {"seed": seed, "epochs": cell.epochs, "batch_size": 16}
        config = FitConfig.model_validate(options | {"out": path.parents[2], "resume": True})
        fit(config, command=_command(options))
    manifest, _ = read_manifest(path)
    if manifest.training.data == "sample":
        raise SystemExit(f"{path} was trained on the generated sample; set GLUE_DIR")
    values = manifest.metrics["selection"].values
    logger.info("%s %s rate %g: %s", cell.task, cell.strategy, rate, values)
    return manifest


def _command(options: dict[str, object]) -> str:
    """The command that repeats a run."""
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in options.items()]
    return " ".join(["python -m training.fit", *flags])


@contextmanager
def _claim(work: Path, cell: Cell) -> Iterator[bool]:
    """Whether this process may train the cell; the claim ends with the process, however it ends."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / f".{cell.task}-{cell.strategy.replace(':', '-')}.claim").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


if __name__ == "__main__":
    sys.exit(main())
