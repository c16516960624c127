"""Global random state that is put back: on the processor, and on the one device that computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_global(seed: int, device: torch.device) -> None:
    """Seed the global sources that a pass on this device draws from, such as dropout's.

    ``torch.manual_seed`` would seed every device of the machine, which :func:`isolated_random` does not put back.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def isolated_random(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Inside, the global sources may be seeded and drawn from; afterwards they are as before.

    Args:
        device: That computes.
        seed: What they are seeded with; none: they go on from where they are.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            seed_global(seed, device)
        yield
