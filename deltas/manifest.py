"""The manifest: everything that a delta file says about itself, as one frozen JSON document.

The manifest is stored in the header of the `.safetensors` file (see `deltas.format`). It suffices
to refuse a wrong backbone, to serve the task, to show its benchmark row and to repeat the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from deltas.errors import BackboneError

FORMAT_VERSION = 1
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,127}$"

TaskKind = Literal["single_label", "multi_label", "regression"]
Pooling = Literal["cls", "mean", "layers"]
PairEncoding = Literal["joint", "separate"]
Confidence = Literal["probability", "max_logit"]
# "biases@0-3" re-initialises the biases of the layers 0 to 3 only.
REINIT_PATTERN = r"^(none|(biases|all)(@[0-9]{1,4}(-[0-9]{1,4})?)?)$"
Reinit = Annotated[str, Field(pattern=REINIT_PATTERN)]
# No spaces, quotes, angle brackets or backticks: the name stands in URLs, tables and cards.
STRATEGY_PATTERN = r"^[A-Za-z0-9][!#-&(-;=?-_a-~]{0,255}$"
StrategyName = Annotated[str, Field(pattern=STRATEGY_PATTERN)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1, max_length=256)]
Prose = Annotated[str, Field(max_length=1000)]
Length = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(gt=0)]


# The fields of `EncoderConfig` and their names in a backbone's `config.json`.
STOCK_NAMES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class EncoderConfig:
    """The sizes and settings by which a BERT encoder computes with its weights.

    The bounds are far above every published BERT: without them, a wrong number builds a network for
    minutes before anything is compared with the weights.
    """

    num_layers: Annotated[int, Field(strict=True, ge=1, le=128)]
    hidden_size: Annotated[int, Field(strict=True, ge=1, le=2**15)]
    num_heads: Annotated[int, Field(strict=True, ge=1, le=2**10)]
    intermediate_size: Annotated[int, Field(strict=True, ge=1, le=2**17)]
    vocab_size: Annotated[int, Field(strict=True, ge=1, le=2**24)]
    max_positions: Annotated[int, Field(strict=True, ge=4, le=2**20)]
    num_token_types: Annotated[int, Field(strict=True, ge=1, le=2**10)] = 2
    layer_norm_eps: Annotated[float, Field(strict=True, gt=0, le=0.1)] = 1e-12
    activation: Literal["gelu", "gelu_new", "gelu_pytorch_tanh"] = "gelu"

    @model_validator(mode="after")
    def _heads_divide_width(self) -> EncoderConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"{self.num_heads} heads don't divide a width of {self.hidden_size}")
        return self

    @classmethod
    def from_transformers(cls, config: Any) -> EncoderConfig:
        """Read a `transformers.BertConfig`, or any object with its fields.

        Raises:
            BackboneError: the encoder does not support this variant of BERT, or a value is out of
                range.
        """
        positions = getattr(config, "position_embedding_type", "absolute") or "absolute"
        if positions != "absolute":
            raise BackboneError(f"has {positions!r} positions; 'absolute' ones are supported")
        if any(getattr(config, name, False) for name in ("is_decoder", "add_cross_attention")):
            raise BackboneError("is a decoder; encoders are supported")
        try:
            return cls(**{ours: getattr(config, theirs) for ours, theirs in STOCK_NAMES.items()})
        except ValidationError as error:
            raise BackboneError(f"config.json: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    """Return the first problem of an encoder's settings, under the name in `config.json`."""
    problem = error.errors()[0]
    wanted = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if not problem["loc"]:
        return wanted
    return f"{STOCK_NAMES[str(problem['loc'][0])]} is {ascii(problem['input'])[:60]}, {wanted}"


class BackboneRef(_Part):
    """The encoder and tokenizer that a delta belongs to.

    `fingerprint` covers the weights, `config` how the encoder computes with them, the tokenizer's
    fingerprint its vocabulary and usual texts, and `tokenizer_settings` unusual texts. Both fields
    that may be None were added later, and no version covers them.
    """

    id: str
    revision: str | None = None
    fingerprint: str
    tokenizer_fingerprint: str
    config: EncoderConfig | None = Field(None, exclude_if=lambda value: value is None)
    tokenizer_settings: str | None = Field(None, exclude_if=lambda value: value is None)


