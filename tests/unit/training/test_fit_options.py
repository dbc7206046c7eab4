"""Options of a run, from the command line to the file that is served."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine.engine import Engine
from deltas import Backbone, Delta, Manifest, Store, read_delta
from deltas.__main__ import main as deltas_main
from training import fit
from training.run import train_delta

FILLERS = ["the", "film", "and", "very", "not", "a"]
Run = Callable[..., Delta]
STILL: dict[str, Any] = {"lr": 1e-30, "head_lr": 1e-30, "epochs": 1}


def write_rows(path: Path, count: int, seed: int, share: float = 0.5) -> Path:
    """Rows that hold `good` or `bad`; `share` of them are good."""
    draw = random.Random(seed)
    lines = ["text,label"]
    for _ in range(count):
        label = "good" if draw.random() < share else "bad"
        words = [*draw.choices(FILLERS, k=draw.randrange(1, 9)), label]
        draw.shuffle(words)
        lines.append(f"{' '.join(words)},{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def words(tiny_backbone_dir: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A function that gives the command line of a small run."""
    rows = write_rows(tmp_path / "train.csv", 90, 1)

    def line(**flags: object) -> list[str]:
        defaults: dict[str, object] = {
            "train_file": rows,
            "validation_file": rows,
            "text_columns": "text",
            "label_column": "label",
            "name": "mine",
            "backbone": tiny_backbone_dir,
            "max_length": 24,
            "epochs": 2,
            "batch_size": 8,
            "precision": "fp32",
            "head_start": "random",  # to solve it takes half of a run's time
            "out": tmp_path / "out",
        }
        given: list[str] = []
        for name, value in (defaults | flags).items():
            given.append(f"--{name.replace('_', '-')}")
            given += [] if value is True else [str(value)]
        return given

    return line


@pytest.fixture
def run(words: Callable[..., list[str]], tmp_path: Path) -> Run:
    """A function that makes a run in a folder of its own and reads what it wrote."""

    def made(**flags: object) -> Delta:
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        assert fit.main(words(**{"out": out} | flags)) == 0
        (path,) = out.rglob("*.safetensors")
        return read_delta(path)

    return made


def values_of(delta: Delta) -> torch.Tensor:
    """All values that it holds, in one vector."""
    parts = [entry.values.view(-1) for entry in delta.entries.values()]
    return torch.cat([*parts, delta.head_weight.view(-1), delta.head_bias])


def only_delta(out: Path) -> Delta:
    """The only delta below a folder."""
    (path,) = out.rglob("*.safetensors")
    return read_delta(path)


def assert_as_far(first: Delta, second: Delta, start: Delta) -> None:
    """Both came to the same place: Adam blows up the last bits of gradients that are almost 0."""
    ends, begun = [values_of(first), values_of(second)], values_of(start)
    assert float((ends[0] - ends[1]).norm()) < 0.01 * float((ends[1] - begun).norm())


@pytest.mark.parametrize(
    "freeze",
    [
        "rows:0.02",
        "fisher:0.02",
        "gem:0.02",
        "magnitude:0.02",
        "bitfit@1",
        "random:0.05@0+layernorm@1",
        "top:1",
    ],
)
def test_the_delta_of_each_strategy_is_verified_and_served(
    words: Callable[..., list[str]],
    tmp_path: Path,
    tiny_backbone: Backbone,
    tiny_backbone_dir: Path,
    freeze: str,
) -> None:
    assert fit.main(words(freeze=freeze)) == 0
    assert deltas_main(["verify", str(tmp_path / "out"), "--backbone", str(tiny_backbone_dir)]) == 0
    store = Store([tmp_path / "out"], backbone=tiny_backbone.ref)
    record = store.resolve("mine", freeze)
    engine = Engine(tiny_backbone, store, device="cpu", precision="fp32")
    lines = (tmp_path / "train.csv").read_text().splitlines()[1:]
    texts = [(line.split(",")[0],) for line in lines]
    logits = engine.predict(engine.tokenize(record, texts))
    labels = record.manifest.task.labels
    right = [
        labels[int(torch.tensor(answer).argmax())] == line.split(",")[1]
        for answer, line in zip(logits, lines, strict=True)
    ]
    accuracy = record.manifest.metrics["validation"].values["accuracy"]
    assert sum(right) / len(right) == pytest.approx(accuracy)


def test_small_batches_accumulate_to_a_large_one(run: Run) -> None:
    large = run(batch_size=24, dropout=0.0)
    small = run(batch_size=8, accumulate=3)
    assert small.manifest.training.accumulate == 3
    assert small.manifest.training.steps == large.manifest.training.steps
    assert_as_far(small, large, run(batch_size=24, **STILL))


def test_patience_ends_a_run(run: Run) -> None:
    """At a rate that can't improve anything, the first state stays the best one."""
    delta = run(epochs=6, evals=12, patience=2, head_start="solved", lr=1e-30, head_lr=1e-30)
    facts = delta.manifest.training
    assert facts.stopped_early
    assert facts.patience == 2
    assert facts.steps == 11  # judged at the start, after 6 and 11: once, and twice no better
    assert not run(epochs=1).manifest.training.stopped_early


