"""Layers that the model files are put together from: each one small, typed and family-neutral.

Next: worker/layers/linear.py
"""
