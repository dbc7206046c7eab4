"""The kernels themselves, compiled by numba in a process that ends once the code is on disk.

Everything but `machine_code` imports numba, which takes 2 s and 70 MB, so that no module of a
server imports it: `deltas.kernels.compiled.machine_code` starts
`python -m deltas.kernels.compiled` for a kernel whose code is not on disk yet (decision 0116). The
constants below are all that both sides know. Read `deltas.kernels.compiled.language` next, then
`deltas.kernels.compiled.sparse_gradient`, the shortest kernel.
"""

# The kernels, as "module:function".
EPILOGUE, ROW_ATTENTION, SDDMM = (
    f"deltas.kernels.compiled.{module}:kernel"
    for module in ("epilogue", "row_attention", "sparse_gradient")
)
INFERENCE = EPILOGUE, ROW_ATTENTION  # those of a forward pass
SYMBOL = "deltabert_kernel"  # name of the function in each object file
# Codes by which kernels tell dtypes.
F32, BF16, I32 = 0, 1, 2
HEAD = 6  # numbers at the beginning of the arguments of every kernel; see `language`
WIDTH = 16  # floats that the vector instructions of `simd` handle at a time
MAX_TILE_ROWS = 8  # most rows that they multiply at a time
HADAMARD_SIZE = 64  # floats that `simd.hadamard_floats` transforms: divides most encoders' widths
GELU_DEGREE = 13  # of the polynomial in x^2 that stands for GELU
ROWS_TOGETHER = 4  # rows that the epilogue handles at a time
