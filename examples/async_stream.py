"""Ask about a picture and a clip, at once and in several requests at the same time; the answers stream.

    python examples/async_stream.py

Next: prepare_generate.py.
"""

from __future__ import annotations

import asyncio
import os

from pictures import clip, picture

from tessera_client import AsyncClient, Image, Video

SERVER = os.environ.get("TESSERA_SERVER")  # None: localhost:50051

SEEN = Image(picture())
MOVING = Video(clip(), source_fps=4)


async def ask(client: AsyncClient, name: str, *parts: object) -> None:
    """Print each delta of one answer as it comes."""
    async for delta in client.stream_chat(list(parts), max_tokens=64):
        print(f"{name}: {delta.text!r}")


async def main() -> None:
    """Run three requests at once."""
    async with AsyncClient(SERVER, timeout=60) as client:
        await asyncio.gather(
            ask(client, "picture", SEEN, "Describe the image."),
            ask(client, "clip   ", MOVING, "What happens in the video?"),
            ask(client, "both   ", SEEN, MOVING, "What do you see?"),
        )


if __name__ == "__main__":
    asyncio.run(main())
