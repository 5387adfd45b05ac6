"""From the host to a device without a wait for what the device is doing.

A copy from ordinary memory is staged by the driver, which may first let all earlier work of the stream end; a copy from
memory that the device reads by itself takes its place in the stream.

Next: kernels/tessera_kernels/segments.py
"""

import torch


def on_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on a device, or the tensor itself where it is there already."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
