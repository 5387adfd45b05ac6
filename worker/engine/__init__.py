"""The engine: which tokens run in the next step, on which blocks, with which items' embeddings, and what is drawn.

Scheduling (sequence, scheduler, block_pool, state_pool, encoder_cache, item_store) is plain Python; only batch,
model_runner and sampler touch tensors.

Next: worker/engine/engine.py
"""
