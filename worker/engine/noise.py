"""The key of a row's random numbers: a pure function of (seed, choice index, token position).

No generator state: a sequence that is preempted, moved to another worker or batched with other neighbours draws the
same numbers, on every device.

Next: kernels/tessera_kernels/sampling.py
"""

import hashlib
import struct


def row_key(seed: int, choice: int, position: int) -> tuple[int, int]:
    """Return the two 32-bit words that a row's random numbers grow from.

    Args:
        seed: of the request, 64 bits.
        choice: index among the request's choices.
        position: absolute index of the token to be drawn, the prompt counted.
    """
    digest = hashlib.blake2b(struct.pack("<QqQ", seed & (1 << 64) - 1, choice, position), digest_size=8).digest()
    first, second = struct.unpack("<ii", digest)
    return first, second
