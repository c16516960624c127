"""What an interrupted repair or training leaves in a file, so that the same call goes on at the same cost."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import torch

import banaudit
from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData
from banaudit.errors import UsageError
from banaudit.meter import Meter
from banaudit.results import Scalar
from banaudit.whole_files import write_whole

FORMAT = 2
"""Of the file; what another one holds is not taken up."""


class Progress:
    """The last state of each run of a repair or training, all in one file, and what it has taken so far.

    On creation, the passes and seconds of the earlier calls are booked.

    Args:
        path: The file; none: nothing is kept.
        identity: What must be the same for it to go on (:func:`identify`).
        meter: Its own.
    """

    def __init__(self, path: Path | None, identity: str, meter: Meter) -> None:
        self._path = path
        self._identity = identity
        self._run = ""
        self._meter = meter
        self._begun = meter.forward_images, meter.backward_images
        self._started = time.monotonic()
        saved = self._read()
        self._states: dict[str, dict[str, Any]] = saved["states"] if saved else {}
        self.earlier_seconds: float = saved["seconds"] if saved else 0.0
        """What earlier calls took up to their last state."""
        if saved:
            meter.forward_images += saved["forward_images"]
            meter.backward_images += saved["backward_images"]

    def run(self, name: str) -> Progress:
        """The same file for one of several runs in a row, each with a state of its own."""
        other = copy.copy(self)
        other._run = name
        return other

    def load(self) -> dict[str, Any] | None:
        """The run's last state; none where there is none."""
        return self._states.get(self._run)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the run's state.

        Args:
            state: Tensors, numbers, texts, and lists and dicts of them.

        Raises:
            UsageError: The file cannot be written.
        """
        if self._path is None:
            return
        self._states[self._run] = state
        stream = io.BytesIO()
        whole = {
            "identity": self._identity,
            "states": self._states,
            "seconds": self.earlier_seconds + time.monotonic() - self._started,
            "forward_images": self._meter.forward_images - self._begun[0],
            "backward_images": self._meter.backward_images - self._begun[1],
        }
        torch.save(whole, stream)
        try:
            write_whole(self._path, stream.getvalue())
        except OSError as error:
            raise UsageError(
                f"{self._path}: what an interrupted run needs cannot be written ({error.strerror or error}); "
                "make room, then call again: it goes on after the last whole epoch"
            ) from None

    def discard(self) -> None:
        """Remove the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        """What the file holds; nothing where there is none, it is of another run, or it cannot be read."""
        if self._path is None or not self._path.is_file():
            return {}
        try:
            saved = torch.load(io.BytesIO(self._path.read_bytes()), map_location="cpu", weights_only=True)
        except Exception:  # whatever a damaged file makes torch raise: the run starts from the beginning
            return {}
        return saved if isinstance(saved, dict) and saved.get("identity") == self._identity else {}


def identify(model: SplitModel, data: CleanData, settings: dict[str, Scalar]) -> str:
    """A fingerprint of a run: same network, normalisation, images, settings and versions give the same text."""
    versions = [FORMAT, banaudit.__version__, str(torch.__version__)]
    told = [settings, versions, str(data.images.device), model.logit_scale]
    digest = hashlib.sha256(json.dumps(told).encode())
    # No state dict holds the normalisation: the same weights behind another one are another model.
    own = (*model.state_dict().values(), model.mean, model.std)
    for tensor in (*own, data.labels, data.images.sum(dim=(1, 2, 3), dtype=torch.float64)):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
