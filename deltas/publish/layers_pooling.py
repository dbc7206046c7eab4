"""A pooling module for `sentence-transformers`: the means of every layer, side by side.

`deltas export` copies this file into the folder of a delta that pools every layer, since the
library has no such module of its own; `deltas.publish.export` writes the settings beside it. There
it must work alone, so it needs nothing but PyTorch, and the client of the hub if the folder was
uploaded.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SETTINGS = "config.json"


class LayersPooling(torch.nn.Module):
    """Means over a text's tokens of the embeddings and of each layer's output.

    Args:
        embedding_dimension: width of the vector, (layers + 1) * H.
    """

    def __init__(self, embedding_dimension: int) -> None:
        super().__init__()
        self.embedding_dimension = embedding_dimension

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Add "sentence_embedding", float32 [R, (layers + 1) * H], to the network's output."""
        mask: Tensor = features["attention_mask"].unsqueeze(-1).float()
        count = mask.sum(1)
        # The embeddings come first; `output_hidden_states` in config.json asks for all of them.
        means = [(layer * mask).sum(1) / count for layer in features["all_layer_embeddings"]]
        features["sentence_embedding"] = torch.cat(means, 1)
        return features

    def get_embedding_dimension(self) -> int:
        """Return the width of the vector."""
        return self.embedding_dimension

    def get_sentence_embedding_dimension(self) -> int:
        """Return the width of the vector to versions of the library before 6."""
        return self.embedding_dimension

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the settings, and this file into the model's folder, where `load` needs it."""
        settings = {"embedding_dimension": self.embedding_dimension}
        (Path(output_path) / _SETTINGS).write_text(json.dumps(settings) + "\n")
        code = Path(__file__)
        shutil.copyfile(code, Path(output_path).parent / code.name)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> LayersPooling:
        """Read the settings, from a folder or from a model on the hub."""
        path = Path(model_name_or_path) / subfolder / _SETTINGS
        if not path.is_file():
            from huggingface_hub import hf_hub_download

            path = Path(
                hf_hub_download(
                    model_name_or_path,
                    _SETTINGS,
                    subfolder=subfolder,
                    cache_dir=options.get("cache_folder"),
                    local_files_only=bool(options.get("local_files_only")),
                    revision=options.get("revision"),
                    token=options.get("token"),
                )
            )
        return cls(**json.loads(path.read_text()))
