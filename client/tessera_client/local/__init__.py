"""Starting a gateway and its workers on this machine, for `tessera serve`; imports neither.

Next: pair.py.
"""
