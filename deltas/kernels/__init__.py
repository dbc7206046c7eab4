"""Compute kernels, and the only place that knows numba, LLVM, OpenMP and private APIs of PyTorch.

The folder imports nothing else of `deltas`: it takes tensors and returns tensors. Everything that
runs often and has no fast PyTorch operation is here:

- `deltas.kernels.epilogue` finishes a matrix product in one pass (GEMM epilogue): bias, residual,
  GELU, LayerNorm, int8;
- `deltas.kernels.row_attention` attends within rows of different lengths without padding;
- `deltas.kernels.sparse_gradient` computes the gradient of selected weights (SDDMM, sampled
  dense-dense matrix multiplication);
- `deltas.kernels.linear` prepacks frozen weights for oneDNN;
- `deltas.kernels.int8` defines quantised rows and matrices.

These prepare the arguments. Read `deltas.kernels.runtime` first, which runs kernels in PyTorch's
threads, then `deltas.kernels.compiled`, which has their code. `deltas.kernels.disk_cache` keeps
what is compiled. `deltas.kernels.private_apis` lists every private API that the product uses.
Shapes use the letters of `deltas.encoder`.
"""
