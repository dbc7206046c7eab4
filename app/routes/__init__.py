"""The routes, one file a group; each is a thin layer over `app.serving.Serving`."""
