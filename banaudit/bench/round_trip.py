"""Does a repaired file take the place of the one that came in? Every loadable checkpoint of a zoo, there and back.

Each is purified for one cheap epoch and the file that was written is read by plain torch code, as its user would do:
the same container, keys, order, shapes and data types, and a strict load into the network that the original fits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

import banaudit
from banaudit.architectures import load_network
from banaudit.audit import Subject
from banaudit.bench.code import CODE
from banaudit.bench.results_files import write_results
from banaudit.bench.workplace import Progress
from banaudit.bench.zoo import DATA_FOLDERS, ManifestEntry, read_factories, read_manifests
from banaudit.checkpoints import read_checkpoint
from banaudit.errors import BanauditError, UnsafeCheckpointError
from banaudit.mitigations import FineTuning
from banaudit.purify import purify
from banaudit.results import Record, Repair

CHEAP = FineTuning(epochs=1)
"""The repair: what it does to a backdoor is of no interest here."""


class RoundTripEntry(Record):
    """One checkpoint of a zoo, and the file that was written for it."""

    file: str = Field(description="Relative to the zoo.")
    problem: str = Field(default="", description="Why there is no repaired file, or what is wrong with it.")
    refused: bool = Field(default=False, description="Loading the file would run code; nothing of it was loaded.")
    container: str = Field(default="", description="Format of the original.")
    state_key: str | None = Field(default=None, description="Where in the file the weights are.")
    tensors: int = 0
    changed: int = Field(default=0, description="Tensors of the state dict that the repair changed.")
    dropped: tuple[str, ...] = Field(default=(), description="Entries left out, as they could carry the old weights.")
    same_container: bool = False
    same_wrapper: bool = Field(default=False, description="Entries beside the weights, in order, but for the dropped.")
    same_keys: bool = Field(default=False, description="Keys of the state dict, in order.")
    same_types: bool = Field(default=False, description="Shapes and data types.")
    strict: bool = Field(default=False, description="Loaded strictly into the network that the original fits.")

    @property
    def fits(self) -> bool:
        """Whether the written file is a drop-in."""
        return all((self.same_container, self.same_wrapper, self.same_keys, self.same_types, self.strict))


class RoundTripResults(Record):
    """Every checkpoint of a zoo, there and back."""

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["round-trip"] = "round-trip"
    images: int = Field(description="Most clean images of a repair.")
    seed: int
    tool_version: str
    torch_version: str
    code: str = Field(description="Digest of the code.")
    entries: tuple[RoundTripEntry, ...] = ()


def run_round_trip(
    zoo: Path,
    root: Path,
    path: Path,
    *,
    factories: Path | None = None,
    images: int = 300,
    seed: int = 0,
    device: str = "auto",
    only: str | None = None,
    progress: Progress | None = None,
) -> RoundTripResults:
    """Purify every checkpoint of a zoo and load what was written; the results file is whole after each.

    Args:
        zoo: Folder of the manifests; files are named relative to it.
        root: Folder of the data sets, see :data:`~banaudit.bench.zoo.DATA_FOLDERS`.
        path: Results file; replaced.
        factories: Folder of ``factories.json`` (code that the user trusts); none: recognised architectures only.
        images: Most clean images of a repair.
        seed: Of the repair.
        device: ``auto``, ``cpu`` or ``cuda``.
        only: Shell pattern of the files; none: all.
        progress: Told of each file.

    Raises:
        UsageError: The zoo, its factories or the results file cannot be used.
    """
    manifest = [entry for entry in read_manifests(zoo) if only is None or fnmatch(entry.file, only)]
    patterns = read_factories(factories)
    results = RoundTripResults(
        images=images, seed=seed, tool_version=banaudit.__version__, torch_version=str(torch.__version__), code=CODE
    )
    for number, entry in enumerate(manifest, start=1):
        arch = next((factory for pattern, factory in patterns.items() if fnmatch(entry.file, pattern)), None)
        made = _there_and_back(zoo, root, entry, arch, images, seed, device)
        results = results.model_copy(update={"entries": (*results.entries, made)})
        write_results(path, results)
        if progress is not None:
            progress(f"{number} of {len(manifest)}: {made.file}: {describe(made)}")
    return results


def describe(entry: RoundTripEntry) -> str:
    """One line for a terminal."""
    if entry.refused:
        return "refused"
    return "fits" if entry.fits else f"does not fit: {entry.problem or 'another form than the original'}"


def _there_and_back(
    zoo: Path, root: Path, entry: ManifestEntry, arch: str | None, images: int, seed: int, device: str
) -> RoundTripEntry:
    source = zoo / entry.file
    mean, std = entry.statistics
    subject = Subject(
        source,
        root / DATA_FOLDERS[entry.data],
        arch=arch,
        mean=mean,
        std=std,
        size=entry.preprocessing.get("size"),
        max_images=images,
        accuracy_floor=0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / source.name
        try:
            # No detectors: what a scan says is of no interest here, and may not decide whether a file is written.
            record = purify(
                subject, out, mitigation=CHEAP, detectors=(), max_drop=1.0, force=True, seed=seed, device=device
            )
        except UnsafeCheckpointError as refusal:
            return RoundTripEntry(file=entry.file, problem=_relative(refusal, zoo), refused=True)
        except BanauditError as problem:
            return RoundTripEntry(file=entry.file, problem=_relative(problem, zoo))
        return _hold_against(source, out, arch, entry, record)


def _hold_against(source: Path, out: Path, arch: str | None, entry: ManifestEntry, record: Repair) -> RoundTripEntry:
    old, new = _load(source), _load(out)
    place = record.parent.state_key
    one, other = _tensors(old, place), _tensors(new, place)
    problem = ""
    try:
        _load_strictly(source, other, arch, entry.preprocessing.get("size"))
    except RuntimeError as error:
        problem = str(error).partition("\n")[0]
    gone = {name for name in record.dropped if "." not in name}
    return RoundTripEntry(
        file=entry.file,
        problem=problem,
        container=old.container,
        state_key=place,
        tensors=len(one),
        changed=sum(not torch.equal(one[key], other[key]) for key in one if key in other),
        dropped=record.dropped,
        same_container=old.container == new.container,
        same_wrapper=[key for key in map(str, old.tree) if key not in gone] == [*map(str, new.tree)],
        same_keys=[*one] == [*other],
        same_types=all(
            key in other and (tensor.shape, tensor.dtype) == (other[key].shape, other[key].dtype)
            for key, tensor in one.items()
        ),
        strict=not problem,
    )


@dataclass(frozen=True)
class _Loaded:
    """A file as plain torch code sees it."""

    container: str
    tree: Mapping[Any, Any]


def _load(path: Path) -> _Loaded:
    """A checkpoint whose container is told by its first bytes, read without any of our code."""
    start = path.read_bytes()[:9]
    if start[8:9] == b"{":
        return _Loaded("safetensors", safetensors.torch.load_file(path))
    container = "torch zip" if start.startswith(b"PK") else "torch legacy"
    return _Loaded(container, torch.load(path, map_location="cpu", weights_only=True))


def _tensors(loaded: _Loaded, place: str | None) -> dict[str, Tensor]:
    """The state dict, by the keys of the file."""
    node: Any = loaded.tree
    for part in place.split(".") if place else ():
        node = node[part]
    return {key: value for key, value in node.items() if isinstance(value, Tensor)}


def _load_strictly(source: Path, tensors: Mapping[str, Tensor], arch: str | None, size: int | None) -> None:
    """Load tensors, by the file's own keys, into the network that the original file fits.

    Raises:
        RuntimeError: A key is missing or unexpected, or a shape is another.
    """
    checkpoint = read_checkpoint(source)
    loaded = load_network(checkpoint.weights, arch=arch, size=size)
    state: dict[str, Tensor] = {}
    for name, keys in checkpoint.original_keys.items():
        there = [tensors[key] for key in keys if key in tensors]
        if there:  # of a pruned weight, the values and their mask
            state[loaded.keys[name]] = there[0] if len(there) == 1 else there[0] * there[1]
    loaded.network.load_state_dict(state, strict=True)


def _relative(problem: BanauditError, zoo: Path) -> str:
    return str(problem).replace(f"{zoo}/", "")
