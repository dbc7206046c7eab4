"""Changes the deltas of an engine while it answers.

Read `app.engine.changes.changes` first, then `app.engine.changes.disk`.
"""

from app.engine.changes.changes import Change as Change
from app.engine.changes.changes import DeltaChanges as DeltaChanges
from app.engine.changes.disk import Name as Name
