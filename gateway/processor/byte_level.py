"""The byte-level alphabet: how byte-level BPE writes raw bytes as printable characters.

Next: tokenizer.py.
"""

from __future__ import annotations

_PRINTABLE = (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))


def _alphabet() -> dict[str, int]:
    """Return character -> byte.

    Source: GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself, every other byte for the next
    character from U+0100 on.
    """
    itself = {byte for span in _PRINTABLE for byte in span}
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _alphabet()


def token_to_bytes(token: str) -> bytes:
    """Return the raw bytes that a vocabulary entry decodes to.

    An added token that is not spelled in the alphabet is taken as UTF-8, as `tokenizers`' decoder does.
    """
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()
