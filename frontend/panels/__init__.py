"""Draws the page, one panel per module.

Read `frontend.panels.predict` first, the panels that predict.
"""
