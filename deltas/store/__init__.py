"""Finds the deltas of several folders, and keeps local copies of remote ones.

Read `deltas.store.store` first, then `deltas.store.sync`. Nothing is imported here, because the
server reads addresses of folders (`deltas.store.address`) before torch is loaded.
"""
