"""The views of the page, one module each, with a function that draws it.

`frontend.main` lists them in its navigation; `frontend.panels` has the parts that they share.
"""
