"""Fits the last steps from a row's features to its answer, on rows whose features are fixed.

`solver` solves the head that a run starts from, or consists of. `calibration`, `thresholds` and
`reliability` make its answers decisions, and say how far its probabilities can be trusted.
"""
