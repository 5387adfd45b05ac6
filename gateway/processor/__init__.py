"""Prompts: chat template, tokens, placeholders.

Next: registry.py, then multimodal.py.
"""
