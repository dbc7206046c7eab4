"""The engine: holds deltas on the device and runs the forward pass; knows torch, not HTTP."""
