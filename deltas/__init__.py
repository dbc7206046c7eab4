"""The leaf package that training writes deltas through and serving reads them through.

A *backbone* is a pretrained encoder whose weights never change. A *delta* is one file with the
values of the few parameters that training changed, a task's *head*, and a *manifest*. During a
forward pass, a delta's *entries* are laid over the backbone as an *overlay*. A *store* lists the
deltas below several folders; the *zoo* is the folder that is shipped with this package.

The public names are loaded on first use, so that importing the package costs next to nothing.
Read `deltas.encoder.encoder`, the forward pass, next.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltas.backbone.backbone import DEFAULT_BACKBONE as DEFAULT_BACKBONE
    from deltas.backbone.backbone import Backbone as Backbone
    from deltas.backbone.backbone import load_backbone as load_backbone
    from deltas.backbone.backbone import make_backbone as make_backbone
    from deltas.backbone.layout import EncoderConfig as EncoderConfig
    from deltas.backbone.layout import encoder_layout as encoder_layout
    from deltas.backbone.tokenizer import TokenizedRow as TokenizedRow
    from deltas.backbone.tokenizer import tokenize_rows as tokenize_rows
    from deltas.backbone.tokenizer import tokenize_texts as tokenize_texts
    from deltas.delta import Delta as Delta
    from deltas.delta import DenseEntry as DenseEntry
    from deltas.delta import Entry as Entry
    from deltas.delta import SparseEntry as SparseEntry
    from deltas.delta import task_scores as task_scores
    from deltas.encoder.encoder import Attention as Attention
    from deltas.encoder.encoder import Overlay as Overlay
    from deltas.encoder.encoder import encode as encode
    from deltas.encoder.packing import PackedBatch as PackedBatch
    from deltas.encoder.packing import pack as pack
    from deltas.encoder.packing import packed_sizes as packed_sizes
    from deltas.encoder.row_attention import RowAttention as RowAttention
    from deltas.encoder.single_overlay import TrainableOverlay as TrainableOverlay
    from deltas.encoder.window_attention import WindowAttention as WindowAttention
    from deltas.errors import BackboneError as BackboneError
    from deltas.errors import DeltaError as DeltaError
    from deltas.errors import DeltaFormatError as DeltaFormatError
    from deltas.errors import DeltaMismatchError as DeltaMismatchError
    from deltas.errors import DeltaNotFoundError as DeltaNotFoundError
    from deltas.errors import InvalidTextError as InvalidTextError
    from deltas.format import check_delta as check_delta
    from deltas.format import check_fit as check_fit
    from deltas.format import read_delta as read_delta
    from deltas.format import read_manifest as read_manifest
    from deltas.format import write_delta as write_delta
    from deltas.hardware import DTYPES as DTYPES
    from deltas.hardware import dtype_of as dtype_of
    from deltas.hardware import keep_compiled_products as keep_compiled_products
    from deltas.hardware import keep_freed_memory as keep_freed_memory
    from deltas.hardware import pick_device as pick_device
    from deltas.hardware import pick_precision as pick_precision
    from deltas.manifest import BackboneRef as BackboneRef
    from deltas.manifest import EntryInfo as EntryInfo
    from deltas.manifest import Manifest as Manifest
    from deltas.manifest import SplitMetrics as SplitMetrics
    from deltas.manifest import StrategySpec as StrategySpec
    from deltas.manifest import TaskSpec as TaskSpec
    from deltas.manifest import TrainingFacts as TrainingFacts
    from deltas.store.store import Record as Record
    from deltas.store.store import Store as Store
    from deltas.store.store import delta_path as delta_path
    from deltas.store.store import zoo_path as zoo_path

    SingleOverlay = TrainableOverlay

# The same names as above, by module.
_PUBLIC = {
    "backbone.backbone": "DEFAULT_BACKBONE Backbone load_backbone make_backbone",
    "backbone.layout": "EncoderConfig encoder_layout",
    "backbone.tokenizer": "TokenizedRow tokenize_rows tokenize_texts",
    "delta": "Delta DenseEntry Entry SparseEntry task_scores",
    "encoder.encoder": "Attention Overlay encode",
    "encoder.packing": "PackedBatch pack packed_sizes",
    "encoder.row_attention": "RowAttention",
    "encoder.single_overlay": "SingleOverlay TrainableOverlay",
    "encoder.window_attention": "WindowAttention",
    "errors": "BackboneError DeltaError DeltaFormatError DeltaMismatchError DeltaNotFoundError"
    " InvalidTextError",
    "format": "check_delta check_fit read_delta read_manifest write_delta",
    "hardware": "DTYPES dtype_of keep_compiled_products keep_freed_memory pick_device"
    " pick_precision",
    "manifest": "BackboneRef EntryInfo Manifest SplitMetrics StrategySpec TaskSpec TrainingFacts",
    "store.store": "Record Store delta_path zoo_path",
}
_MODULES = {name: f"deltas.{module}" for module, names in _PUBLIC.items() for name in names.split()}
_ALIASES = {"SingleOverlay": "TrainableOverlay"}  # names of earlier releases

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), _ALIASES.get(name, name))
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
