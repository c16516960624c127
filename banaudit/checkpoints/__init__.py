"""A file that somebody else made -> weights and facts about them, running none of its code."""

from __future__ import annotations

from banaudit.checkpoints.reader import Checkpoint, inspect_checkpoint, read_checkpoint

__all__ = ["Checkpoint", "inspect_checkpoint", "read_checkpoint"]
