"""Reads tasks and rows: GLUE, custom files, data sets of the hub, the built-in sample.

Read `training.data.rows` first, which every source returns, then `training.data.glue` for GLUE or
`training.data.custom` for custom tasks.
"""
