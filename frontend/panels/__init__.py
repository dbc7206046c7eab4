"""Draws the parts that several views share: charts, cards, tables and fields."""
