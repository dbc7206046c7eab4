"""Runs stopped in any way, at any moment, go on to the very delta they would have made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltas import Delta, read_delta
from training import fit
from training.run import distributed, train_delta
from training.run.loop.loop import Progress

ROWS = 90
STEPS = 22  # 81 rows in batches of 8, twice
EVALUATIONS = (6, 11, 17, 22)
# Changes of a backbone that leave its weights as they are: the file, a text in it, and another one.
BACKBONE_CHANGES = {
    "tokenizer": ("tokenizer.json", "[unused0]", "[unused9]"),
    "longest word": (
        "tokenizer.json",
        '"max_input_chars_per_word": 100',
        '"max_input_chars_per_word": 60',
    ),
    "heads": ("config.json", '"num_attention_heads": 3', '"num_attention_heads": 2'),
    "activation": ("config.json", '"hidden_act": "gelu"', '"hidden_act": "gelu_new"'),
    "epsilon": ("config.json", '"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-05'),
}


SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of a task of the user's own."""
    path = tmp_path_factory.mktemp("own") / "rows.csv"
    words = ["the film", "very", "not a", "b c d"]
    lines = [
        f"{words[n % 4]} {('bad', 'good')[n * 7 % 3 % 2]} {n},{('x', 'y')[n * 7 % 3 % 2]}"
        for n in range(ROWS)
    ]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def words(rows: Path, tiny_backbone_dir: Path, tmp_path: Path) -> list[str]:
    """The command line of one run. Its head starts at random, which takes half of the time."""
    flags: dict[str, object] = {
        "train-file": rows,
        "validation-file": rows,
        "text-columns": "text",
        "label-column": "label",
        "name": "mine",
        "backbone": tiny_backbone_dir,
        "freeze": "random:0.02+layernorm",
        "max-length": 24,
        "epochs": 2,
        "batch-size": 8,
        "dropout": 0.1,
        "head-start": "random",
        "out": tmp_path / "out",
    }
    return [str(part) for name, value in flags.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def uninterrupted(
    rows: Path, tiny_backbone_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[str]], Delta]:
    """A function that gives what a run makes when nothing stops it; each run is made once."""
    made: dict[str, Delta] = {}

    def delta(words: list[str]) -> Delta:
        given = list(words)
        given[given.index("--out") + 1] = str(tmp_path_factory.mktemp("whole"))
        key = " ".join(part for part in given if not part.startswith("/"))
        if key not in made:
            assert fit.main(given) == 0
            (path,) = Path(given[given.index("--out") + 1]).rglob("*.safetensors")
            made[key] = read_delta(path)
        return made[key]

    return delta


def result(words: list[str]) -> Delta:
    """The only delta below --out, with its predictions; nothing else is left there."""
    files = sorted(path for path in out_of(words).rglob("*") if path.is_file())
    assert [path.suffix for path in files] == [".parquet", ".safetensors"], files
    return read_delta(files[-1])


def out_of(words: list[str]) -> Path:
    return Path(words[words.index("--out") + 1])


def states(words: list[str]) -> list[Path]:
    return list(out_of(words).rglob(".*.state.safetensors"))


def assert_same(first: Delta, second: Delta) -> None:
    """Bit for bit."""
    assert first.version == second.version
    assert torch.equal(first.head_weight, second.head_weight)
    for name, entry in second.entries.items():
        assert torch.equal(first.entries[name].values, entry.values)
    assert first.manifest.metrics == second.manifest.metrics
    assert first.manifest.training.history == second.manifest.training.history is not None


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next run see Ctrl-C right after a step."""

    @contextmanager
    def bar(*_: object) -> Iterator[Callable[[Progress], None]]:
        def report(progress: Progress) -> None:
            if progress.step == step:
                raise KeyboardInterrupt

        yield report

    monkeypatch.setattr(train_delta, "progress_bar", bar)


@pytest.mark.parametrize("step", [1, 6, 7, 21, 22])
def test_resumed_equals_uninterrupted(
    words: list[str],
    uninterrupted: Callable[[list[str]], Delta],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
) -> None:
    """Before the first evaluation, on one, right after one, on the last step."""
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        assert fit.main(words) == 130
    assert "stopped; to continue from the last evaluation" in capsys.readouterr().err
    assert bool(states(words)) == (step > EVALUATIONS[0])
    assert fit.main([*words, "--resume"]) == 0
    assert_same(result(words), uninterrupted(words))


def test_features_of_a_frozen_backbone_are_the_same_after_a_resume(
    words: list[str], uninterrupted: Callable[[list[str]], Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are kept, and a row's last bits depend on the batch that it is computed in."""
    words += ["--freeze", "head", "--batch-size", "2", "--epochs", "3", "--precision", "fp32"]
    with monkeypatch.context() as patch:
        stop_at(60, patch)
        assert fit.main(words) == 130
    assert fit.main([*words, "--resume"]) == 0
    assert_same(result(words), uninterrupted(words))