class TaskSpec(_Part):
    """The text fields of a task's rows, how the encoder reads them, and the meaning of its outputs.

    `pooling` is the vector that the head reads: the first token's, through the trained pooler
    ("cls", Devlin et al. 2018), the mean of all tokens of the last layer ("mean", Reimers and
    Gurevych 2019, arXiv:1908.10084), or these means of the embeddings and of all layers, side by
    side ("layers", decision 0144). `pairs` says whether the two texts of a row are read in one
    sequence ("joint", a cross-encoder) or each in a sequence of its own ("separate", a bi-encoder);
    then the head reads [u, v, |u - v|, u * v] of the two vectors u and v, scaled to length 1.

    Defaults were added later and aren't written, so older manifests keep their text and version.
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

    def head_width(self, encoder: EncoderConfig) -> int:
        """Return the head's input width, I."""
        vectors = encoder.num_layers + 1 if self.pooling == "layers" else 1
        return (4 if self.pairs == "separate" else vectors) * encoder.hidden_size

    @model_validator(mode="after")
    def _labels_fit_kind(self) -> TaskSpec:
        fewest = {"single_label": 2, "multi_label": 1, "regression": 0}[self.kind]
        if len(self.labels) < fewest or (self.kind == "regression" and self.labels):
            raise ValueError(f"a {self.kind} task can't have {len(self.labels)} labels")
        if self.pairs == "separate" and (len(self.text_fields) == 1 or self.pooling == "layers"):
            raise ValueError("only pairs of texts with pooling cls or mean can be read separately")
        for field, values in (("labels", self.labels), ("text_fields", self.text_fields)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field} are not distinct: {', '.join(values)}")
        return self


class TaskExample(_Part):
    """A row that shows what a task is about, and the answer that its author expects."""

    texts: Annotated[tuple[Prose, ...], Field(min_length=1, max_length=2)]
    answer: Prose = ""


class TaskAbout(_Part):
    """The words of a task's author about it, for people."""

    description: Prose = ""
    question: Prose = ""
    examples: Annotated[tuple[TaskExample, ...], Field(max_length=50)] = ()


class StrategySpec(_Part):
    """The trained parameters: canonical `--freeze` text, `--reinit`, and the seed of the draws."""

    name: StrategyName
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
    strategy: StrategyName
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


