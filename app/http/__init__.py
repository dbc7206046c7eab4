"""Serves the app over HTTP: routes, middleware, bodies and metrics.

Read `app.http.routes.predictions` first. Nothing but this folder, `app.main`, `app.server` and
`app.errors` knows FastAPI and Starlette.
"""
