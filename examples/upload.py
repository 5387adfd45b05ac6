"""Send a large file once, ask about it twice.

    python examples/upload.py clip.mp4

(Large files are uploaded by themselves, too: this is for those that are used more than once.)

Next: README.md.
"""

from __future__ import annotations

import io
import os
import sys

from pictures import clip

from tessera_client import Client, UploadProgress, Video

SERVER = os.environ.get("TESSERA_SERVER")  # None: localhost:50051


def show(progress: UploadProgress) -> None:
    """Print how far the upload is."""
    print(f"\r{progress.name}: {progress.sent_bytes:,} of {progress.total_bytes:,} bytes", end="", file=sys.stderr)


def animation() -> bytes:
    """Return the example's clip as one file (an animated GIF)."""
    buffer = io.BytesIO()
    first, *rest = clip()
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=250)
    return buffer.getvalue()


def main() -> None:
    """Upload, then ask by id."""
    source = sys.argv[1] if len(sys.argv) > 1 else animation()
    with Client(SERVER, timeout=120) as client:
        uploaded = client.upload(source, on_upload=show)
        print(file=sys.stderr)
        assert uploaded.media_id is not None
        print(f"id {uploaded.media_id.hex()}, held for {uploaded.held_for_s} s after its last use")
        for question in ("What happens in the video?", "Which way does it move?"):
            print(f"{question} {client.chat([Video(uploaded), question], max_tokens=32).text}")


if __name__ == "__main__":
    main()
