"""The frozen part: weights, layout and tokenizer of a backbone.

Read `deltas.backbone.backbone` first, then `deltas.backbone.layout`.
"""
