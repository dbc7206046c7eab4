"""Translates other protocols, so that clients which people already have work unchanged.

Each module is one protocol over the path that `app.http.routes.predictions` takes: the same keys,
limits, deadlines and metrics. `answers` has all that they share, `error_forms` their errors.
"""
