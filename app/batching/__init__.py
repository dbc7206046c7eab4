"""Batching: queues requests, admits or refuses them, and runs batches on worker threads."""
