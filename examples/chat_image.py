"""Ask about a picture.

    python examples/chat_image.py [picture.png] [question]

Next: async_stream.py.
"""

from __future__ import annotations

import os
import sys

from pictures import picture

from tessera_client import Client, Image, TesseraError

SERVER = os.environ.get("TESSERA_SERVER")  # None: localhost:50051


def main() -> int:
    """Ask, and print the answer and what it took."""
    source = sys.argv[1] if len(sys.argv) > 1 else picture()
    question = sys.argv[2] if len(sys.argv) > 2 else "Describe the image."
    with Client(SERVER, timeout=60) as client:
        try:
            answer = client.chat([Image(source), question], max_tokens=64, temperature=0)
        except TesseraError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
    print(answer.text)
    print(f"({answer.usage.prompt_tokens} prompt tokens, {answer.usage.image_tokens} of them the image)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
