"""Reading a checkpoint without running anything that is in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from banaudit.checkpoints.containers import (
    MAX_HEADER_BYTES,
    MAX_MEMBERS,
    Format,
    Recognised,
    memory_allowance,
    open_torch_archive,
    recognise,
)
from banaudit.checkpoints.pickles import MAX_PICKLE_BYTES, Listing, follow_pickle, texts_in_list
from banaudit.checkpoints.weights import (
    TOP_LEVEL,
    Candidate,
    TidyWeights,
    choose_state_dict,
    find_state_dicts,
    tidy,
)
from banaudit.checkpoints.wording import RESAVE, enumerated, printable
from banaudit.errors import CheckpointError, UnknownFormatError, UnsafeCheckpointError, UsageError
from banaudit.results import CheckpointFacts, Inspection
from banaudit.shapes import COUNTER

MAX_FILE_BYTES = 16 * 2**30
"""Larger files are not read into memory. The largest public classifiers are below 8 GiB."""

MIN_TORCH = (2, 10)
"""Before this version the weights-only reader could be made to corrupt memory (CVE-2026-24747)."""

_NUMPY_DTYPES = "?bBhHiIlLqQefdgSU"
"""NumPy's letters for booleans, integers, floats, bytes and text: dtypes without parts."""


FileFormat = Literal["torch zip", "torch legacy", "safetensors"]


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file, under the names that a bare network uses.

    Args:
        facts: Where they came from.
        weights: Name -> tensor on the CPU, in the file's order and data type.
        original_keys: Name -> the key or keys of the file's state dict that it was made of.
        hints: What else the file says of the model, e.g. BackdoorBench's ``model_name`` and ``num_classes``. Claims of
            whoever wrote the file: fit for a guess, never for a decision.
    """

    facts: CheckpointFacts
    weights: dict[str, Tensor]
    original_keys: dict[str, tuple[str, ...]]
    hints: dict[str, str | int]


@dataclass(frozen=True)
class Contents:
    """Everything that is in a file, for a writer that puts other weights in their place.

    Args:
        data: The file's bytes.
        format: Its container.
        tree: Nested mappings, lists, plain values and tensors; of this reading alone, free to be changed.
        candidate: The weights' place in it.
    """

    data: bytes
    format: FileFormat
    tree: object
    candidate: Candidate


def read_contents(data: bytes, name: str, *, state_key: str | None = None) -> Contents:
    """Read all of a checkpoint, as :func:`read_checkpoint` does and with the same refusals.

    Args:
        data: The file's bytes.
        name: What to call it in a message.
        state_key: Dotted place of the weights in the file; needed only where there are several.
    """
    tree, file_format = _load(data, recognise(data), name)
    candidate = choose_state_dict(tree, state_key, name)
    _check_total(candidate, len(data), name)
    return Contents(data, file_format, tree, candidate)


def read_checkpoint(path: Path, *, state_key: str | None = None) -> Checkpoint:
    """Read the weights of a checkpoint; its format is recognised by content.

    Args:
        path: A file: torch zip, legacy torch or safetensors.
        state_key: Dotted place of the weights in the file; needed only where there are several.

    Returns:
        Weights with finite values and wrappers' prefixes stripped, and where they came from.

    Raises:
        UnsafeCheckpointError: Loading it would run code. Nothing was run.
        UnknownFormatError: It is no checkpoint, or is empty, cut short, damaged or a bomb.
        CheckpointError: It cannot be read, or its weights are ambiguous, missing or not finite.
        UsageError: This installation of torch cannot read pickles safely.
    """
    name = _name(path)
    data = read_bytes(path)
    contents = read_contents(data, name, state_key=state_key)
    candidate = contents.candidate
    tidied = tidy(candidate, name)
    facts = CheckpointFacts(
        path=name,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        format=contents.format,
        state_key=None if candidate.key == TOP_LEVEL else printable(candidate.key),
        stripped_prefixes=tidied.stripped_prefixes,
        folded=tidied.folded,
        ignored=(*_other_entries(contents.tree, candidate), *tidied.ignored),
        tensors=len(tidied.weights),
        parameters=_count_parameters(tidied),
    )
    hints = _hints(_safetensors_metadata(data) if contents.format == "safetensors" else contents.tree)
    return Checkpoint(facts, tidied.weights, tidied.original_keys, hints)


def inspect_checkpoint(path: Path, *, state_key: str | None = None) -> Inspection:
    """Say what is in a file; whatever it is, nothing in it is run.

    Args:
        path: Any file.
        state_key: Dotted place of the weights in the file; none: found. Where there are several, they are listed.

    Returns:
        Its format and content. A file that cannot be loaded is described, not refused; architecture and classes are
        left open.

    Raises:
        CheckpointError: The path cannot be read at all.
        UsageError: This installation of torch cannot read pickles safely.
    """
    name = _name(path)
    data = read_bytes(path)
    recognised = recognise(data)
    offenders: tuple[str, ...] = ()
    unsafe = False
    candidates: list[Candidate] = []
    others: tuple[str, ...] = ()
    tidied = TidyWeights({}, {})
    ambiguous = False
    try:
        tree, _ = _load(data, recognised, name)
        candidates = find_state_dicts(tree)
        ambiguous = state_key is None and len(candidates) > 1
        candidate = choose_state_dict(tree, state_key, name)
        others = _other_entries(tree, candidate)
        _check_total(candidate, len(data), name)
        tidied = tidy(candidate, name)
    except UnsafeCheckpointError as error:
        reason, offenders, unsafe = str(error), error.offenders, True
    except CheckpointError as error:
        reason = str(error)
    else:
        reason = f"{len(tidied.weights)} tensors can be loaded without running anything from the file"
    return Inspection(
        path=name,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        format=recognised.format.value,
        loadable=ambiguous or bool(tidied.weights),
        reason=reason,
        unsafe=unsafe,
        unsafe_globals=offenders,
        state_keys=tuple(printable(each.key) for each in candidates),
        keys=tuple(
            (key, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for key, tensor in tidied.weights.items()
        ),
        stripped_prefixes=tidied.stripped_prefixes,
        parameters=_count_parameters(tidied),
        other_entries=(*others, *tidied.ignored),
    )


# -- the file ------------------------------------------------------------------------------------------------------


def _name(path: Path) -> str:
    return printable(str(path), limit=1000)


def read_bytes(path: Path) -> bytes:
    """The file's bytes, read once: what is analysed is what is loaded."""
    name = _name(path)
    try:
        if path.is_dir():
            raise CheckpointError(f"{name}: expected a checkpoint file, found a directory; name the file inside it")
        if not path.exists():
            raise CheckpointError(f"{name}: no such file")
        if not path.is_file():
            raise CheckpointError(f"{name}: expected a regular file, found a device, pipe or socket")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CheckpointError(f"{name}: {size} bytes is more than the {MAX_FILE_BYTES} that are read into memory")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read: {error.strerror or type(error).__name__}") from error
    except ValueError as error:  # a path with a NUL character
        raise CheckpointError(f"{name}: is no valid path") from error
    except MemoryError as error:
        raise CheckpointError(f"{name}: does not fit into memory") from error


