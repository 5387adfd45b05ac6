"""Time series: from a file's bytes to samples and a rate, in a pool process.

Next: gateway/media/series/formats.py
"""
