"""Freezing strategies: parses `--freeze` and selects the parameters to train."""