def test_a_run_that_stopped_early_stays_so_when_resumed(
    words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, Any] = {"epochs": 6, "lr": 1e-30, "head_lr": 1e-30, "evals": 12}
    flags |= {"patience": 2, "head_start": "solved"}

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_delta, "score_split", killed)
        assert fit.main(words(**flags)) == 130
    assert fit.main(words(**flags, resume=True)) == 0
    (path,) = (tmp_path / "out").rglob("*.safetensors")
    assert read_delta(path).manifest.training.steps == 11


def test_schedules_are_recorded_and_differ(run: Run) -> None:
    found = {}
    for schedule in ("linear", "cosine", "constant"):
        delta = run(schedule=schedule, warmup=0.2)
        assert (delta.manifest.training.decay, delta.manifest.training.warmup) == (schedule, 0.2)
        found[schedule] = values_of(delta)
    assert not torch.equal(found["linear"], found["cosine"])
    assert not torch.equal(found["linear"], found["constant"])


def test_order_of_batches_and_clipping_are_recorded_and_differ(run: Run) -> None:
    plain, mixed, free = run(), run(batch_order="random"), run(clip_norm=0)
    facts = [delta.manifest.training for delta in (plain, mixed, free)]
    assert [(one.batch_order, one.clip_norm) for one in facts] == [
        ("length", 1.0),
        ("random", 1.0),
        ("length", 0.0),
    ]
    # What every earlier run did is not written, so that the text of earlier manifests stays.
    assert not {"batch_order", "clip_norm"} & facts[0].model_dump().keys()
    assert not torch.equal(values_of(plain), values_of(mixed))


def test_balanced_classes_are_weighted_evaluated_and_reported(run: Run, tmp_path: Path) -> None:
    """One row in twelve is good; a head that always answers bad is right in eleven."""
    rows = write_rows(tmp_path / "rare.csv", 240, 3, share=1 / 12)
    flags = {"train_file": rows, "validation_file": rows, "epochs": 1, "head_start": "solved"}
    plain, balanced = run(**flags), run(**flags, class_weights="balanced")
    assert balanced.manifest.training.class_weights == "balanced"
    assert (plain.manifest.primary_metric, balanced.manifest.primary_metric) == (
        "accuracy",
        "macro_f1",
    )
    assert not torch.equal(values_of(plain), values_of(balanced))
    by_label = balanced.manifest.metrics["validation"].by_label
    assert set(by_label) == {"bad", "good"}
    assert sum(label.rows for label in by_label.values()) == 240
    f1 = sum(label.f1 for label in by_label.values()) / 2
    assert f1 == pytest.approx(balanced.manifest.metrics["validation"].values["macro_f1"])


@pytest.mark.gpu
@pytest.mark.parametrize("freeze", ["bitfit", "random:0.02", "head", "full"])
def test_a_run_on_a_gpu_goes_on_bit_for_bit(
    words: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    freeze: str,
) -> None:
    flags = {"freeze": freeze, "device": "cuda", "precision": "auto", "dropout": 0.1}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert fit.main(words(**flags, out=whole)) == 0

    def stopping(step: int, loss: float) -> None:
        if step == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.run.loop.loop._check_finite", stopping)
        assert fit.main(words(**flags, out=resumed)) == 130
    assert fit.main(words(**flags, out=resumed, resume=True)) == 0
    assert only_delta(whole).version == only_delta(resumed).version


def test_evaluations_by_epoch_and_smoothing(run: Run) -> None:
    delta = run(evals_per_epoch=2, label_smoothing=0.1)
    assert delta.manifest.training.label_smoothing == 0.1


def test_starting_from_another_delta(run: Run, tmp_path: Path, tiny_backbone: Backbone) -> None:
    first = run(name="first")
    (path,) = tmp_path.rglob("first/*.safetensors")
    second = run(init_from=path, **STILL)
    facts = second.manifest.training.init_from
    assert facts is not None
    assert (facts.task, facts.strategy, facts.version) == ("first", "bitfit", first.version)
    assert facts.digest.startswith("sha256:")
    for name, entry in first.entries.items():
        assert torch.equal(second.entries[name].values, entry.values)
        assert not torch.equal(entry.values, tiny_backbone.parameters[name])
    assert not torch.equal(second.head_weight, first.head_weight)
    third = run(init_from=path, init_head=True, **STILL)
    assert torch.allclose(head_as_trained(third), head_as_trained(first), rtol=1e-5)
    # The same rows calibrate the same head alike; a prior counted twice would change the scale.
    assert scale_of(third) == pytest.approx(scale_of(first), rel=1e-3)
    assert torch.allclose(third.head_weight, first.head_weight, rtol=1e-3)


def scale_of(delta: Delta) -> float:
    """Return the factor by which calibration multiplied a head with one label a row."""
    assert delta.manifest.calibration is not None
    (scale,) = delta.manifest.calibration.scale
    return scale