class _Curve(_Part):
    step: tuple[Annotated[int, Field(ge=0)], ...]
    loss: tuple[float, ...]

    @model_validator(mode="after")
    def _columns_are_equally_long(self) -> _Curve:
        lengths = {name: len(values) for name, values in dict(self).items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the columns of a curve differ in length: {lengths}")
        if any(later <= earlier for earlier, later in pairwise(self.step)):
            raise ValueError(f"the steps of a curve don't rise: {self.step}")
        return self


class TrainingCurve(_Curve):
    """Loss and learning rate of the train rows by step.

    A loss is the mean over all steps since the point before. The learning rate is that of the
    backbone's values at the point's step; the head's rises and falls in proportion.
    """

    learning_rate: tuple[float, ...]


class SelectionCurve(_Curve):
    """Loss and primary metric of the selection rows by step; step 0 is the starting head."""

    metric: tuple[float, ...]


class RunHistory(_Part):
    """The history of a run; each curve has a bounded number of points."""

    train: TrainingCurve
    selection: SelectionCurve


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
    target: str | None = Field(None, exclude_if=lambda value: value is None)
    coverage: float | None = Field(None, exclude_if=lambda value: value is None)
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
    history: RunHistory | None = Field(None, exclude_if=lambda value: value is None)


class Calibration(_Part):
    """The scale and shift of each output that turned the trained head into a calibrated one.

    Calibrated logits are the trained ones times scale plus shift. The head in the file includes
    both, so no reader applies them again. A single-label task has one scale, 1 / temperature (Guo
    et al. 2017, arXiv:1706.04599); a multi-label task has a scale and a shift for each label (Platt
    1999).
    """

    scale: Annotated[tuple[Scale, ...], Field(min_length=1)]
    shift: tuple[float, ...] = ()


class DecisionRule(_Part):
    """The rule by which the scores of a row become a decision, on which a program can act.

    Multi label: a label is given if its probability reaches its threshold. Single label: the most
    probable label is given if the row's confidence reaches `limit`; else there is no answer.
    """

    thresholds: tuple[Share, ...] = ()  # in the order of the labels; () is one half for each
    confidence: Confidence = "probability"  # the unit of `limit`
    limit: float | None = None  # None always answers

    def confidence_of(self, logits: Sequence[float]) -> float:
        """Return a row's confidence from its logits.

        "max_logit" is the largest logit (Hendrycks et al. 2022, arXiv:1911.11132). It finds rows
        that belong to no label better than the largest probability, which any row can reach.
        """
        most = max(logits)
        if self.confidence == "max_logit":
            return most
        return 1 / sum(math.exp(logit - most) for logit in logits)

    def answers(self, logits: Sequence[float]) -> bool:
        """Tell whether a row of a single-label task gets an answer."""
        return self.limit is None or self.confidence_of(logits) >= self.limit


class LabelMetrics(_Part):
    """Scores of one label on a split; `rows` counts the rows with that label."""

    rows: int
    precision: float
    recall: float
    f1: float


class Reliability(_Part):
    """The distance of a split's stated probabilities from the shares that were right.

    `error` is the expected calibration error (Guo et al. 2017, arXiv:1706.04599): the mean distance
    between probability and share over bins of equal width, weighted by their counts. A single-label
    row counts once, by the probability of its most probable label. In a multi-label task each label
    has an error of its own, and `error` is their mean; the bins hold all labels together.
    `error_before` is that of the head before it was calibrated. `probability` and `share` are the
    means of each bin, 0 in an empty one.
    """

    error: Share
    error_before: Share
    counts: tuple[int, ...]
    probability: tuple[Share, ...]
    share: tuple[Share, ...]


class SplitMetrics(_Part):
    """Metrics on one split; `note` warns readers about its rows.

    `by_label` is filled for custom tasks with labels. Fields with an `exclude_if` came later.
    """

    rows: int
    values: dict[str, float]
    note: str = ""
    by_label: dict[str, LabelMetrics] = Field(default_factory=dict)
    reliability: Reliability | None = Field(None, exclude_if=lambda value: value is None)


class Manifest(_Part):
    """The whole document; `metrics` has "selection" and the task's validation splits as keys."""

    format_version: Literal[1] = 1
    backbone: BackboneRef
    task: TaskSpec
    about: TaskAbout | None = Field(None, exclude_if=lambda value: value is None)
    strategy: StrategySpec
    entries: tuple[EntryInfo, ...]
    trainable_parameters: Count
    total_parameters: Count
    calibration: Calibration | None = Field(None, exclude_if=lambda value: value is None)
    decision: DecisionRule | None = Field(None, exclude_if=lambda value: value is None)
    training: TrainingFacts
    primary_metric: str
    metrics: dict[str, SplitMetrics]

    @model_validator(mode="after")
    def _decision_fits_task(self) -> Manifest:
        kind, outputs = self.task.kind, self.task.num_outputs
        if self.calibration is not None:
            scales, shifts = len(self.calibration.scale), len(self.calibration.shift)
            fitting = {"single_label": (1, 0), "multi_label": (outputs, outputs)}.get(kind)
            if (scales, shifts) != fitting:
                raise ValueError(f"a {kind} task can't have {scales} scales and {shifts} shifts")
        if self.decision is not None:
            thresholds = len(self.decision.thresholds)
            if thresholds not in ((0, outputs) if kind == "multi_label" else (0,)):
                raise ValueError(f"{thresholds} thresholds don't fit {outputs} {kind} outputs")
            if self.decision.limit is not None and kind != "single_label":
                raise ValueError(f"a {kind} task can't have a limit of its confidence")
        return self

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
