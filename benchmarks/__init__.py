"""`make bench`: one table of ratios, each measured side by side in one run, on a model made on the spot.

One file a question (first_token.py, decode.py, throughput.py, pair.py, preprocess.py, pool.py, load_memory.py). The two
sides of a question live in processes of their own, are told "run once" in turn, and never run at the same time.

Next: __main__.py
"""
