"""Computes the answers: one frozen backbone, many deltas, one forward pass for rows of any tasks.

This folder is the only part of `app` that knows PyTorch; it knows neither HTTP nor queues. Read
`app.engine.engine` first. `cache` decides which deltas are resident, `loader` reads them, `bank`
stacks their values, with `sparse` for a few values of a matrix. `cpu` and `cuda` compute a pass on
their device; `bank_overlay` is the reference of both. `warm_up` prepares a server.
"""
