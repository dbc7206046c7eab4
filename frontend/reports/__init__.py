"""Computes the numbers and draws the charts of the views Trust, Benchmark, Deltas and Server.

Nothing here knows Streamlit. Read `frontend.reports.trust` first; `frontend.views` shows results.
"""
