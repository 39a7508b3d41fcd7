"""The report of a chaos run: one HTML file that needs nothing else.

`page` puts it together, `pictures` draws; only `pictures` needs a plotting library.
"""
