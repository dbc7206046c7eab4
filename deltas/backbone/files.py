"""Reads a backbone's JSON files from a folder or the hub, and names the file that is wrong.

`transformers` reads the same files, but its errors rarely name the file or the value.
`deltas.backbone.backbone` loads the network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors import SafetensorError, safe_open

from deltas.backbone.layout import EncoderConfig
from deltas.errors import BackboneError, one_line
from deltas.manifest import STOCK_NAMES, Pooling

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_TOKENIZER_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_MODULES_FILE, _POOLING_MODULE, _POOLING_SETTINGS = "modules.json", "Pooling", "config.json"
_POINTER = b"version https://git-lfs"
_MAX_REASON = 300
_FLOATS = ("F16", "BF16", "F32", "F64")


def read_encoder_config(
    source: str, name: str, revision: str | None, *, cache_only: bool = False
) -> EncoderConfig:
    """Read and check the sizes and settings in a backbone's `config.json`.

    Args:
        source: a folder, or a name on the Hugging Face hub.
        name: the backbone's name in messages.
        revision: commit on the hub.
        cache_only: whether to read the hub's local cache only.

    Raises:
        BackboneError: no network of BERT, or a value that the encoder can't compute with.
    """
    try:
        path = _local_file(source, CONFIG, revision, cache_only=cache_only)
    except Exception as error:
        raise BackboneError(
            f"no backbone at {name!r}: give a hub id or a local folder ({short_reason(error)})"
        ) from error
    content, problem = _parsed(path)
    if problem:
        raise BackboneError(f"no backbone at {name!r}: {problem}")
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise BackboneError(
            f"no backbone at {name!r}: {CONFIG} names no model_type, such as 'bert'"
        )
    if content["model_type"] != "bert":
        found = one_line(content["model_type"][:64])
        raise BackboneError(f"{name!r} is a {found!r} network; 'bert' is supported")
    try:
        return EncoderConfig.from_transformers(SimpleNamespace(**_with_defaults(content)))
    except BackboneError as error:
        raise BackboneError(f"backbone {name!r}: {error}") from error


def _with_defaults(content: dict[str, Any]) -> dict[str, Any]:
    """Fill in what a `config.json` leaves out, as `transformers` does; loading it takes seconds."""
    if content.keys() >= set(STOCK_NAMES.values()):
        return content
    from transformers import BertConfig

    return BertConfig().to_dict() | content


def why_no_weights(source: str, parameters: dict[str, tuple[int, ...]], error: Exception) -> str:
    """Return why `transformers` could not read the weights.

    Args:
        source: a folder, or a name on the Hugging Face hub.
        parameters: the shapes that `config.json` asks for, by name in the network.
        error: the error of `transformers`.
    """
    path = Path(source) / WEIGHTS
    if not path.is_file():
        return short_reason(error)
    try:
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                return f"{WEIGHTS} is a pointer of Git LFS; fetch the file itself (git lfs pull)"
        with safe_open(path, framework="pt") as tensors:
            names = set(tensors.keys())
            for name, wanted in parameters.items():
                for known in names & {name, f"bert.{name}"}:
                    found = tuple(tensors.get_slice(known).get_shape())
                    if found != wanted:
                        return f"{known} has shape {found}, {CONFIG} asks for {wanted}"
    except OSError as denied:
        return f"{WEIGHTS} can't be read ({denied.strerror or short_reason(denied)})"
    except SafetensorError as damage:
        return f"{WEIGHTS} is damaged ({short_reason(damage)}); copy it again"
    return short_reason(error)


def why_no_floats(source: str, parameters: Iterable[str]) -> str | None:
    """Return which weight is stored as other numbers than floats, which would be meaningless.

    Args:
        source: a folder, or a name on the Hugging Face hub, whose files are not looked at.
        parameters: the names of the network's parameters.
    """
    path = Path(source) / WEIGHTS
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as tensors:
        names = set(tensors.keys())
        for name in parameters:
            for known in names & {name, f"bert.{name}"}:
                found = tensors.get_slice(known).get_dtype()
                if found not in _FLOATS:
                    return f"{known} is stored as {found}; {', '.join(_FLOATS)} are supported"
    return None


def why_no_tokenizer(source: str, error: Exception) -> str:
    """Return why `transformers` could not read the tokenizer."""
    for file in _TOKENIZER_JSON:
        path = Path(source) / file
        if path.is_file():
            content, problem = _parsed(path)
            if problem or not isinstance(content, dict):
                return problem or f"{file} is not a JSON object"
    return f"{' or '.join(_TOKENIZER_JSON)}: {type(error).__name__}: {short_reason(error)}"


def short_reason(error: Exception) -> str:
    """Return the first line of an error of a library, cut."""
    lines = str(error).strip().splitlines() or [repr(error)]
    return one_line(lines[0])[:_MAX_REASON]


def trained_pooling(source: str, revision: str | None, *, cache_only: bool) -> Pooling:
    """Return "mean" if the makers of a backbone pool it by the mean of its tokens, else "cls".

    A sentence encoder names its pooling in `modules.json` and in the settings of its pooling module
    (Reimers and Gurevych 2019, arXiv:1908.10084). Every other BERT has the pooler of its first
    token.

    Args:
        source: a folder, or a name on the Hugging Face hub.
        revision: commit on the hub.
        cache_only: whether to read the hub's local cache only.

    Raises:
        BackboneError: a file is there and damaged; then the pooling isn't known.
    """
    modules = _read_json(source, _MODULES_FILE, list, revision, cache_only=cache_only)
    for module in modules or ():
        if isinstance(module, dict) and str(module.get("type", "")).endswith(_POOLING_MODULE):
            file = f"{module.get('path', '')}/{_POOLING_SETTINGS}"
            settings = _read_json(source, file, dict, revision, cache_only=cache_only)
            return "mean" if settings and _is_mean(settings) else "cls"
    return "cls"


def _is_mean(settings: dict[str, Any]) -> bool:
    """Tell whether a pooling module takes the mean alone; files of version 5 name the mode."""
    if "pooling_mode" in settings:
        return bool(settings["pooling_mode"] == "mean")
    modes = {name for name, value in settings.items() if name.startswith("pooling_mode_") and value}
    return modes == {"pooling_mode_mean_tokens"}


def _read_json(
    source: str, file: str, kind: type, revision: str | None, *, cache_only: bool
) -> Any:
    """Return the content of a backbone's JSON file, of type `kind`, or None if it has none."""
    try:
        path = _local_file(source, file, revision, cache_only=cache_only)
    except (OSError, ValueError):
        return None
    except Exception as error:
        from huggingface_hub.errors import EntryNotFoundError  # takes a second to load

        if not isinstance(error, EntryNotFoundError):
            raise
        return None
    content, problem = _parsed(path)
    if problem or not isinstance(content, kind):
        problem = problem or f"{path.name} holds no {'list' if kind is list else 'object'}"
        raise BackboneError(f"{source}: {file}: {problem}; copy it again")
    return content


def _local_file(source: str, file: str, revision: str | None, *, cache_only: bool) -> Path:
    """Return the path of a file in the backbone's folder, or fetch it from the hub."""
    if Path(source).is_dir():
        path = Path(source) / file
        if not path.is_file():
            raise FileNotFoundError(f"the folder has no file {file}")
        return path
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, file, revision=revision, local_files_only=cache_only))


def _parsed(path: Path) -> tuple[Any, str]:
    """Return the content of a JSON file, and the problem if it can't be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8")), ""
    except OSError as error:
        return None, f"{path.name} can't be read ({error.strerror})"
    except RecursionError:
        return None, f"{path.name} is nested too deeply"
    except ValueError as error:
        return None, f"{path.name} is not JSON ({short_reason(error)})"
