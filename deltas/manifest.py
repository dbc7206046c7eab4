"""The manifest: everything that a delta file says about itself, as one frozen JSON document.

It travels in the header of the `.safetensors` file (see `deltas.format`). A manifest is complete
enough to refuse a wrong backbone, to serve the task, to show its benchmark row and to repeat the
training run.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION = 1
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,127}$"

TaskKind = Literal["single_label", "multi_label", "regression"]
# "biases@0-3": those of the layers 0 to 3 only.
REINIT_PATTERN = r"^(none|(biases|all)(@[0-9]{1,4}(-[0-9]{1,4})?)?)$"
Reinit = Annotated[str, Field(pattern=REINIT_PATTERN)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1, max_length=256)]
Length = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=1, le=2**53)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackboneRef(_Part):
    """Which encoder and tokenizer the delta belongs to."""

    id: str
    revision: str | None = None
    fingerprint: str
    tokenizer_fingerprint: str


class TaskSpec(_Part):
    """What a row of the task looks like and what its answer means."""

    name: Name
    kind: TaskKind
    labels: tuple[Text, ...]
    text_fields: Annotated[tuple[Text, ...], Field(min_length=1, max_length=2)]
    max_length: Annotated[int, Field(ge=4)]

    @property
    def num_outputs(self) -> int:
        """Width C of the head."""
        return 1 if self.kind == "regression" else len(self.labels)

    @model_validator(mode="after")
    def _labels_fit_kind(self) -> TaskSpec:
        fewest = {"single_label": 2, "multi_label": 1, "regression": 0}[self.kind]
        if len(self.labels) < fewest or (self.kind == "regression" and self.labels):
            raise ValueError(f"a {self.kind} task can't have {len(self.labels)} labels")
        for field, values in (("labels", self.labels), ("text_fields", self.text_fields)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field} are not distinct: {', '.join(values)}")
        return self


class StrategySpec(_Part):
    """What was trained: canonical `--freeze` text, `--reinit`, and the seed of random draws."""

    name: Text
    reinit: Reinit = "none"
    seed: int = 0

    @property
    def served_as(self) -> str:
        """The name in requests and tables: the study's InitBias+BitFit is "initbias+bitfit"."""
        what, at, layers = self.reinit.partition("@")
        first = {"none": "", "biases": "initbias", "all": "init"}[what]
        return f"{first}{at}{layers}+{self.name}" if first else self.name


class EntryInfo(_Part):
    """One parameter's part: its whole shape, and how many of its values the delta holds."""

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
    """The delta that a run started from: what it is, its version, the SHA-256 of its file."""

    task: Name
    strategy: Text
    version: str
    digest: str
    with_head: bool


class DataSetRef(_Part):
    """Where rows of the user's own came from, if from a data set: which one, and which splits.

    Attributes:
        name: a name on the Hugging Face hub, or that of a folder.
        config: the configuration that was asked for.
        revision: the commit on the hub; None for a folder.
        train_split: what was trained on.
        validation_split: what was judged on; None when rows of the train split were held out.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    train_split: str
    validation_split: str | None = None

    @property
    def spelled(self) -> str:
        """As `--dataset` takes it."""
        config = f":{self.config}" if self.config else ""
        return f"{self.name}{config}" + (f"@{self.revision}" if self.revision else "")


class TrainingFacts(_Part):
    """Enough to repeat the run: data, hyper-parameters, software, cost.

    What has a default came later than the format, so that older files can still be read.
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
    dropout: float = 0.0
    warmup: float | None = None
    decay: str | None = None
    weight_decay: float | None = None
    accumulate: int = 1
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
    """How well one label is answered on a split; `rows` have it."""

    rows: int
    precision: float
    recall: float
    f1: float


class SplitMetrics(_Part):
    """Metrics on one split; `note` says what a reader must know about its rows.

    `by_label` is filled for tasks of the user's own that have labels.
    """

    rows: int
    values: dict[str, float]
    note: str = ""
    by_label: dict[str, LabelMetrics] = Field(default_factory=dict)


class Manifest(_Part):
    """The whole document. `metrics` has "selection" and the task's validation splits as keys."""

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
        """(task, strategy): the name under which the delta is served."""
        return self.task.name, self.strategy.served_as

    @property
    def trained_share(self) -> float:
        """Trained parameters over all parameters, head included."""
        return self.trainable_parameters / self.total_parameters

    @property
    def validation_split(self) -> str | None:
        """The split whose primary metric stands for the delta: the first that isn't "selection"."""
        return next((split for split in self.metrics if split != "selection"), None)
