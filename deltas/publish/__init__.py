"""Makes model cards, stock model folders and study rows from deltas."""
