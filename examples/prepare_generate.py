"""See what a chat would run, then run exactly that: token ids in, token ids out, the clip named by its hash.

    python examples/prepare_generate.py

Next: upload.py.
"""

from __future__ import annotations

import os

from pictures import clip

from tessera_client import Client, Video

SERVER = os.environ.get("TESSERA_SERVER")  # None: localhost:50051


def main() -> None:
    """Prepare once, generate several times."""
    with Client(SERVER, timeout=60) as client:
        plan = client.prepare([Video(clip(), source_fps=4, num_frames=4), "What happens in the video?"])
        used = plan.media[0].sampling
        assert used is not None
        print(f"{len(plan.token_ids)} tokens, {plan.usage.video_tokens} of them the clip")
        print(f"frames {used.frame_indices} at {used.timestamps} s, by the rule {used.rule}")
        print(f"the clip stands at {plan.items[0].ranges}")

        # The server holds the items for a while, so that only ids and hashes travel now.
        for seed in (1, 2):
            result = client.generate(plan.token_ids, items=plan.items, max_tokens=32, temperature=0.7, seed=seed)
            print(f"seed {seed}: {result.text!r} {result.token_ids}")


if __name__ == "__main__":
    main()
