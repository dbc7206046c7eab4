"""Runs the process that serves: socket, signals, connections, certificate.

Read `app.server.server` first. Only `app.__main__` uses this folder; the app itself knows nothing
of the process around it.
"""
