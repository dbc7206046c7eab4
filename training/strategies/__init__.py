"""Freezing strategies: parses `--freeze` and selects the parameters to train.

Read `training.strategies.grammar` first, then `training.strategies.rules`.
"""
