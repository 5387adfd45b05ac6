"""Random numbers as a pure function of (seed, choice index, token position, token id).

No generator state: a sequence that is preempted, moved to another worker or batched with other neighbours draws the
same numbers, on every device.

Next: worker/engine/sampler.py
"""

import hashlib
import struct

import torch

_WEYL = -1640531527  # 0x9E3779B9 as int32: 2 ** 32 over the golden ratio
_MIX_1 = -2048144789  # 0x85EBCA6B and 0xC2B2AE35: the multipliers of MurmurHash3's finaliser
_MIX_2 = -1028477387
_BELOW_ONE = 1.0 - 2.0**-24


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


def gumbel(keys: list[tuple[int, int]], ids: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise: the argmax of log probabilities plus noise is a draw from them.

    Args:
        keys: one for each row.
        ids: int32 (columns,), token ids; a token's noise does not depend on which others are asked for.

    Returns:
        fp32 (rows, columns), on the device of `ids`.

    Source: Gumbel-max trick; finaliser of MurmurHash3 (Appleby, public domain), applied twice.
    """
    words = torch.tensor(keys, dtype=torch.int32).to(ids.device)
    bits = ids * _WEYL + words[:, :1]
    bits = _mix(_mix(bits) ^ words[:, 1:])
    # 31 bits; small values of u, which are the large noise, keep their relative precision.
    uniform = ((bits & 0x7FFFFFFF).to(torch.float32) + 0.5).mul_(2.0**-31).clamp_(max=_BELOW_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mix(bits: torch.Tensor) -> torch.Tensor:
    # The shift of an int32 is arithmetic: the masks make it logical.
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * _MIX_1
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * _MIX_2
    return bits ^ ((bits >> 16) & 0xFFFF)
