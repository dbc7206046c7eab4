"""One training run: prepares it, trains it and evaluates it.

Read `training.run.train_delta` first.
"""
