"""Defines the options of a training run once: name, type, range, default and help text.

`training.fit` makes its flags from them, `training.study.plan` checks the options of a study with
them. Read `training.run.train_delta` next, which carries them out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from deltas.errors import home_or_name, home_path
from deltas.manifest import REINIT_PATTERN, PairEncoding, Pooling, Prose, TaskKind

Decay = Literal["linear", "cosine", "constant"]
BatchOrder = Literal["length", "random"]

DEFAULT_OUT = Path("runs/deltas")
TARGET_PATTERN = r"f1|precision=(0?\.\d*[1-9]\d*|1(\.0+)?)"
CLIP_NORM = 1.0  # as BERT was trained
# Three to four CPU minutes of bitfit on a CPU that computes in bfloat16 (decision 0097).
_VISITED_TOKENS = 900_000
_VISITED_ROWS = 100_000
_MAX_EPOCHS = 20
_MIN_EVALS = 4
# A head alone needs more epochs, and they cost little: its features are cached (decision 0072).
_HEAD_EPOCHS = 40


def _known_reinit(text: str) -> str:
    if not re.fullmatch(REINIT_PATTERN, text):
        raise ValueError(
            f"give 'none', 'biases' or 'all', or some layers only, like 'biases@0-3'; not {text!r}"
        )
    return text


_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " "}


def one_delimiter(text: str) -> str:
    """Return the separator that a text names: itself, or the character of a name such as "tab".

    Raises:
        ValueError: the text is neither a name nor one character that can separate fields.
    """
    found = _DELIMITERS.get(text.lower(), text)
    if len(found) != 1 or found in '"\r\n':
        raise ValueError(
            f"give one character, or {', '.join(name for name in _DELIMITERS if name.isalpha())}; "
            f"not {text!r}"
        )
    return found


def _known_target(text: str) -> str:
    if not re.fullmatch(TARGET_PATTERN, text):
        raise ValueError(f"give 'f1', or a precision like 'precision=0.95'; not {text!r}")
    return text


# Options of custom tasks: those that are required, and the source of rows that each belongs to.
_NEEDED = ("text_columns", "label_column", "name")
_GOES_WITH = {
    **dict.fromkeys(("validation_file", "delimiter", "quoting"), ("train_file",)),
    **dict.fromkeys(("train_split", "validation_split"), ("dataset",)),
    **dict.fromkeys(
        (*_NEEDED, "kind", "description", "question", "example"), ("train_file", "dataset")
    ),
}


def flag_of(option: str) -> str:
    """Return the flag of an option: "--batch-size" for "batch_size"."""
    return f"--{option.replace('_', '-')}"


def _checked_path(value: object) -> object:
    """Replace ~ before the text becomes a path: an empty one would become the current folder."""
    return home_path(value) if isinstance(value, str | Path) else value


HomePath = Annotated[Path, BeforeValidator(_checked_path)]
PathOrName = Annotated[str, AfterValidator(home_or_name)]


class FitConfig(BaseModel):
    """Options of `python -m training.fit`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    task: str = ""
    """GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli"""
    freeze: str = "bitfit"
    """strategy: what trains besides the head; 'help' lists all; a+b combines two"""
    reinit: Annotated[str, AfterValidator(_known_reinit)] = "none"
    """start from re-initialised values: none, biases (set to 0), all, biases@0-3"""
    init_from: HomePath | None = None
    """start from this delta, of another task or of the same rows and seed; same --freeze"""
    init_head: bool = False
    """with --init-from: start from its head, too (same number of labels)"""
    head_start: Literal["solved", "random"] = "solved"
    """solved: start from the best head on the frozen features; random: a small random one"""
    pooling: Pooling | Literal["auto"] = "auto"
    """the head reads: cls (first token), mean (last layer), layers (all their means) or auto"""
    pairs: PairEncoding | Literal["auto"] = "auto"
    """read two texts jointly, as one sequence, or separately, as two; auto: see the guide"""
    backbone: PathOrName | None = None
    """hub id, id@revision or folder of a BERT (default: packaged MiniLM)"""
    data: PathOrName | None = None
    """hub, sample, or folder of <task>/<split>.parquet (default: $GLUE_DIR, hub)"""
    train_rows: int | None = Field(None, ge=2)
    """train on a sample of this many rows, drawn with --seed"""
    epochs: float | None = Field(None, gt=0, le=1_000_000)
    """passes over the train rows (default: 900,000 tokens, at most 20; a solved head: 0)"""
    lr: float | None = Field(None, gt=0)
    """peak learning rate (default: depends on the strategy)"""
    head_lr: Annotated[float, Field(gt=0)] | Literal["same"] | None = None
    """peak learning rate of the head, or 'same' as --lr (default: 0.001 / RMS of its input)"""
    batch_size: int = Field(32, ge=1)
    """rows in a batch"""
    batch_order: BatchOrder = "length"
    """length: batches of rows of like length, which is faster; random: batches of any rows"""
    warmup: float = Field(0.06, ge=0, le=1)
    """share of the steps in which the learning rate rises"""
    schedule: Decay = "linear"
    """learning rate after the warm-up: linear or cosine to 0, or constant"""
    accumulate: int = Field(1, ge=1)
    """batches in a step; needs less memory than one large batch"""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: rare labels count as much as frequent ones"""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """share of each label that is spread over all labels"""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay"""
    clip_norm: float = Field(CLIP_NORM, ge=0)
    """largest norm of a step's gradient, of overlay and head together; 0 clips nothing"""
    dropout: float = Field(0.0, ge=0, lt=1)
    """dropout probability in the encoder and before the head"""
    selection_share: float = Field(0.1, gt=0, lt=1)
    """share of the train rows held out to select the best state"""
    max_selection_rows: int = Field(2000, ge=1)
    """maximum number of rows to hold out"""
    target: Annotated[str, AfterValidator(_known_target)] | None = None
    """goal of the thresholds: f1 (of each label) or precision=0.95 (default: best micro F1)"""
    coverage: float | None = Field(None, gt=0, le=1)
    """single label: share of rows like the selection rows to answer; others get no answer"""
    evals: int | None = Field(None, ge=1)
    """evaluations on the held-out rows (default: one an epoch, at least 4)"""
    evals_per_epoch: float | None = Field(None, gt=0, le=1_000_000)
    """evaluations in an epoch, instead of --evals; 4: every quarter"""
    patience: int | None = Field(None, ge=1)
    """stop after this many evaluations without an improvement"""
    seed: int = Field(0, ge=0, lt=2**31)
    """seed of selection, head, order of rows and dropout"""
    max_length: int = Field(128, ge=8)
    """tokens in a row; longer rows are cut"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """precision of the frozen computation; deltas stay float32"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto uses CUDA if it is available"""
    train_file: HomePath | None = None
    """custom task: file of train rows, CSV, JSONL or parquet"""
    validation_file: HomePath | None = None
    """file of validation rows (default: a fifth of the train file)"""
    delimiter: Annotated[str, AfterValidator(one_delimiter)] | None = None
    """separator of the files' fields: a character, or tab (default: from header and rows)"""
    quoting: Literal["on", "off"] | None = None
    """off: quotes in the files enclose no fields (default: from the rows)"""
    dataset: Annotated[str, AfterValidator(lambda text: text and home_or_name(text))] | None = None
    """custom task: owner/name[:config][@revision] on the hub, or a folder"""
    train_split: str | None = None
    """split of the data set to train on (default: train)"""
    validation_split: str | None = None
    """split to validate on (default: validation, else a fifth of the other)"""
    text_columns: str | None = None
    """custom task: its one or two text columns, a or a,b (a name with a comma in quotes)"""
    label_column: str | None = None
    """custom task: its label column, or columns of 0 and 1, a,b,c, one for each label"""
    name: str | None = None
    """custom task: its name"""
    kind: TaskKind | None = None
    """custom task: single_label, multi_label or regression (default: from labels)"""
    description: Prose | None = None
    """custom task: what it is about, in a sentence; the page and GET /tasks show it"""
    question: Prose | None = None
    """custom task: the question that its labels answer"""
    example: tuple[Prose, ...] | None = None
    """custom task: "TEXT => LABEL" or "TEXT || TEXT => LABEL" to show; repeat for more"""
    out: HomePath = DEFAULT_OUT
    """folder to write <backbone>/<task>/<strategy>.safetensors into"""
    overwrite: bool = False
    """replace an existing delta"""
    resume: bool = False
    """continue a stopped run with the same options from its last evaluation"""
    dry_run: bool = False
    """print what was read, what would be done and how long it takes; write nothing"""
    json_: bool = Field(False, alias="json")
    """print the summary as JSON; with --dry-run the plan"""

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
                "give either --task for a GLUE task, or --train-file or --dataset for your own rows"
            )
        (source,) = given
        for name, sources in _GOES_WITH.items():
            if getattr(self, name) is not None and source not in sources:
                raise ValueError(f"{flag_of(name)} goes with {' or '.join(map(flag_of, sources))}")
        if source == "task":
            return self
        missing = [flag_of(name) for name in _NEEDED if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{flag_of(source)} needs {', '.join(missing)}")
        if self.data is not None:
            raise ValueError(
                f"--data is the source of GLUE tasks; it does not go with {flag_of(source)}"
            )
        if self.validation_split is not None and self.validation_split == self.train_split_name:
            raise ValueError(
                f"--validation-split {self.validation_split} is the split to train on; name "
                "another split, or leave the option out to hold rows out"
            )
        return self

    @property
    def train_split_name(self) -> str:
        """Name of the data set's split to train on."""
        return self.train_split or "train"


def num_evaluations(config: FitConfig, epochs: float) -> int:
    """Return how often a run of this many epochs is evaluated, if it has as many steps."""
    if config.evals_per_epoch is not None:
        return max(1, round(epochs * config.evals_per_epoch))
    return config.evals or max(_MIN_EVALS, round(epochs))


def default_epochs(rows: int, tokens: int, *, head_only: bool = False) -> float:
    """Return the passes over the train rows if the user names none; `tokens` are those of all rows.

    `head_only` means that only a head trains, on cached features.
    """
    if head_only:
        return float(_HEAD_EPOCHS)
    most = min(_VISITED_TOKENS / tokens, _VISITED_ROWS / rows)
    return min(float(_MAX_EPOCHS), round(most, 3))


def shared_fields(source: Any, target: Any) -> dict[str, Any]:
    """Return the attributes of `source` that are fields of `target`, a model or dataclass."""
    names = getattr(target, "model_fields", None) or target.__dataclass_fields__
    return {name: getattr(source, name) for name in names if hasattr(source, name)}
