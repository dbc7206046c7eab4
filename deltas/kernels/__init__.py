"""Compiled CPU kernels; only these know numba, LLVM, OpenMP and private torch operations."""