def _load(data: bytes, recognised: Recognised, name: str) -> tuple[object, FileFormat]:
    """The file's content as nested mappings of plain values and tensors, and its format."""
    if recognised.format is Format.SAFETENSORS:
        return _load_safetensors(data, name), "safetensors"
    if recognised.format is Format.TORCH_ZIP:
        return _load_torch_zip(data, name), "torch zip"
    if recognised.format is Format.TORCH_LEGACY:
        return _load_torch_legacy(data, name), "torch legacy"
    raise _refusal(data, recognised, name)


def _refusal(data: bytes, recognised: Recognised, name: str) -> CheckpointError:
    """Why a file of this kind is not read."""
    file_format = recognised.format
    if file_format is Format.PICKLE:
        _check_offenders([follow_pickle(data)], name)
        return UnknownFormatError(f"{name}: expected a torch file, found a Python pickle of something else; {RESAVE}")
    if file_format in (Format.TORCHSCRIPT, Format.EXPORTED, Format.PACKAGE):
        return UnsafeCheckpointError(f"{name}: refused, a {file_format} is a program and not weights alone; {RESAVE}")
    if file_format is Format.TORCH_TAR:
        return UnknownFormatError(f"{name}: written by torch before 0.1.10, which cannot be read safely; {RESAVE}")
    return UnknownFormatError(f"{name}: expected a torch file or safetensors, found {recognised.detail}")


# -- safetensors ---------------------------------------------------------------------------------------------------


