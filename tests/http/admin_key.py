"""The key of an admin, for tests that change deltas; predictions need no key."""

from __future__ import annotations

import hashlib

KEY = "correct horse battery staple"
KEYS = (
    'anonymous = {scopes = ["predict"], tasks = ["*"]}\n'
    f'admin = {{sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}", '
    'scopes = ["admin", "predict"], tasks = ["*"]}\n'
)
ADMIN = {"Authorization": f"Bearer {KEY}"}
