"""HTTP: routes, middleware and schemas; the only part of `app` that knows FastAPI."""
