"""The process that serves: its settings, its log, and how memory, threads and signals are set up.

No module of this folder imports another part of `app`.
"""
