"""Experimental: no GPU has run this code yet; replaced by a plain path if none has by release 0.3.

The forward pass for GPUs, and all that only GPUs need. `batch` writes a batch into one int64
tensor, which a single copy brings to the device, and makes a packed batch of it there. `attention`
attends within rows of different lengths without padding. `graphs` records the pass of each batch
shape as a CUDA graph, because launching hundreds of short kernels one by one from Python takes
longer than running them. `forward` puts these together.

A recorded pass reads and writes the same memory at every replay, so a batch is filled up to the
next recorded shape. The plain path would be `deltas.encoder.packing.pack` with windows,
`WindowAttention` and `BankOverlay`: the same answers without recorded passes.

Expires: 0.3.0
"""
