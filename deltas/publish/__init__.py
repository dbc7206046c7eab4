"""Makes model cards, stock model folders and study rows from deltas.

Read `deltas.publish.card` first, which puts a manifest into words.
"""
