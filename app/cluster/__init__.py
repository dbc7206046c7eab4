"""Serves from many replicas on Ray: `python -m app.cluster`, with the extra `ray`.

Read `app.cluster.__main__` first (the command), then `app.cluster.launch` (how a cluster starts),
`app.cluster.replica` (one server of it) and `app.cluster.coordinator` (how changes reach all).
Nothing else imports Ray.
"""
