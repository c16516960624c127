"""Plain fine-tuning on clean images: what every repair is held against."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.mitigations.base import FineTuningMitigation
from banaudit.shapes import Images, Labels


@final
class FineTuning(FineTuningMitigation):
    """Trains all weights on clean images: min_w CE(f(x; w), y).

    It is BAN's repair with lambda_2 = 0 and the same schedule, so that what the noise adds can be told apart.

    Source:
        The baseline of Xu et al., "BAN", NeurIPS 2024, Table 3, which it cures of WaNet, IAD and Bpp, not of BadNets
        and Blend.
    """

    name: ClassVar[str] = "fine-tuning"
    title: ClassVar[str] = "plain fine-tuning on clean images"
    needs: ClassVar[str] = "clean images"

    def loss(self, model: SplitModel, images: Images, labels: Labels, generator: torch.Generator) -> Tensor:
        """Cross-entropy of the clean images."""
        del generator
        return F.cross_entropy(model(images), labels)

    def passes(self) -> tuple[int, int]:
        """One pass forward, one backward."""
        return 1, 1

    def check(self, model: SplitModel) -> None:
        """Every network can be fine-tuned."""
