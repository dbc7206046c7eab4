"""Answers any number of rows in constant memory; read `app.pipeline.bulk.run` first."""
