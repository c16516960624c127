"""Backdoor attacks, one paper a file: what the benchmark's victims are made with."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from banaudit.bench.attacks.adap_blend import AdapBlend
from banaudit.bench.attacks.adap_patch import AdapPatch
from banaudit.bench.attacks.badnets import BadNets
from banaudit.bench.attacks.blend import Blend
from banaudit.bench.attacks.bpp import Bpp
from banaudit.bench.attacks.evasive import Evasive
from banaudit.bench.attacks.grond import Grond
from banaudit.bench.attacks.iad import IAD
from banaudit.bench.attacks.label_consistent import LabelConsistent
from banaudit.bench.attacks.ssdt import SSDT
from banaudit.bench.attacks.wanet import WaNet

AnyAttack = Annotated[
    AdapBlend | AdapPatch | BadNets | Blend | Bpp | Evasive | Grond | IAD | LabelConsistent | SSDT | WaNet,
    Field(discriminator="name"),
]
"""Any attack, told apart by its ``name``."""

ATTACKS = (AdapBlend, AdapPatch, BadNets, Blend, Bpp, Evasive, Grond, IAD, LabelConsistent, SSDT, WaNet)
"""All of them."""

__all__ = [
    "ATTACKS",
    "IAD",
    "SSDT",
    "AdapBlend",
    "AdapPatch",
    "AnyAttack",
    "BadNets",
    "Blend",
    "Bpp",
    "Evasive",
    "Grond",
    "LabelConsistent",
    "WaNet",
]
