"""The forward pass of the encoder, shared by training and serving."""
