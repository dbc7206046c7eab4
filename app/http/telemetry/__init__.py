"""Tells operators how the server does: `metrics` counts for Prometheus, `tracing` sends spans.

`top_deltas` bounds the series that metrics may have. Read `app.http.telemetry.metrics` first.
"""
