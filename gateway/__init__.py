"""The gateway: chat and token requests in, tokens and typed items to the workers, text back.

Next: __main__.py, then service.py.
"""
