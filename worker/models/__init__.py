"""Model definitions: one file a family, one registry, one loader.

Next: worker/models/base.py
"""
