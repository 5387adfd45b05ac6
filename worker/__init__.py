"""The worker: owns one accelerator (or the CPU), encodes items and runs the language model.

Next: worker/models/base.py
"""
