"""Interprets label columns; read `training.data.labels.forms` first, then `label_column`."""
