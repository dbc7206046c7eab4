"""What a delta is: the leaf package that training writes through and serving reads through.

A *backbone* is a pretrained encoder whose weights never change. A *delta* holds the values of the
few parameters that training changed, a task's *head*, and a *manifest*; one file. Laid over the
backbone during a forward pass, a delta's *entries* form an *overlay*. A *store* knows the deltas
below several folders, among them the *zoo* that is shipped here. The forward pass itself is
`deltas.encoder.encoder`: read it next.
"""

from deltas.backbone.backbone import DEFAULT_BACKBONE, Backbone, load_backbone, make_backbone
from deltas.backbone.layout import EncoderConfig, encoder_layout
from deltas.backbone.tokenizer import TokenizedRow, tokenize_rows, tokenize_texts
from deltas.delta import Delta, DenseEntry, Entry, SparseEntry, task_scores
from deltas.encoder.encoder import Attention, Overlay, encode
from deltas.encoder.flat_batch import FlatBatch, Size, flatten, unflatten
from deltas.encoder.packing import PackedBatch, pack, packed_sizes
from deltas.encoder.row_attention import RowAttention
from deltas.encoder.single_overlay import TrainableOverlay
from deltas.encoder.window_attention import WindowAttention
from deltas.errors import (
    BackboneError,
    DeltaError,
    DeltaFormatError,
    DeltaMismatchError,
    DeltaNotFoundError,
    InvalidTextError,
)
from deltas.format import check_delta, check_fit, read_delta, read_manifest, write_delta
from deltas.hardware import (
    DTYPES,
    dtype_of,
    keep_compiled_products,
    keep_freed_memory,
    pick_device,
    pick_precision,
)
from deltas.manifest import (
    BackboneRef,
    EntryInfo,
    Manifest,
    SplitMetrics,
    StrategySpec,
    TaskSpec,
    TrainingFacts,
)
from deltas.store import Record, Store, delta_path, zoo_path

SingleOverlay = TrainableOverlay  # the name of earlier releases

__all__ = [
    "DEFAULT_BACKBONE",
    "DTYPES",
    "Attention",
    "Backbone",
    "BackboneError",
    "BackboneRef",
    "Delta",
    "DeltaError",
    "DeltaFormatError",
    "DeltaMismatchError",
    "DeltaNotFoundError",
    "DenseEntry",
    "EncoderConfig",
    "Entry",
    "EntryInfo",
    "FlatBatch",
    "InvalidTextError",
    "Manifest",
    "Overlay",
    "PackedBatch",
    "Record",
    "RowAttention",
    "SingleOverlay",
    "Size",
    "SparseEntry",
    "SplitMetrics",
    "Store",
    "StrategySpec",
    "TaskSpec",
    "TokenizedRow",
    "TrainableOverlay",
    "TrainingFacts",
    "WindowAttention",
    "check_delta",
    "check_fit",
    "delta_path",
    "dtype_of",
    "encode",
    "encoder_layout",
    "flatten",
    "keep_compiled_products",
    "keep_freed_memory",
    "load_backbone",
    "make_backbone",
    "pack",
    "packed_sizes",
    "pick_device",
    "pick_precision",
    "read_delta",
    "read_manifest",
    "task_scores",
    "tokenize_rows",
    "tokenize_texts",
    "unflatten",
    "write_delta",
    "zoo_path",
]
