"""Which tensors are ordinary numbers, to which a change can be added."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Quantised layers may keep integers, or floats of one byte, under the same attribute.
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_plain(weight: object) -> bool:
    """Whether this is a tensor of ordinary floating-point numbers, to which a change can be added.

    Subclasses of tensors are not, unless they are a share of one in several processes: they are how quantisation
    libraries keep packed numbers under a wide dtype.
    """
    if not isinstance(weight, Tensor) or weight.dtype not in WEIGHT_DTYPES:
        return False
    return type(weight) in (Tensor, nn.Parameter) or hasattr(weight, "full_tensor")
