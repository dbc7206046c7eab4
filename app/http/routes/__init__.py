"""Answers every route: read `app.http.routes.predictions` first, which all clients use.

`app.http.routes.changes` has the routes that change deltas and need a key.
"""
