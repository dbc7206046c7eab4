"""Finds out which pooling a backbone was trained for, from its sentence-transformers files.

A sentence encoder states it in `modules.json` and in the settings of its pooling module (Reimers
and Gurevych 2019, arXiv:1908.10084). Every other BERT was trained with the pooler of its first
token. Called by `deltas.backbone.backbone`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltas.manifest import Pooling

_MODULES = "modules.json"
_POOLING_TYPE = "Pooling"
_SETTINGS = "config.json"


def trained_pooling(source: str, revision: str | None, *, cache_only: bool) -> Pooling:
    """Return "mean" if the makers of a backbone pool it by the mean of its tokens, else "cls".

    Args:
        source: a folder, or a name on the Hugging Face hub.
        revision: commit on the hub.
        cache_only: whether to read the hub's local cache only.
    """
    modules = _read_json(source, _MODULES, revision, cache_only=cache_only)
    if not isinstance(modules, list):
        return "cls"
    for module in modules:
        if isinstance(module, dict) and str(module.get("type", "")).endswith(_POOLING_TYPE):
            file = f"{module.get('path', '')}/{_SETTINGS}"
            settings = _read_json(source, file, revision, cache_only=cache_only)
            return "mean" if isinstance(settings, dict) and _is_mean(settings) else "cls"
    return "cls"


def _is_mean(settings: dict[str, Any]) -> bool:
    """Tell whether a pooling module takes the mean alone; files of version 5 name the mode."""
    if "pooling_mode" in settings:
        return bool(settings["pooling_mode"] == "mean")
    modes = {name for name, value in settings.items() if name.startswith("pooling_mode_") and value}
    return modes == {"pooling_mode_mean_tokens"}


def _read_json(source: str, file: str, revision: str | None, *, cache_only: bool) -> Any:
    """Return the content of a backbone's JSON file, or None if it has no such sound file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        path = Path(source) / file
        if not Path(source).is_dir():
            found = hf_hub_download(source, file, revision=revision, local_files_only=cache_only)
            path = Path(found)
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, EntryNotFoundError, LocalEntryNotFoundError):
        return None