def head_as_trained(delta: Delta) -> torch.Tensor:
    """Return the head's weight before it was calibrated."""
    return delta.head_weight / scale_of(delta)


def test_a_start_that_does_not_fit_is_explained(
    run: Run,
    words: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(name="first", freeze="random:0.02")
    (path,) = tmp_path.rglob("first/*.safetensors")
    for flags, message in (
        ({"freeze": "bitfit"}, "is not that of --freeze bitfit --seed 0"),
        ({"freeze": "random:0.02", "seed": 1}, "the same --seed"),
        ({"reinit": "biases"}, "--init-from and --reinit both say"),
    ):
        assert fit.main(words(init_from=path, **flags)) == 2
        assert message in capsys.readouterr().err
    assert fit.main(words(init_from=tmp_path / "none")) == 2
    assert "no such file" in capsys.readouterr().err
    assert fit.main(words(init_head=True)) == 2
    assert "--init-head goes with --init-from" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [{"seed": 1}, {"selection_share": 0.3}, {"seed": 1, "name": "other"}, {"train_rows": 60}],
)
def test_a_start_that_has_learnt_the_selection_rows_is_refused(
    words: Callable[..., list[str]],
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: dict[str, Any],
) -> None:
    """The start has the same task or the same rows, but another split."""
    run(**STILL)
    (path,) = tmp_path.rglob("mine/*.safetensors")
    assert fit.main(words(init_from=path, **STILL, **flags)) == 2
    said = capsys.readouterr().err
    assert f"--init-from {path}: this delta was trained on rows of mine, perhaps" in said
    assert "its run: seed 0, 81 + 9 rows" in said
    assert "the same --seed and --selection-share" in said
    assert not (tmp_path / "out").exists()


def test_a_start_trained_on_the_same_split_is_accepted(run: Run, tmp_path: Path) -> None:
    first = run(**STILL)
    (path,) = tmp_path.rglob("mine/*.safetensors")
    facts = run(init_from=path, **STILL).manifest.training.init_from
    assert facts is not None
    assert (facts.task, facts.version) == ("mine", first.version)


def test_another_backbones_delta_is_refused(
    words: Callable[..., list[str]],
    tiny_backbone: Backbone,
    make_delta: Any,
    toy_tasks: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from deltas import write_delta

    delta = make_delta(tiny_backbone, toy_tasks["toy2"], "bitfit")
    other = delta.manifest.backbone.model_copy(update={"fingerprint": "sha256:" + "0" * 64})
    manifest = Manifest.model_validate(delta.manifest.model_dump() | {"backbone": other})
    write_delta(Delta(manifest, delta.entries, delta.head_weight, delta.head_bias), tmp_path / "d")
    assert fit.main(words(init_from=tmp_path / "d")) == 1
    assert "backbone" in capsys.readouterr().err


def test_a_head_of_other_labels_is_refused(
    run: Run, words: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name="first")
    (path,) = tmp_path.rglob("first/*.safetensors")
    rows = tmp_path / "three.csv"
    rows.write_text("text,label\n" + "".join(f"the film {n},{'xyz'[n % 3]}\n" for n in range(60)))
    flags = {"train_file": rows, "validation_file": rows, "init_from": path, "init_head": True}
    assert fit.main(words(**flags)) == 2
    assert "first is single_label with 2 labels, mine is single_label with 3" in (
        capsys.readouterr().err
    )


def test_single_layers_can_be_reinitialised(run: Run, tiny_backbone: Backbone) -> None:
    delta = run(reinit="biases@1", freeze="head", lr=1e-30)
    assert delta.manifest.strategy.served_as == "initbias@1+head"
    assert delta.entries
    for name, entry in delta.entries.items():
        assert ".layer.1." in name
        assert name.endswith(".bias")
        assert not bool(entry.values.any())


def test_reinit_of_layers_that_are_not_there(
    words: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit.main(words(reinit="biases@0-9")) == 2
    assert "the backbone has layers 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["class_weights", "label_smoothing"])
def test_regression_has_no_labels_to_weigh(
    words: Callable[..., list[str]], tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "numbers.csv"
    rows.write_text("text,label\n" + "".join(f"the film {n},{n / 7}\n" for n in range(40)))
    value = {"class_weights": "balanced", "label_smoothing": 0.1}[flag]
    assert fit.main(words(train_file=rows, validation_file=rows, **{flag: value})) == 2
    assert "is a regression, which has no labels" in capsys.readouterr().err


def test_the_words_about_a_task_reach_the_server(
    run: Run, words: Callable[..., list[str]], tmp_path: Path
) -> None:
    plain = run(**STILL)
    line = words(out=tmp_path / "told", question="Is it good?", **STILL)
    line += ["--example", "a good film => good", "--example", "a film"]
    assert fit.main(line) == 0
    told = only_delta(tmp_path / "told")
    assert plain.manifest.about is None
    assert "about" not in plain.manifest.model_dump()
    assert told.manifest.about is not None
    assert told.manifest.about.question == "Is it good?"
    assert [item.texts for item in told.manifest.about.examples] == [("a good film",), ("a film",)]
    assert told.version == plain.version, "words change no answer"
