"""Computes the answers: one frozen backbone, many deltas, one forward pass for rows of any tasks.

This folder is the only part of `app` that knows PyTorch; it knows neither HTTP nor queues. Read
`app.engine.engine` first. `cache` decides which deltas are resident, `loader` reads them into a
`deltas.encoder.bank`. `deltas.encoder.cpu` and `cuda` compute a pass on their device. `warm_up`
prepares a server.
"""
