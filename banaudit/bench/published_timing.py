"""What the paper reports of time, to be shown beside what is measured here.

Full-width ResNet-18, one model, on a GPU (an RTX A6000 or an RTX A5000: the paper does not say which), with 1 % of the
training set. Figure 4 is of bars; these are the numbers that the text gives. The paper names no uncertainty.

Source:
    Xu, Liu, Koffas, Yu and Picek, "BAN", NeurIPS 2024, Section 4.1 (Figure 4) and Appendix C.1.
"""

from __future__ import annotations

from banaudit.bench.released import RELEASED_BAN

SETUPS = ("CIFAR-10, 10 classes, 32 pixels", "ImageNet200, 200 classes, 224 pixels")
"""What the paper's models were trained on."""

SECONDS: dict[str, tuple[float | None, float | None]] = {
    RELEASED_BAN: (55.95, 1132.85),
    "bti-dbf": (76.90, 5792.51),
    "feature-re": (297.74, None),
}
"""Method -> seconds of one detection on each of :data:`SETUPS`; none: not given.

Of BAN they timed their own procedure. BTI-DBF on ImageNet200 is without the pre-training of its generator. FeatureRE
would take more than 400 hours on it, as the authors estimate from one class.
"""
