"""Names for the tensors that cross function borders, with one legend for their shapes.

Legend: B batch, N samples, C channels, H and W pixels, K classes, D features.
The aliases document; they check nothing at run time.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from torch import Tensor

Images: TypeAlias = Annotated[Tensor, "[B, C, H, W] float in [0, 1]; normalisation lives inside the model"]
Labels: TypeAlias = Annotated[Tensor, "[B] int64 in 0..K-1"]
Logits: TypeAlias = Annotated[Tensor, "[B, K] float, unbounded"]
Features: TypeAlias = Annotated[Tensor, "[B, D] or [B, D, H', W'] float: input of the classification head"]
Weights: TypeAlias = dict[str, Tensor]

COUNTER = "num_batches_tracked"
"""How the name of BatchNorm's count of batches ends. Older versions of torch did not keep it, in half precision it
overflows, and no evaluation reads it."""
