"""Audits decisions offline: counts how deltas answer the rows of files, by the engine that serves.

`python -m deltas joint` (`audit.joint`) counts how often several tasks fire on innocent rows;
`python -m deltas abstain` (`audit.abstain`) counts how many rows out of scope get no answer. This
is the only package that imports both `training`, for its readers of files, and `app`, for its
engine and its rules of decision; nothing imports it.
"""
