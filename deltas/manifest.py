"""The manifest: everything that a delta file says about itself, as one frozen JSON document.

The manifest is stored in the header of the `.safetensors` file (see `deltas.format`). It suffices
to refuse a wrong backbone, to serve the task, to show its benchmark row and to repeat the run.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION = 1
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,127}$"

TaskKind = Literal["single_label", "multi_label", "regression"]
Pooling = Literal["cls", "mean"]
PairEncoding = Literal["joint", "separate"]
# "biases@0-3" re-initialises the biases of the layers 0 to 3 only.
REINIT_PATTERN = r"^(none|(biases|all)(@[0-9]{1,4}(-[0-9]{1,4})?)?)$"
Reinit = Annotated[str, Field(pattern=REINIT_PATTERN)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1, max_length=256)]
Length = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=1, le=2**53)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackboneRef(_Part):
    """The encoder and tokenizer that a delta belongs to."""

    id: str
    revision: str | None = None
    fingerprint: str
    tokenizer_fingerprint: str


class TaskSpec(_Part):
    """The text fields of a task's rows, how the encoder reads them, and the meaning of its outputs.

    `pooling` is the vector that the head reads: the first token's, through the trained pooler
    ("cls", Devlin et al. 2018), or the mean of all tokens of the last layer ("mean", Reimers and
    Gurevych 2019, arXiv:1908.10084). `pairs` says whether the two texts of a row are read in one
    sequence ("joint", a cross-encoder) or each in a sequence of its own ("separate", a bi-encoder);
    then the head reads [u, v, |u - v|, u * v] of the two vectors u and v, scaled to length 1.

    Fields with a default were added later. A default is not written, so that the text of older
    manifests, and with it their version, stays the same.
    """

    name: Name
    kind: TaskKind
    labels: tuple[Text, ...]
    text_fields: Annotated[tuple[Text, ...], Field(min_length=1, max_length=2)]
    max_length: Annotated[int, Field(ge=4)]
    pooling: Pooling = Field("cls", exclude_if=lambda value: value == "cls")
    pairs: PairEncoding = Field("joint", exclude_if=lambda value: value == "joint")

    @property
    def num_outputs(self) -> int:
        """The head's number of outputs, C."""
        return 1 if self.kind == "regression" else len(self.labels)

    @property
    def vectors_per_row(self) -> int:
        """The head's input width in units of the encoder's: 4 for texts read separately, else 1."""
        return 4 if self.pairs == "separate" else 1

    @model_validator(mode="after")
    def _labels_fit_kind(self) -> TaskSpec:
        fewest = {"single_label": 2, "multi_label": 1, "regression": 0}[self.kind]
        if len(self.labels) < fewest or (self.kind == "regression" and self.labels):
            raise ValueError(f"a {self.kind} task can't have {len(self.labels)} labels")
        if self.pairs == "separate" and len(self.text_fields) == 1:
            raise ValueError("only pairs of texts can be read separately; this task has one text")
        for field, values in (("labels", self.labels), ("text_fields", self.text_fields)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field} are not distinct: {', '.join(values)}")
        return self


class StrategySpec(_Part):
    """The trained parameters: canonical `--freeze` text, `--reinit`, and the seed of the draws."""

    name: Text
    reinit: Reinit = "none"
    seed: int = 0

    @property
    def served_as(self) -> str:
        """The name in requests and tables, such as "initbias+bitfit" for re-initialised biases."""
        parameters, at, layers = self.reinit.partition("@")
        prefix = {"none": "", "biases": "initbias", "all": "init"}[parameters]
        return f"{prefix}{at}{layers}+{self.name}" if prefix else self.name


class EntryInfo(_Part):
    """An entry of the delta: the parameter's shape, and how many of its values are stored."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,256}$")]
    kind: Literal["dense", "sparse"]
    shape: Annotated[tuple[Length, ...], Field(min_length=1, max_length=2)]
    count: Count

    @model_validator(mode="after")
    def _count_fits_shape(self) -> EntryInfo:
        size = prod(self.shape)
        if self.count > size or (self.kind == "dense" and self.count < size):
            raise ValueError(f"a {self.kind} entry of shape {self.shape} can't hold {self.count}")
        return self


class InitialDelta(_Part):
    """The delta that a run started from; `digest` is the SHA-256 of its file."""

    task: Name
    strategy: Text
    version: str
    digest: str
    with_head: bool


class DataSetRef(_Part):
    """The data set and the splits that a custom task's rows came from."""

    name: str  # on the Hugging Face hub, or of a folder
    config: str | None = None
    revision: str | None = None  # commit on the hub; None for a folder
    train_split: str
    validation_split: str | None = None  # None if train rows were held out

    @property
    def spelled(self) -> str:
        """The value of `--dataset` that names this data set."""
        config = f":{self.config}" if self.config else ""
        return f"{self.name}{config}" + (f"@{self.revision}" if self.revision else "")


class TrainingFacts(_Part):
    """The data, hyper-parameters and software that repeat the run, and its cost.

    Fields with a default were added after the first release, so that older files can be read.
    """

    data: Literal["folder", "hub", "sample", "files"]
    data_digest: str
    data_note: str = ""
    data_set: DataSetRef | None = None
    train_rows: int
    selection_rows: int
    epochs: float
    steps: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float | None = None
    head_start: str = "random"
    dropout: float = 0.0
    warmup: float | None = None
    decay: str | None = None
    weight_decay: float | None = None
    accumulate: int = 1
    batch_order: str = Field("length", exclude_if=lambda value: value == "length")
    clip_norm: float = Field(1.0, exclude_if=lambda value: value == 1.0)  # 0 clips nothing
    label_smoothing: float = 0.0
    class_weights: str = "none"
    patience: int | None = None
    stopped_early: bool = False
    init_from: InitialDelta | None = None
    processes: int = 1
    precision: str
    seed: int
    duration_s: float
    device: str
    versions: dict[str, str]
    git_commit: str | None = None
    command: str


class LabelMetrics(_Part):
    """Scores of one label on a split; `rows` counts the rows with that label."""

    rows: int
    precision: float
    recall: float
    f1: float


class SplitMetrics(_Part):
    """Metrics on one split; `note` warns readers about its rows.

    `by_label` is filled for custom tasks with labels.
    """

    rows: int
    values: dict[str, float]
    note: str = ""
    by_label: dict[str, LabelMetrics] = Field(default_factory=dict)


class Manifest(_Part):
    """The whole document; `metrics` has "selection" and the task's validation splits as keys."""

    format_version: Literal[1] = 1
    backbone: BackboneRef
    task: TaskSpec
    strategy: StrategySpec
    entries: tuple[EntryInfo, ...]
    trainable_parameters: Count
    total_parameters: Count
    training: TrainingFacts
    primary_metric: str
    metrics: dict[str, SplitMetrics]

    @property
    def key(self) -> tuple[str, str]:
        """Task and strategy, under which the delta is served."""
        return self.task.name, self.strategy.served_as

    @property
    def trained_share(self) -> float:
        """Trained parameters over all parameters, head included."""
        return self.trainable_parameters / self.total_parameters

    @property
    def validation_split(self) -> str | None:
        """The split whose primary metric represents the delta: the first besides "selection"."""
        return next((split for split in self.metrics if split != "selection"), None)
