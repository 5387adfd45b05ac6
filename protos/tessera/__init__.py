"""The contract `tessera.v1` and the little code that gateway, worker and client share.

Next: v1/types.proto, then errors.py and items.py.
"""

__version__ = "0.1.0"
