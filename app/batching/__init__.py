"""Runs the rows of many requests in batches; knows no torch and no HTTP.

Read `app.batching.batcher` first. It puts the rows of a request into `app.batching.queue` if
`app.batching.admission` lets them wait, and the threads of `app.batching.workers` run the batches.
"""
