"""Decisions without I/O: who is let in, and which worker runs it. No torch, no grpc.

Next: admission.py, placement.py.
"""
