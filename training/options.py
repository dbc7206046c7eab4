"""Every option of a training run, once: type, range and help; the flags are made of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from deltas.manifest import REINIT_PATTERN, TaskKind

Decay = Literal["linear", "cosine", "constant"]

DEFAULT_OUT = Path("runs/deltas")
# Enough for small tasks to settle and for large ones to finish.
_ROWS_VISITED = 60_000
_MOST_EPOCHS = 20
# A head alone needs more, and they cost little: its features are computed once (DECISIONS.md).
_HEAD_EPOCHS = 40


def _known_reinit(text: str) -> str:
    if not re.fullmatch(REINIT_PATTERN, text):
        raise ValueError(
            f"give 'none', 'biases' or 'all', or some layers only, like 'biases@0-3'; not {text!r}"
        )
    return text


# Options of rows of the user's own: what they belong to, and which of them there must be.
_GOES_WITH = {
    "validation_file": ("train_file",),
    "train_split": ("dataset",),
    "validation_split": ("dataset",),
    "text_columns": ("train_file", "dataset"),
    "label_column": ("train_file", "dataset"),
    "name": ("train_file", "dataset"),
    "kind": ("train_file", "dataset"),
}
_NEEDED = ("text_columns", "label_column", "name")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class FitConfig(BaseModel):
    """What `python -m training.fit` can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: Annotated[
        str,
        Field(description="one of GLUE's nine tasks: cola sst2 mrpc stsb qqp mnli qnli rte wnli"),
    ] = ""
    freeze: Annotated[
        str,
        Field(
            description="what trains besides the head; 'help' lists the strategies; a+b unites two"
        ),
    ] = "bitfit"
    reinit: Annotated[
        str,
        AfterValidator(_known_reinit),
        Field(description="first set biases to 0, or draw all anew: none, biases, all, biases@0-3"),
    ] = "none"
    init_from: Annotated[
        Path | None,
        Field(
            description="delta to start from, of another task or the very same rows and seed; "
            "with the same selection"
        ),
    ] = None
    init_head: Annotated[
        bool, Field(description="start from its head, too; it must have as many labels")
    ] = False
    backbone: Annotated[
        str | None,
        Field(description="hub id, id@revision or folder of a BERT (default: packaged MiniLM)"),
    ] = None
    data: Annotated[
        str | None,
        Field(
            description="hub, sample, or folder of <task>/<split>.parquet (default: $GLUE_DIR, hub)"
        ),
    ] = None
    train_rows: Annotated[
        int | None, Field(ge=2, description="use only so many train rows, drawn with the seed")
    ] = None
    epochs: Annotated[
        float | None,
        Field(
            gt=0,
            description="passes over the train rows (default: about 60,000 rows, at most 20; "
            "of a head alone 40)",
        ),
    ] = None
    lr: Annotated[
        float | None,
        Field(gt=0, description="peak learning rate (default: depends on the strategy)"),
    ] = None
    head_lr: Annotated[
        float | None,
        Field(
            gt=0, description="peak learning rate of the head (default: 0.001 / RMS of its input)"
        ),
    ] = None
    batch_size: Annotated[int, Field(ge=1, description="rows in a step")] = 32
    warmup: Annotated[
        float, Field(ge=0, le=1, description="share of the steps in which the rate rises")
    ] = 0.06
    schedule: Annotated[
        Decay,
        Field(description="how the rate goes on after that: linear or cosine to 0, or constant"),
    ] = "linear"
    accumulate: Annotated[
        int,
        Field(ge=1, description="batches that make one step: less memory than one large batch"),
    ] = 1
    class_weights: Annotated[
        Literal["none", "balanced"],
        Field(description="balanced lets rare labels count as much as frequent ones"),
    ] = "none"
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="share of a label that is spread over all labels")
    ] = 0.0
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's decay; pulls values to 0")] = (
        0.0
    )
    dropout: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="probability of dropping values of the encoder and the head's input",
        ),
    ] = 0.0
    selection_share: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="share of the train rows kept back to select the best state, at most 2,000",
        ),
    ] = 0.1
    evals: Annotated[
        int | None,
        Field(ge=1, description="evaluations on those rows (default: one an epoch, 4 at least)"),
    ] = None
    evals_per_epoch: Annotated[
        float | None, Field(gt=0, description="the same, counted by epoch: 4 is every quarter")
    ] = None
    patience: Annotated[
        int | None,
        Field(ge=1, description="stop after so many evaluations without a better one"),
    ] = None
    seed: Annotated[
        int,
        Field(
            ge=0, lt=2**31, description="draws the selection, the head, the order of rows, dropout"
        ),
    ] = 0
    max_length: Annotated[int, Field(ge=8, description="tokens of a row; longer ones are cut")] = (
        128
    )
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(description="of the frozen computation; deltas stay float32"),
    ] = "auto"
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Field(description="auto takes CUDA when it is there")
    ] = "auto"
    train_file: Annotated[
        Path | None, Field(description="your own rows: CSV, JSONL or parquet")
    ] = None
    validation_file: Annotated[
        Path | None, Field(description="rows to report on (default: a fifth of the train file)")
    ] = None
    dataset: Annotated[
        str | None,
        Field(description="your own rows: owner/name[:config][@revision] on the hub, or a folder"),
    ] = None
    train_split: Annotated[
        str | None, Field(description="split of the data set to train on (default: train)")
    ] = None
    validation_split: Annotated[
        str | None,
        Field(description="split to report on (default: validation, else a fifth of the other)"),
    ] = None
    text_columns: Annotated[
        str | None, Field(description="its one or two text columns: a or a,b")
    ] = None
    label_column: Annotated[str | None, Field(description="its label column")] = None
    name: Annotated[str | None, Field(description="what the task shall be called")] = None
    kind: Annotated[
        TaskKind | None, Field(description="of your own task (default: seen from the labels)")
    ] = None
    out: Annotated[
        Path, Field(description="folder to write <backbone>/<task>/<strategy>.safetensors into")
    ] = DEFAULT_OUT
    overwrite: Annotated[bool, Field(description="replace a delta that is already there")] = False
    resume: Annotated[
        bool, Field(description="go on where a run with the same options was stopped")
    ] = False
    json_: Annotated[bool, Field(alias="json", description="print the summary as JSON")] = False

    @model_validator(mode="after")
    def _fits_together(self) -> FitConfig:
        if self.evals is not None and self.evals_per_epoch is not None:
            raise ValueError("give --evals or --evals-per-epoch, not both")
        if self.init_from is not None and self.reinit != "none":
            raise ValueError("--init-from and --reinit both say what to start from; give one")
        if self.init_head and self.init_from is None:
            raise ValueError("--init-head goes with --init-from")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> FitConfig:
        given = [name for name in ("task", "train_file", "dataset") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "give either --task, for a GLUE task, or --train-file or --dataset, for rows of "
                "your own"
            )
        (source,) = given
        for name, sources in _GOES_WITH.items():
            if getattr(self, name) is not None and source not in sources:
                raise ValueError(f"{_flag(name)} goes with {' or '.join(map(_flag, sources))}")
        if source == "task":
            return self
        missing = [_flag(name) for name in _NEEDED if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{_flag(source)} needs {', '.join(missing)}")
        if self.data is not None:
            raise ValueError(
                f"--data is where GLUE tasks come from; it does not go with {_flag(source)}"
            )
        if self.validation_split is not None and self.validation_split == self.train_split_name:
            raise ValueError(
                f"--validation-split {self.validation_split}: that is what is trained on; name "
                "another split, or leave it out to hold rows out"
            )
        return self

    @property
    def train_split_name(self) -> str:
        """The split of a data set to train on."""
        return self.train_split or "train"


def default_epochs(train_rows: int, *, of_features: bool = False) -> float:
    """Passes over the train rows when the user names none.

    Args:
        train_rows: how many there are.
        of_features: only a head trains, on features that were computed once.
    """
    if of_features:
        return float(_HEAD_EPOCHS)
    return min(float(_MOST_EPOCHS), round(_ROWS_VISITED / train_rows, 3))