def _load_safetensors(data: bytes, name: str) -> dict[str, object]:
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise UnknownFormatError(f"{name}: refused, its safetensors header claims {header_bytes} bytes")
    if header_bytes + 8 > len(data):
        raise UnknownFormatError(f"{name}: the safetensors file is cut short; fetch the file again")
    if data.count(b'"data_offsets"', 8, 8 + header_bytes) > MAX_MEMBERS:
        raise UnknownFormatError(f"{name}: refused, its safetensors header lists more than {MAX_MEMBERS} tensors")
    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        reason = printable(str(error).partition("\n")[0])
        raise UnknownFormatError(f"{name}: the safetensors file is cut short or damaged ({reason})") from error


def _safetensors_metadata(data: bytes) -> object:
    """The header's free texts; the library has read and accepted the same header."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header.get("__metadata__")


# -- torch files ---------------------------------------------------------------------------------------------------


def _load_torch_zip(data: bytes, name: str) -> object:
    archive = open_torch_archive(data, name)
    if len(archive.pickle) > MAX_PICKLE_BYTES:
        raise UnknownFormatError(
            f"{name}: refused, its pickle has {len(archive.pickle)} bytes, expected a few thousand"
        )
    listing = follow_pickle(archive.pickle)
    _check_listings([listing], name)
    if listing.end != len(archive.pickle):
        raise UnknownFormatError(
            f"{name}: damaged, its pickle is followed by {len(archive.pickle) - listing.end} bytes"
        )
    _check_claims(listing, len(data), name)
    for key, claimed in listing.storages.items():
        found = len(archive.storages.get(key, b""))
        if found != claimed:
            raise UnknownFormatError(
                f"{name}: storage {printable(key)} should have {claimed} bytes, found {found}: cut short or damaged"
            )
    return _torch_load(archive.repacked(listing.storages), name)


def _load_torch_legacy(data: bytes, name: str) -> object:
    """A legacy file is five pickles (magic number, protocol, system, content, storage keys), then the storages."""
    listings: list[Listing] = []
    ends = [0]
    for _ in range(5):
        listings.append(follow_pickle(data, ends[-1]))
        ends.append(listings[-1].end)
        if ends[-1] < 0:
            break
    _check_listings(listings, name)
    content = listings[3]
    _check_claims(content, len(data), name)
    # A storage that the list of keys leaves out would keep whatever happened to be in memory.
    if sorted(texts_in_list(data, ends[4]) or []) != sorted(content.storages):
        raise UnknownFormatError(f"{name}: damaged, its list of storages is not that of its tensors")
    expected = ends[5] + sum(8 + claimed for claimed in content.storages.values())
    if expected > len(data):
        raise UnknownFormatError(f"{name}: cut short, {expected - len(data)} bytes of weights are missing")
    return _torch_load(BytesIO(data), name)


def _check_listings(listings: list[Listing], name: str) -> None:
    """Refuse pickles that would run code, then those that are damaged or of a kind that is not read."""
    _check_offenders(listings, name)
    for listing in listings:
        if listing.problem is not None:
            cut_short = listing.end < 0
            raise (UnknownFormatError if cut_short else CheckpointError)(f"{name}: cannot be loaded, {listing.problem}")


def _check_offenders(listings: list[Listing], name: str) -> None:
    """Refuse pickles that name anything outside the short list of permitted globals."""
    called = {offender: None for listing in listings for offender in listing.called}
    named = [offender for listing in listings for offender in listing.offenders if offender not in called]
    named.sort(key=lambda offender: offender.startswith("torch."))  # the maker's own classes tell more
    offenders = [printable(offender) for offender in (*called, *named)]
    if not offenders:
        return
    if any(listing.top and listing.top not in called for listing in listings):
        kind = "module" if any(offender.startswith("torch.nn.") for offender in named) else "object"
        what = f"it is a whole pickled {kind} and loading it would run the code of {enumerated(named)}"
        what += f" and call {enumerated(called)}" if called else ""
    elif called:
        what = f"loading it would call {enumerated(called)}"
    else:
        what = f"besides weights it holds pickled objects, and loading them would run the code of {enumerated(named)}"
    # All names are kept for the report, but a crafted pickle can have a million.
    raise UnsafeCheckpointError(f"{name}: refused, {what}; {RESAVE}", tuple(offenders[:1000]))


def _check_claims(listing: Listing, file_bytes: int, name: str) -> None:
    """Refuse a small file whose tensors would be large: strides of zero repeat one number at no cost to the file."""
    if listing.tensor_bytes > memory_allowance(file_bytes):
        raise UnknownFormatError(
            f"{name}: refused, a file of {file_bytes} bytes would take {listing.tensor_bytes} bytes of memory"
        )


def _check_total(candidate: Candidate, file_bytes: int, name: str) -> None:
    """The same for one tensor under very many names."""
    values = candidate.entries.values()
    total = sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
    if total > memory_allowance(file_bytes):
        raise UnknownFormatError(f"{name}: refused, a file of {file_bytes} bytes would take {total} bytes of memory")


def _torch_load(stream: BytesIO, name: str) -> object:
    """The only place where torch reads a pickle, restricted to weights and a few plain classes.

    The caller has followed the same bytes before and found nothing outside the permitted list.
    """
    _require_safe_torch()
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_classes()):
            warnings.simplefilter("ignore")
            return torch.load(stream, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:
        # A crafted pickle can raise anything inside torch's reader; torch's advice to turn its protection off is cut.
        found = re.search(r"WeightsUnpickler error: ([^\n.]*)", str(error))
        reason = printable(found[1]) if found else type(error).__name__
        raise CheckpointError(f"{name}: torch's weights-only reader cannot load it ({reason}); {RESAVE}") from error


def _require_safe_torch() -> None:
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < MIN_TORCH:
        raise UsageError(
            f"torch {torch.__version__} cannot read pickles safely (CVE-2026-24747): "
            f"install torch {'.'.join(map(str, MIN_TORCH))} or later, or use safetensors files"
        )
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise UsageError("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set, which lets checkpoints run code: unset it")


def _plain_classes() -> list[Any]:
    """Classes besides torch's own that a checkpoint may hold: NumPy's numbers and arrays, and parsed arguments."""
    classes: list[Any] = [Namespace, np.ndarray, np.dtype]
    classes += {type(np.dtype(letter)) for letter in _NUMPY_DTYPES}
    for made in (np.zeros(1), np.float64(0)):
        builder: Any = made.__reduce__()[0]
        # NumPy 2 moved its core; files carry either spelling, and torch compares the spelling.
        classes += [(builder, f"numpy.{core}.multiarray.{builder.__name__}") for core in ("core", "_core")]
    return classes


# -- what else is there --------------------------------------------------------------------------------------------


def _other_entries(tree: object, candidate: Candidate) -> tuple[str, ...]:
    """Names of the entries beside the weights on the way to them, dotted."""
    others: list[str] = []
    node = tree
    for depth, taken in enumerate(candidate.path):
        entries = dict(dict.items(node)) if isinstance(node, dict) else {}
        before = candidate.path[:depth]
        others += [printable(".".join((*before, str(key)))) for key in entries if str(key) != taken]
        node = entries.get(taken)
    if candidate.prefix and isinstance(node, dict):
        beside = (str(key) for key in dict.keys(node) if key not in candidate.entries)
        first_names = dict.fromkeys(key.partition(".")[0] for key in beside)
        others += [printable(".".join((*candidate.path, name))) for name in first_names]
    return tuple(others[:100])


def _hints(tree: object) -> dict[str, str | int]:
    """Short texts and whole numbers beside the weights; those at the top outrank those among the settings."""
    hints: dict[str, str | int] = {}
    if not isinstance(tree, dict):
        return hints
    top = dict(dict.items(tree))
    settings = [top.get(key) for key in ("args", "opt", "config", "hyper_parameters", "hparams")]
    for entries in (top, *(vars(entry) if isinstance(entry, Namespace) else entry for entry in settings)):
        if isinstance(entries, Mapping):
            for key, value in list(dict.items(entries))[:1000]:  # type: ignore[arg-type]
                scalar = value[0] if key == "img_size" and isinstance(value, list | tuple) and value else value
                if isinstance(key, str) and type(scalar) in (int, str) and _is_short(key) and _is_short(str(scalar)):
                    hints.setdefault(key, scalar)
    return hints


def _is_short(text: str) -> bool:
    return len(text) <= 200 and text.isprintable()


def _count_parameters(tidied: TidyWeights) -> int:
    """Elements of all weights; BatchNorm's running statistics and counters are no parameters."""
    statistics = ("running_mean", "running_var", COUNTER)
    return sum(tensor.numel() for key, tensor in tidied.weights.items() if not key.endswith(statistics))
