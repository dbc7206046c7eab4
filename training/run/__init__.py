"""One training run: prepares it, trains it and evaluates it."""
