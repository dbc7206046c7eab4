"""Tells before a run what was read, what will be done, what looks odd, and how long it takes.

Read `training.run.plan.plan` first. Nothing here changes the run.
"""
