"""Reads tasks and rows: GLUE, custom files, data sets of the hub, the built-in sample."""
