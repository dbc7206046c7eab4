"""Keeps the results of `make bench-quality`: one JSON line a run, never a text of a row.

A process that is killed leaves whole lines and at most one cut-off line, which is ignored when the
file is read and removed before the next line is written.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from training.errors import DataError

# The strategies whose defaults a recipe changed; all others are those of the recipe before it.
_CHANGED = {"3": ("head",)}


class Variant(BaseModel):
    """The conditions that a table's runs have in common; runs of other variants are kept apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = "2"  # of a line that names none
    asked_rows: int | None = None  # the program's --train-rows
    fit_args: str = ""  # options that our runs get besides the default command
    backbone: str = ""  # "" is the packaged one; of a folder only its last name
    max_length: int = 128

    def fits(self, run: QualityRun) -> bool:
        """Return whether a run belongs to this variant; baselines have no recipe."""
        ignored = {"recipe"} if run.is_ours else {"recipe", "fit_args"}
        if self.model_dump(exclude=ignored) != run.variant.model_dump(exclude=ignored):
            return False
        ours, theirs = (recipe_of(each.recipe, run.method) for each in (self, run.variant))
        return ours == theirs or not run.is_ours


class QualityRun(BaseModel):
    """The result of one run.

    `seconds` is the time of training and scoring. `cpu_s` is the CPU time of the whole process, all
    threads and its start included; other work on the machine hardly changes it. `scores` has the
    metrics by split: "selection" (if the method has selected something), then the dev splits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    set: str
    method: str
    seed: int
    variant: Variant
    command: str
    kind: str
    labels: int
    is_pair: bool
    metric: str
    digest: str  # of all rows that the run could see
    data_note: str = ""
    train_rows: int  # without the selection rows
    selection_rows: int = 0
    rows: dict[str, int]  # by split, as `scores`
    scores: dict[str, dict[str, float]]
    seconds: float
    cpu_s: float
    facts: dict[str, Any] = {}  # steps, learning rate, size and the like
    threads: int
    cpu: str
    versions: dict[str, str] = {}
    git_commit: str | None = None

    @property
    def is_ours(self) -> bool:
        """True for runs of `training.fit`."""
        return is_ours(self.method)

    @property
    def dev_split(self) -> str:
        """The split that stands for the set: the first dev split."""
        return next(split for split in self.scores if split != "selection")

    @property
    def score(self) -> float:
        """The primary metric on the dev split."""
        return self.scores[self.dev_split][self.metric]


TODAY = Variant(recipe="3")  # the defaults of this version; recipe "1" are those of release 0.1.0


def recipe_of(recipe: str, method: str) -> str:
    """Return the recipe that gave a strategy the defaults that it has in this recipe."""
    while recipe in _CHANGED and method not in _CHANGED[recipe]:
        recipe = str(int(recipe) - 1)
    return recipe


BASELINES = ("majority", "sklearn", "sklearn:apart", "cosine")
OURS = ("head", "bitfit", "layernorm", "random:0.001", "full")
STOCK = ("stock:2e-5", "stock:5e-5", "stock:1e-4")
# Methods whose result follows from the rows alone, so that a seed is worth a run only if it draws
# other rows.
DETERMINISTIC = BASELINES


def is_ours(method: str) -> bool:
    """Return whether a method is a strategy of `training.fit`."""
    return method not in BASELINES and not is_stock(method)


def is_stock(method: str) -> bool:
    """Return whether a method is a stock fine-tuning, which is written with its learning rate."""
    return method.startswith("stock:")


def run_key(method: str, seed: int, digest: str, variant: Variant, **more: Any) -> str:
    """Return the digest of all that decides a result; runs with equal keys are the same run."""
    ours = is_ours(method)
    fields = variant.model_dump(exclude={"asked_rows"} | (set() if ours else {"recipe"}))
    if ours:
        fields["recipe"] = recipe_of(variant.recipe, method)
    fields["fit_args"] = variant.fit_args if ours else ""
    parts: dict[str, Any] = {"method": method, "rows": digest, **fields, **more}
    if method not in DETERMINISTIC:
        parts["seed"] = seed
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def read_runs(path: Path) -> dict[str, QualityRun]:
    """Read the runs of a file by key; the last line of a key counts, a cut-off line does not.

    Raises:
        DataError: a line is not a result; says which line and why.
    """
    if not path.exists():
        return {}
    runs: dict[str, QualityRun] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            run = QualityRun.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise DataError(
                f"not a result of bench-quality ({where}: {first['msg']}); restore or delete the "
                "line",
                path=path,
                row=number,
            ) from error
        runs.pop(run.key, None)
        runs[run.key] = run
    return runs


def append_run(path: Path, run: QualityRun) -> None:
    """Append one line and wait until it is on disk; several processes may append to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(run.model_dump_json(exclude_defaults=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def select_runs(runs: Iterable[QualityRun], variant: Variant) -> list[QualityRun]:
    """Return the last run of each set, method and seed of a variant, in the order of the lines.

    An earlier run of the same three has seen other rows, since its key differs.
    """
    last = {(run.set, run.method, run.seed): run for run in runs if variant.fits(run)}
    return list(last.values())
