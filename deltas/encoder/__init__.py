"""The forward pass of the encoder, shared by training and serving.

`deltas.encoder.encoder` is the pass itself. It reads a batch that `deltas.encoder.packing` laid
out, sees weights through an `Overlay` and attends through an `Attention`. Training takes
`deltas.encoder.single_overlay` and `deltas.encoder.window_attention`. Finished deltas lie in a
`deltas.encoder.bank`, with `deltas.encoder.sparse` for a few values of a matrix, and
`deltas.encoder.cpu` computes rows of any of them, with `deltas.encoder.row_attention`;
`deltas.encoder.bank_overlay` is its reference on every device. A server answers by that pass, and a
run judges its delta by it.

Legend of the letters in shapes, used by the whole project:

- `N` tokens of a batch, padding included;
- `P` positions: the tokens of the last layer that pooling reads, repeated ones included;
- `R` rows of the input; a pair of texts that is read separately counts as two;
- `H` hidden width, `A` attention heads, `D` = H / A;
- `O` and `I` output and input width of a matrix; `C` outputs of a head;
- `K` values of a sparse entry; `S` slots of the bank;
- `W` windows and `L` tokens of a window.
"""
