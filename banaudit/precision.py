"""Where passes may be made in bfloat16, which modern processors multiply several times as fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch

_FULL_PRECISION: ContextVar[bool] = ContextVar("_FULL_PRECISION", default=False)


@contextmanager
def full_precision(wanted: bool) -> Iterator[None]:
    """Where it is wanted, :func:`fast_precision` is full precision inside, for networks that rounding would change."""
    token = _FULL_PRECISION.set(wanted)
    try:
        yield
    finally:
        _FULL_PRECISION.reset(token)


def wants_full_precision() -> bool:
    """Whether this runs inside :func:`full_precision`; other threads, such as that of a backward pass, do not know."""
    return _FULL_PRECISION.get()


def fast_precision(device: torch.device) -> AbstractContextManager[None]:
    """Autocast to bfloat16 where the hardware multiplies it natively, else full precision.

    Used only where a gradient's sign or a cross-entropy far from zero is wanted. Never where the weights get gradients.
    """
    if wants_full_precision():
        native = False
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    else:
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=native)
