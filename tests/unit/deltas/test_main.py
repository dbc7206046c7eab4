"""`python -m deltas`: its output, its refusals and its exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deltas import Backbone, TaskSpec, delta_path, read_delta, write_delta
from deltas.__main__ import main
from tests.process_state import largest_file


@pytest.fixture
def delta_file(tiny_deltas: Path, tiny_backbone: Backbone) -> Path:
    return delta_path(tiny_deltas, tiny_backbone.ref.id, "toy3", "bitfit")


def test_list_names_every_delta(tiny_deltas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(tiny_deltas)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(tiny_deltas.rglob("*.safetensors")))
    assert any(line.startswith("toymulti   random:0.05") for line in lines)


def test_list_as_json(tiny_deltas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json", str(tiny_deltas)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (row,) = [row for row in rows if (row["task"], row["strategy"]) == ("toyreg", "head")]
    assert row["metric"] == "pearson"
    assert row["value"] == 0.25
    assert row["bytes"] == Path(row["file"]).stat().st_size


def test_list_reports_what_it_refuses(
    tiny_deltas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_deltas, tmp_path / "all")
    (tmp_path / "all" / "torn.safetensors").write_bytes(b"\x80\x04pickle")
    assert main(["list", str(tmp_path / "all")]) == 1
    captured = capsys.readouterr()
    assert "torn.safetensors: not a readable safetensors file" in captured.err
    assert len(captured.out.splitlines()) == 25


def test_show(delta_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(delta_file)]) == 0
    shown = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert shown["labels"].strip() == "yes, maybe, no"
    assert "fields premise, hypothesis; at most 40 tokens" in shown["task"]
    assert read_delta(delta_file).version in shown["version"]


def test_show_as_json_is_the_manifest(delta_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--json", str(delta_file)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        read_delta(delta_file).manifest.model_dump_json()
    )


def test_verify(
    tiny_deltas: Path, tiny_backbone_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_deltas, tmp_path / "all")
    arguments = ["verify", str(tmp_path / "all"), "--backbone", str(tiny_backbone_dir)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("ok ") == 25
    victim = next((tmp_path / "all").rglob("top-1.safetensors"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    assert main(arguments) == 1
    output = capsys.readouterr().out
    assert output.count("ok ") == 24
    assert "WRONG" in output
    assert "the file is damaged" in output


def test_verify_refuses_another_backbone(
    delta_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(delta_file)]) == 1
    output = capsys.readouterr().out
    assert "backbone fingerprint does not match" in output
    assert "tiny-bert" in output
    assert "all-MiniLM-L6-v2" in output


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_attention_heads": 2}, "WRONG.*num_attention_heads .* has 2, .* trained on 3"),
        ({"hidden_act": "gelu_new"}, "WRONG.*hidden_act .* has gelu_new, .* trained on gelu"),
        ({"layer_norm_eps": 0.01}, "WRONG.*layer_norm_eps .* has 0.01, .* trained on 1e-12"),
        ({"layer_norm_eps": float("nan")}, "^error: .*layer_norm_eps is nan, must be a finite"),
        ({"num_hidden_layers": 10**9}, "^error: .*num_hidden_layers is 1000000000, must be less"),
    ],
)
def test_verify_notices_another_configuration_of_the_same_weights(
    delta_file: Path,
    tiny_backbone_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    complaint: str,
) -> None:
    folder = Path(shutil.copytree(tiny_backbone_dir, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    assert main(["verify", str(delta_file), "--backbone", str(folder)]) == 1
    assert re.search(complaint, "".join(capsys.readouterr()), re.DOTALL)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["show", "nowhere.safetensors"], "no such file"),
        (["show", "weights.bin"], "ends in .safetensors"),
        (["list", "nowhere"], "nowhere is not a folder"),
        (["verify", "."], "no delta files below ."),
        (["cards", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_complaints(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert complaint in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(
    delta_file: Path, tiny_backbone_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "folder")
    assert main(["export", str(delta_file), folder, "--backbone", str(tiny_backbone_dir)]) == 1
    assert folder in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_made_folder(
    delta_file: Path, tiny_backbone_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "exported"
    arguments = ["export", str(delta_file), str(folder), "--backbone", str(tiny_backbone_dir)]
    with largest_file(20_000):
        assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: can't write {folder}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_card_that_cannot_be_written_is_named(
    delta_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(delta_file, tmp_path)
    with largest_file(100):
        assert main(["cards", str(tmp_path)]) == 1
    card = tmp_path / f"{delta_file.stem}.md"
    assert capsys.readouterr().err == f"error: {card}: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == [delta_file.name]


def test_an_exported_folder_can_be_read_by_others(
    delta_file: Path, tiny_backbone_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "exported"
    folder.mkdir(parents=True)  # an empty folder is filled
    before = os.umask(0o022)
    try:
        arguments = ["export", str(delta_file), str(folder), "--backbone", str(tiny_backbone_dir)]
        assert main(arguments) == 0
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "config.json").is_file()
    assert list(folder.parent.iterdir()) == [folder]


def test_ctrl_c_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("deltas.__main__._list", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_misuse_exits_with_2() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["prune"])
    assert stop.value.code == 2


@pytest.mark.parametrize("task", ["toy3", "toyreg", "toymulti"])
def test_export_loads_in_stock_transformers(
    task: str, tiny_deltas: Path, tiny_backbone: Backbone, tiny_backbone_dir: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = delta_path(tiny_deltas, tiny_backbone.ref.id, task, "random:0.05")
    folder = tmp_path / "exported"
    assert main(["export", str(path), str(folder), "--backbone", str(tiny_backbone_dir)]) == 0
    network: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    delta = read_delta(path)
    labels = delta.manifest.task.labels or ("score",)
    assert tuple(network.config.id2label[number] for number in range(len(labels))) == labels
    assert network.config.label2id == {label: number for number, label in enumerate(labels)}
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == delta.manifest.task.max_length
    assert max(tokenizer("good", "bad")["token_type_ids"]) == 1
    parameters = dict(network.named_parameters())
    for name, frozen in tiny_backbone.parameters.items():
        entry = delta.entries.get(name)
        expected = frozen if entry is None else entry.resolve(frozen)
        assert torch.equal(parameters[name], expected), name
    assert torch.equal(network.classifier.weight, delta.head_weight)


def test_export_refuses_a_full_folder(
    delta_file: Path, tiny_backbone_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    arguments = ["export", str(delta_file), str(tmp_path), "--backbone", str(tiny_backbone_dir)]
    assert main(arguments) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_tokenizer_of_the_backbone_is_not_changed_by_export(
    delta_file: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    from deltas.publish.export import export_folder

    before = tiny_backbone.tokenizer.model_max_length
    export_folder(read_delta(delta_file), tiny_backbone, tmp_path / "out")
    assert tiny_backbone.tokenizer.model_max_length == before


def test_written_delta_has_no_trace_of_a_temporary_file(delta_file: Path, tmp_path: Path) -> None:
    write_delta(read_delta(delta_file), tmp_path / "copy.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["copy.safetensors"]


def test_files_that_macos_leaves_are_no_deltas(
    tiny_deltas: Path, tiny_backbone_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_deltas, tmp_path / "all")
    for path in list((tmp_path / "all").rglob("*.safetensors")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert main(["verify", str(tmp_path / "all"), "--backbone", str(tiny_backbone_dir)]) == 0
    assert main(["cards", str(tmp_path / "all")]) == 0
    assert "._" not in capsys.readouterr().out
    assert not list((tmp_path / "all").rglob("._*.md"))


def test_a_tilde_is_the_home_folder(
    tiny_deltas: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tiny_deltas.parent))
    assert main(["list", f"~/{tiny_deltas.name}"]) == 0
    assert capsys.readouterr().out


def test_labels_that_the_output_can_not_encode_are_escaped(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any, tmp_path: Path
) -> None:
    spec = toy_tasks["toy3"].model_copy(update={"labels": ("cafe\u0301", "\u4e2d", "no")})
    path = tmp_path / "a.safetensors"
    write_delta(make_delta(tiny_backbone, spec, "bitfit"), path)
    for flags, shown in (([], b"cafe\\u0301, \\u4e2d, no"), (["--json"], b'"cafe\\u0301"')):
        done = subprocess.run(
            [sys.executable, "-m", "deltas", "show", str(path), *flags],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert shown in done.stdout
        if flags:
            assert json.loads(done.stdout)["task"]["labels"] == list(spec.labels)