def test_stopped_again_and_again(
    words: list[str], uninterrupted: Callable[[list[str]], Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head that a run starts from is solved, as is the rule."""
    words += ["--head-start", "solved"]
    for step in (8, 13, 20):
        with monkeypatch.context() as patch:
            stop_at(step, patch)
            assert fit.main([*words, "--resume"]) == 130
    assert fit.main([*words, "--resume"]) == 0
    assert_same(result(words), uninterrupted(words))


def test_without_resume_it_starts_anew(
    words: list[str], uninterrupted: Callable[[list[str]], Delta], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old state is removed, so that it can't be taken up later either."""
    with monkeypatch.context() as patch:
        stop_at(12, patch)
        assert fit.main(words) == 130
        stop_at(1, patch)
        assert fit.main(words) == 130
    assert states(words) == []
    assert fit.main(words) == 0
    assert_same(result(words), uninterrupted(words))


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--seed", "1"), ("--epochs", "3"), ("--batch-size", "9"), ("--freeze", "bitfit")],
)
def test_another_runs_state_is_never_continued(
    words: list[str],
    uninterrupted: Callable[[list[str]], Delta],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    value: str,
) -> None:
    with monkeypatch.context() as patch:
        stop_at(12, patch)
        assert fit.main(words) == 130
    (left,) = states(words)
    other = [*words, flag, value]
    capsys.readouterr()
    assert fit.main([*other, "--resume"]) == 0
    said = capsys.readouterr().err
    assert "note: --resume: no state of this run in" in said
    # A state of another strategy may be that of a run that is on its way.
    assert (f"note: {left} (" in said) is (flag != "--freeze")
    left.unlink()
    assert_same(result(other), uninterrupted(other))


@pytest.mark.parametrize(
    "change",
    [
        *("torch", "processes", "tokenizer", "heads", "pooling"),
        *(pytest.param(name, marks=SLOW) for name in ("longest word", "activation", "epsilon")),
    ],
)
def test_an_option_that_changes_the_rest_of_a_run_makes_another_run(
    words: list[str],
    tiny_backbone_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    """Rounding, masks of dropout, tokens or the encoder would be others after the resume."""
    folder = own_backbone(words, tiny_backbone_dir, tmp_path)
    with monkeypatch.context() as patch:
        stop_at(7, patch)
        assert fit.main(words) == 130
    capsys.readouterr()
    if change == "torch":
        monkeypatch.setattr(train_delta, "_versions", lambda: {"torch": "1.0"})
    elif change == "processes":
        monkeypatch.setattr(distributed, "count", lambda: 2)
    elif change == "pooling":
        module = {"type": "sentence_transformers.models.Pooling", "path": "pooling"}
        (folder / "modules.json").write_text(json.dumps([module]))
        (folder / "pooling").mkdir()
        (folder / "pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    else:
        name, old, new = BACKBONE_CHANGES[change]
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    stop_at(1, monkeypatch)
    assert fit.main([*words, "--resume"]) == 130
    assert "--resume: no state of this run" in told(capsys)


def test_a_run_that_goes_on_has_nothing_to_tell(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(7, monkeypatch)
    assert fit.main(words) == 130
    stop_at(8, monkeypatch)
    assert fit.main([*words, "--resume"]) == 130
    assert told(capsys) == ""


def own_backbone(words: list[str], tiny_backbone_dir: Path, tmp_path: Path) -> Path:
    """Have a command use a copy of the backbone, to be changed between two runs."""
    folder = tmp_path / "tiny-bert"
    shutil.copytree(tiny_backbone_dir, folder)
    words[words.index("--backbone") + 1] = str(folder)
    return folder


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The notes on standard error."""
    return "\n".join(line for line in capsys.readouterr().err.split("\n") if "note: " in line)


def test_a_changed_backbone_is_another_run(
    words: list[str], tiny_backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same folder with other weights: values trained over the old ones mean nothing there."""
    folder = own_backbone(words, tiny_backbone_dir, tmp_path)
    with monkeypatch.context() as patch:
        stop_at(12, patch)
        assert fit.main(words) == 130
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] *= 1.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert fit.main([*words, "--resume"]) == 0
    (resumed,) = [read_delta(path) for path in out_of(words).rglob("[!.]*.safetensors")]
    fresh = [*words, "--out", str(tmp_path / "fresh")]
    assert fit.main(fresh) == 0
    (path,) = (tmp_path / "fresh").rglob("*.safetensors")
    assert_same(resumed, read_delta(path))


def test_changed_rows_are_another_run(
    words: list[str], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "rows.csv"
    shutil.copy(rows, mine)
    words[words.index("--train-file") + 1] = str(mine)
    with monkeypatch.context() as patch:
        stop_at(12, patch)
        assert fit.main(words) == 130
    (left,) = states(words)
    lines = mine.read_text().splitlines()
    mine.write_text("\n".join([*lines[:-1], "the end,x"]) + "\n")
    assert fit.main([*words, "--resume"]) == 0
    assert left.exists()  # neither used nor thrown away


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_damaged_state_is_said(
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    with monkeypatch.context() as patch:
        stop_at(12, patch)
        assert fit.main(words) == 130
    (state,) = states(words)
    content = state.read_bytes()
    flipped = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    state.write_bytes({"cut": content[:-5], "empty": b"", "flipped": flipped}[damage])
    capsys.readouterr()
    assert fit.main([*words, "--resume"]) == 2
    error = capsys.readouterr().err
    assert "can't resume from" in error
    assert "delete it to start anew" in error
