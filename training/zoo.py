"""Train the shipped deltas: `python -m training.zoo` (hours; safe to stop and start again).

For each cell, task x strategy, short runs on part of the train set choose a learning rate by their
selection rows; then one run on the whole train set gives the delta. The dev set is never looked at
on the way. Finished runs are kept below runs/zoo and not repeated. Several of these processes may
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

_SCREEN = {"train_rows": 800, "selection_share": 0.3, "epochs": 1.0, "evals": 1, "batch_size": 16}
_SCREEN_HEAD = _SCREEN | {"train_rows": 2000, "selection_share": 0.5, "epochs": 20.0}
_HEAD_EPOCHS = {"cola": 30.0, "rte": 60.0, "mrpc": 60.0, "stsb": 40.0, "sst2": 10.0}
_SHORT_EPOCHS = {"cola": 1.5, "mrpc": 0.9, "stsb": 0.9, "sst2": 0.08, "rte": 0.5}
_RATES = {
    "head": (3e-3, 3e-2),
    "bitfit": (2e-3, 6e-3),
    "layernorm": (2e-3, 6e-3),
    "random:0.001": (1e-2, 3e-2),
}


@dataclass(frozen=True)
class Cell:
    """One delta of the zoo.

    Attributes:
        task: GLUE task.
        strategy: as after `--freeze`.
        epochs: of the final run.
    """

    task: str
    strategy: str
    epochs: float


# Epochs are what a shared two-core machine finishes in an hour or two: see DECISIONS.md.
CELLS = (
    Cell("mrpc", "bitfit", 2.5),
    Cell("cola", "bitfit", 5.0),
    Cell("stsb", "bitfit", 3.0),
    Cell("sst2", "bitfit", 0.4),
    Cell("rte", "bitfit", 2.0),
    Cell("qnli", "bitfit", 0.5),
    Cell("mnli", "bitfit", 0.45),
    Cell("qqp", "bitfit", 0.35),
    *(
        Cell(task, strategy, epochs)
        for task, epochs in _SHORT_EPOCHS.items()
        for strategy in ("random:0.001", "layernorm")
    ),
    Cell("wnli", "bitfit", 5.0),
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
    rates = _RATES[cell.strategy]
    screened = {
        rate: _run(cell, rate, seed, work / f"screen-{rate:g}", screening=True) for rate in rates
    }
    # So short a run moves the loss before it moves the metric.
    best = min(rates, key=lambda rate: screened[rate].metrics["selection"].values["loss"])
    manifest = _run(cell, best, seed, work / "final", screening=False)
    source = delta_path(work / "final", DEFAULT_BACKBONE, cell.task, cell.strategy)
    target = delta_path(zoo, DEFAULT_BACKBONE, cell.task, cell.strategy)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    logger.info("%s %s: rate %g, %s", cell.task, cell.strategy, best, manifest.metrics)


def _run(cell: Cell, rate: float, seed: int, out: Path, *, screening: bool) -> Manifest:
    path = delta_path(out, DEFAULT_BACKBONE, cell.task, cell.strategy)
    if not path.exists():
        options: dict[str, object] = {"task": cell.task, "freeze": cell.strategy, "lr": rate}
        options |= {"seed": seed, "out": out, "resume": True}
        if screening:
            options |= _SCREEN_HEAD if cell.strategy == "head" else _SCREEN
            if cell.task == "wnli":
                del options["train_rows"]
        else:
            options |= {"epochs": cell.epochs, "batch_size": 16}
        config = FitConfig.model_validate(options)
        fit(config, command=_command(options), validate=not screening)
    manifest, _ = read_manifest(path)
    stage = "screen" if screening else "final"
    logger.info(
        "%s %s %s rate %g: %s", stage, *manifest.key, rate, manifest.metrics["selection"].values
    )
    return manifest


def _command(options: dict[str, object]) -> str:
    """The command that repeats a run; where it wrote is not part of what it did."""
    shown = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in options.items()
        if name not in ("out", "resume")
    ]
    return " ".join(["python -m training.fit", *shown])


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
