"""The files of `dictlab demo`: a small language model and three dictionaries of it.

`checkpoints/pack_demo.py` makes them.
"""
