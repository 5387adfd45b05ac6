"""Kernels of the worker: one typed wrapper an op, each with its plain-torch reference.

Next: kernels/tessera_kernels/ops.py
"""
