"""Readers of annotation files (paper Table 9): the benchmarks' own formats and the release's converted JSON lines.

Each reader is a function from `Source` (which files) to a list of `Sample` (what is asked, what is right). A file of
another version is refused with the name of the field that it lacks; ids are unique; no picture is opened here.
"""
