"""Prompts: chat template, tokens, placeholders.

Next: registry.py, then base.py.
"""
