"""Fits the last steps from a row's features to its answer, on rows whose features are fixed.

`solver` solves the head that a run starts from, or consists of.
"""
