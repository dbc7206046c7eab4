"""Draws the page, one panel per module.

Read `frontend.panels.task` first, the panel of one task.
"""
