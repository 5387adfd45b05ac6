"""Media: from a source named in a request to resized pixels with a grid and times, or samples with a rate.

Reading order: source.py, fetch.py (bytes), pool.py (where they go), child.py and decode.py (what happens there),
plan.py and rules.py (which frames, which size), resize.py (pixels), series/ (samples), item.py (what comes back).

Modules that run in the pool's processes import neither grpc nor protobuf, so that those start fast.

Next: gateway/media/source.py
"""
