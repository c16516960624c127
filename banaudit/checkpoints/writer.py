"""Other weights in the place of those of a file, and everything else as it was: a drop-in for the file that came in."""

from __future__ import annotations

import hashlib
import io
import json
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from banaudit.checkpoints.reader import Checkpoint, Contents, read_bytes, read_contents
from banaudit.checkpoints.weights import Candidate, TidyWeights, find_state_dicts, tidy
from banaudit.checkpoints.wording import printable
from banaudit.errors import CheckpointError, UsageError
from banaudit.shapes import COUNTER, Weights
from banaudit.whole_files import is_same_file, shortened, try_writing, write_together

LOOSE_NUMBERS = 64
"""Outside the weights, a tensor with more numbers than this, of whatever type, could be a copy of some of them."""

LOOSE_ITEMS = 10_000
"""The same of small tensors, plain numbers and characters side by side: losses of every epoch, a configuration as text
and class names are fewer."""

LOOSE_TOTAL = 3 * LOOSE_ITEMS
"""The same of all that lies together in a mapping or a list, spread over smaller ones, as keys or in sets."""

NUMBER_BYTES = 8
"""Python's whole numbers and NumPy's texts have no end: they count as one for each so many bytes."""

PAIR = 2
"""Keys of a pruned weight in the file: X_orig and X_mask."""

MAX_DEPTH = 50
"""Levels of nesting below which everything is dropped unseen."""

_CONTAINERS = (dict, Namespace, list, tuple, set, frozenset)

MAX_VERSIONS = 8
"""Entries that a module has in a state dict's ``_metadata``, at most; ordinary ones have one."""

METADATA_KEY = "banaudit"
"""Where safetensors keep the provenance."""


@dataclass(frozen=True)
class Rewritten:
    """A file with other weights, not written yet.

    Args:
        content: Its bytes.
        replaced: Places of other copies of the weights, which are the new ones now.
        dropped: Places of entries that could carry the old weights on, left out or emptied.
    """

    content: bytes
    replaced: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the bytes."""
        return hashlib.sha256(self.content).hexdigest()


def beside(out: Path) -> Path:
    """Where the account of a written checkpoint goes: its name and ``.json``."""
    return out.with_name(f"{out.name}.json")


def state_of(out: Path) -> Path:
    """Where the state of an interrupted repair waits: hidden, beside the output."""
    return out.with_name(f".{shortened(out.name)}.purify")


def check_out(source: Path, out: Path, *, force: bool) -> None:
    """Make sure that a checkpoint can be written, before any work is done.

    Args:
        source: The input, which neither the checkpoint nor its account nor the state may overwrite.
        out: Where the output goes.
        force: Whether existing files may be replaced.

    Raises:
        UsageError: It cannot, or must not without ``force``.
    """
    name = printable(str(out), limit=1000)
    state = state_of(out)
    for path in (out, beside(out), state):
        shown = printable(str(path), limit=1000)
        try:
            there, is_file, is_input = path.exists(), path.is_file(), is_same_file(path, source)
        except OSError as error:  # too long a name
            raise UsageError(f"{shown}: cannot be written ({error.strerror or error}); give another path") from None
        if is_input:
            raise UsageError(f"{shown}: is the input itself, which is never changed; give another path")
        if there and not is_file:
            raise UsageError(f"{shown}: expected a file's name, found a folder or a device")
        if there and not force and path != state:
            raise UsageError(f"{shown}: exists already; give another path, or --force")
    try:
        for path in (out, beside(out), state):
            try_writing(path)
    except OSError as error:
        raise UsageError(
            f"{name}: cannot be written ({error.strerror or error}); choose a folder that exists and is writable"
        ) from None


def as_stored(checkpoint: Checkpoint, weights: Weights) -> Weights:
    """Weights as the file can hold them, so that what is judged is what will be written.

    They are rounded to its data types, and zero where it has pruned them.

    Args:
        checkpoint: The file.
        weights: Name -> tensor, the names of ``checkpoint.weights``.

    Raises:
        CheckpointError: A weight is too large for its data type.
    """
    stored: Weights = {}
    for name, old in checkpoint.weights.items():
        if name.endswith(COUNTER) and old.is_floating_point():
            stored[name] = torch.where(old.float().isnan(), torch.zeros_like(old), old)  # a new one might overflow
            continue
        new = weights[name].detach().cpu().to(old.dtype)
        if new.is_floating_point() and not bool(new.float().isfinite().all()):
            raise CheckpointError(
                f"{checkpoint.facts.path}: the new {printable(name)} does not fit its data type {old.dtype}; "
                "ask for the checkpoint in float32"
            )
        if len(checkpoint.original_keys[name]) == PAIR:
            new = torch.where(old == 0, torch.zeros_like(new), new)
        stored[name] = new
    return stored


def rewrite(
    source: Path,
    checkpoint: Checkpoint,
    weights: Weights,
    *,
    state_key: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Rewritten:
    """The file with other weights: same container, wrapper keys, prefixes, key order, data types and other entries.

    Pruned weights stay pairs of ``X_orig`` and ``X_mask``. Any other copy of the weights is replaced if it has the same
    names and shapes; whatever else has more than :data:`LOOSE_NUMBERS` numbers (optimizer state, moving averages in
    lists), or all in all more than :data:`LOOSE_TOTAL`, is dropped, as it could carry the old weights on.

    Args:
        source: The file that ``checkpoint`` was read from.
        checkpoint: What was read.
        weights: Name -> tensor for every name of ``checkpoint.weights``, as from :func:`as_stored`.
        state_key: Where in the file the weights are, if the user said so.
        provenance: Kept inside where the format has a place for it (safetensors).

    Returns:
        The new file's bytes; read again, they give exactly ``weights``.

    Raises:
        CheckpointError: The file is another than the one that was read, or cannot be rewritten.
    """
    name = checkpoint.facts.path
    data = read_bytes(source)
    if hashlib.sha256(data).hexdigest() != checkpoint.facts.sha256:
        raise CheckpointError(f"{name}: has changed since it was read; start again")
    contents = read_contents(data, name, state_key=state_key)
    if contents.format == "safetensors":
        result = _safetensors(contents, checkpoint, weights, provenance or {})
    else:
        result = _torch_file(contents, checkpoint, weights)
    written = tidy(read_contents(result.content, name, state_key=state_key).candidate, name).weights
    if written.keys() != weights.keys() or not all(_same(written[key], weights[key]) for key in weights):
        raise CheckpointError(f"{name}: cannot be rewritten, the result would not hold the new weights; {_ADVICE}")
    return result


_ADVICE = "save its weights alone with torch.save(model.state_dict(), ...) and repair that file"


def write_checkpoint(out: Path, rewritten: Rewritten, account: str, *, force: bool) -> None:
    """Write the checkpoint and, beside it, the account of how it came about; both, or neither.

    Args:
        out: Where to.
        rewritten: The file.
        account: JSON.
        force: Whether existing files may be replaced.

    Raises:
        UsageError: A file exists, or cannot be written (no such folder, no permission, no space); what was there
            before is as it was.
    """
    for path in (out, beside(out)):
        if path.exists() and not force:
            raise UsageError(f"{printable(str(path), limit=1000)}: exists already; give another path, or --force")
    try:
        # The account first: a checkpoint without it would be one of unknown origin.
        write_together(((beside(out), account.encode()), (out, rewritten.content)))
    except OSError as error:
        left = "the old file is unchanged" if out.exists() else "nothing was left there"
        raise UsageError(
            f"{printable(str(out), limit=1000)}: cannot be written ({error.strerror or error}); {left}; "
            "make room or choose another folder"
        ) from None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


# -- safetensors ---------------------------------------------------------------------------------------------------


def _safetensors(
    contents: Contents, checkpoint: Checkpoint, weights: Weights, provenance: Mapping[str, Any]
) -> Rewritten:
    """The same header and layout with other bytes in the tensors' places, and without what could be a copy."""
    written, replaced = _replace_all(contents, checkpoint, weights)
    dropped: list[str] = []
    kept = dict(_items(_Cleaning(written, dropped).clean(contents.tree)))
    new = written[id(contents.tree)]
    data = contents.data
    end = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:end])
    numbers = bytearray()
    new_header: dict[str, Any] = {}
    for key in sorted(kept, key=lambda key: header[key]["data_offsets"]):
        begin, stop = header[key]["data_offsets"]
        new_header[key] = {**header[key], "data_offsets": [len(numbers), len(numbers) + stop - begin]}
        numbers += _bytes_of(kept[key]) if key in new else data[end + begin : end + stop]
    metadata = header.get("__metadata__") or {}
    if sum(len(key) + len(value) for key, value in metadata.items()) > LOOSE_TOTAL:
        metadata = {}
        dropped.append("__metadata__ (emptied)")
    metadata = {**metadata, METADATA_KEY: json.dumps(provenance)}
    ordered = {key: new_header[key] for key in header if key in new_header}
    text = json.dumps({"__metadata__": metadata, **ordered}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at multiples of eight
    return Rewritten(len(text).to_bytes(8, "little") + text + bytes(numbers), replaced, tuple(dropped))


def _bytes_of(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


# -- torch files ---------------------------------------------------------------------------------------------------


def _torch_file(contents: Contents, checkpoint: Checkpoint, weights: Weights) -> Rewritten:
    written, replaced = _replace_all(contents, checkpoint, weights)
    dropped: list[str] = []
    tree = _Cleaning(written, dropped).clean(contents.tree)
    stream = io.BytesIO()
    torch.save(tree, stream, _use_new_zipfile_serialization=contents.format == "torch zip")
    return Rewritten(stream.getvalue(), replaced, tuple(dropped))


# -- copies --------------------------------------------------------------------------------------------------------

_Written = dict[int, set[str]]
"""Identity of a mapping in the file -> its keys that hold new weights."""


def _replace_all(contents: Contents, checkpoint: Checkpoint, weights: Weights) -> tuple[_Written, tuple[str, ...]]:
    """Put the new weights into their place and into every copy of the old ones; where they are, and the copies."""
    chosen = contents.candidate
    written: _Written = {}
    replaced: list[str] = []

    def write(place: Candidate, original_keys: dict[str, tuple[str, ...]]) -> bool:
        node = _follow(contents.tree, place.path)
        keys = {key for keys in original_keys.values() for key in keys}
        known = written.setdefault(id(node), set())
        if known & keys:
            return False  # the same mapping in a second place of the file
        _replace(node, original_keys, weights)
        known |= keys
        return True

    write(chosen, checkpoint.original_keys)
    for other in find_state_dicts(contents.tree):
        twin = _twin(other, weights, checkpoint.facts.path)
        if twin is not None and write(other, twin.original_keys):
            replaced.append(printable(other.key))
    return written, tuple(replaced)


def _twin(other: Candidate, weights: Weights, name: str) -> TidyWeights | None:
    """Another state dict as names and tensors, if all of it is of the same names and shapes; none: it is not."""
    try:
        tidied = tidy(other, name)
    except CheckpointError:
        return None
    fits = all(key in weights and weights[key].shape == tensor.shape for key, tensor in tidied.weights.items())
    return tidied if fits else None


def _new_entries(original_keys: dict[str, tuple[str, ...]], old: Mapping[Any, Any], weights: Weights) -> Weights:
    """Key in the file -> new tensor, of the old one's data type."""
    entries: Weights = {}
    for name, keys in original_keys.items():
        new = weights[name]
        if len(keys) == PAIR:
            mask = old[keys[1]].to(torch.float32)
            new = torch.where(mask == 0, 0.0, new.to(torch.float32) / torch.where(mask == 0, 1.0, mask))
        before = old[keys[0]]
        entries[keys[0]] = new.to(before.dtype) if isinstance(before, Tensor) else new
    return entries


def _replace(node: object, original_keys: dict[str, tuple[str, ...]], weights: Weights) -> None:
    """Put new weights into a state dict, each entry of the kind that it was."""
    old = dict(_items(node))
    for key, tensor in _new_entries(original_keys, old, weights).items():
        before = old[key]
        if not isinstance(before, Tensor):
            _set(node, key, int(tensor))
            continue
        value = torch.empty_like(before, requires_grad=False).copy_(tensor)  # in the memory layout of the old one
        if isinstance(before, nn.Parameter):
            value = nn.Parameter(value, requires_grad=before.requires_grad)
        _set(node, key, value.requires_grad_(before.requires_grad))


class _Cleaning:
    """Takes out of a file's content all that could be a copy of the old weights; the new ones stay.

    Mappings and lists are changed in place, so that what the file has in two places stays one.

    Args:
        written: Where the new weights are.
        dropped: Receives the places of what was taken out.
    """

    def __init__(self, written: _Written, dropped: list[str]) -> None:
        self._written = written
        self._dropped = dropped
        self._cleaned: dict[int, object] = {}

    def clean(self, node: object, path: tuple[str, ...] = ()) -> object:
        """The node, cleaned; a tuple is a new one, and so is a tensor that was a view of more than it showed.

        Args:
            node: Anything in the file.
            path: Keys that lead there.
        """
        if isinstance(node, Tensor):
            return node.clone() if node.untyped_storage().nbytes() > node.numel() * node.element_size() else node
        if not isinstance(node, dict | Namespace | list | tuple):
            return node
        if id(node) not in self._cleaned:
            self._cleaned[id(node)] = node  # for what contains itself
            self._cleaned[id(node)] = self._without_copies(node, path)
        return self._cleaned[id(node)]

    def _without_copies(self, node: object, path: tuple[str, ...]) -> object:
        new = self._written.get(id(node), set())
        children = [(key, value) for key, value in _items(node) if key not in new]
        too_many = sum(_size(value) for _, value in children if not _is_large(value)) > LOOSE_ITEMS
        large = {key for key, value in children if _is_large(value) or (too_many and _size(value))}
        if isinstance(node, list | tuple):
            return self._sequence(node, path, children, empty=bool(large))
        is_optimizer = {"state", "param_groups"} <= {key for key, _ in children if isinstance(key, str)}
        for key, value in children:
            place = (*path, str(key))
            if key in large or len(place) > MAX_DEPTH:
                self._drop(node, key, place)
            elif is_optimizer and key == "state" and _items(value):
                _set(node, key, {})
                self._dropped.append(f"{printable('.'.join(place))} (emptied)")
            else:
                _set(node, key, self.clean(value, place))
        self._drop_the_largest(node, path)
        if isinstance(node, OrderedDict) and vars(node):
            self._clean_attributes(node, path)
        return node

    def _sequence(
        self,
        node: list[object] | tuple[object, ...],
        path: tuple[str, ...],
        children: list[tuple[Any, Any]],
        *,
        empty: bool,
    ) -> object:
        """The same sequence, emptied if asked to, too deep or, all in all, too large."""
        cleaned = (
            [] if empty or len(path) > MAX_DEPTH else [self.clean(value, (*path, str(key))) for key, value in children]
        )
        if len(cleaned) < len(children) or self._loose(cleaned) > LOOSE_TOTAL:
            self._dropped.append(f"{printable('.'.join(path))} (emptied)")
            return type(node)()
        if isinstance(node, list):
            node[:] = cleaned
            return node
        return node if all(new is old for new, (_, old) in zip(cleaned, children, strict=True)) else tuple(cleaned)

    def _drop_the_largest(self, node: object, path: tuple[str, ...]) -> None:
        """Of the entries of a mapping, until the rest is small enough; the way to new weights stays."""
        new = self._written.get(id(node), set())
        values = {key: value for key, value in _items(node) if key not in new}
        sizes = {key: self._loose(key) + self._loose(value) for key, value in values.items()}
        total = sum(sizes.values())
        for key in sorted(sizes, key=lambda key: -sizes[key]):
            if total <= LOOSE_TOTAL:
                break
            if not self._holds_weights(values[key]):
                self._drop(node, key, (*path, str(key)))
                total -= sizes[key]

    def _clean_attributes(self, node: OrderedDict[Any, Any], path: tuple[str, ...]) -> None:
        """Of what an ordered dictionary carries besides its entries, torch's versions of the modules stay."""
        for name, value in list(vars(node).items()):
            delattr(node, name)
            versions = _versions(value, node) if name == "_metadata" else None
            if versions is None:
                self._dropped.append(printable(".".join((*path, name))))
            else:
                setattr(node, name, versions)

    def _drop(self, node: object, key: Any, place: tuple[str, ...]) -> None:
        _delete(node, key)
        self._dropped.append(printable(".".join(place)))

    def _holds_weights(self, node: object) -> bool:
        return any(id(part) in self._written for part in self._parts(node))

    def _loose(self, node: object) -> int:
        """How many numbers and characters are in it, the new weights not counted; containers count as one each.

        It stops counting where it is too much anyway.
        """
        total = 0
        for part in self._parts(node):
            total += max(_size(part), int(isinstance(part, _CONTAINERS)))
            if total > LOOSE_TOTAL:
                break
        return total

    def _parts(self, node: object) -> Iterator[object]:
        """Everything in it with its keys, itself first, the new weights left out; what it holds twice comes once.

        Else lists that hold the same list twice, level upon level, would take for ever.
        """
        seen: set[int] = set()
        waiting = [node]
        while waiting:
            part = waiting.pop()
            if isinstance(part, _CONTAINERS):
                if id(part) in seen:
                    continue
                seen.add(id(part))
            yield part
            if isinstance(part, set | frozenset):
                waiting += part
                continue
            new = self._written.get(id(part), set())
            for key, value in _items(part):
                if key not in new:
                    waiting += [value] if isinstance(part, list | tuple) else [key, value]


def _versions(metadata: object, weights: Mapping[Any, Any]) -> OrderedDict[str, dict[str, Any]] | None:
    """What torch keeps beside a state dict, made anew: for each module by its name, small numbers; none: it is no such.

    A module may keep those of a part of it one level deeper, as spectral normalisation does.
    """
    if not isinstance(metadata, dict):
        return None
    modules = {""}
    for key in map(str, weights):
        parts = key.split(".")
        modules |= {".".join(parts[:count]) for count in range(1, len(parts))}
    anew: OrderedDict[str, dict[str, Any]] = OrderedDict()
    loose = 0  # numbers beyond a version for each module, and characters of modules without weights
    for name, versions in dict.items(metadata):
        plain = _plain(versions, deeper=True)
        if type(name) is not str or plain is None or (name.rpartition(".")[0] not in {"", *metadata}):
            return None
        anew[name] = plain
        loose += 0 if name in modules else len(name.rpartition(".")[2])
        loose += sum(len(key) for key in plain if key != "version") + max(0, len(plain) - 1)
    return anew if loose <= LOOSE_ITEMS else None


def _plain(versions: object, *, deeper: bool) -> dict[str, Any] | None:
    """A copy of a mapping of short names to small numbers, or to one more such mapping; none: it is another thing."""
    if not isinstance(versions, dict) or len(versions) > MAX_VERSIONS:
        return None
    anew: dict[str, Any] = {}
    for key, value in dict.items(versions):
        inner = _plain(value, deeper=False) if deeper and isinstance(value, dict) else None
        small = type(value) in (int, bool) and _size(value) == 1
        if type(key) is not str or len(key) > MAX_DEPTH or not (small or inner is not None):
            return None
        anew[key] = value if inner is None else inner
    return anew


def _is_large(value: object) -> bool:
    return _size(value) > (LOOSE_NUMBERS if isinstance(value, Tensor | np.ndarray) else LOOSE_ITEMS)


def _size(value: object) -> int:
    """How many numbers or characters a value holds by itself; what it contains counts where it is."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, np.ndarray | np.generic):
        return max(value.size, value.nbytes // NUMBER_BYTES)  # an entry may be a long text
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    if isinstance(value, int):
        return 1 + value.bit_length() // (8 * NUMBER_BYTES)
    return int(value is not None and not isinstance(value, _CONTAINERS))


def _items(node: object) -> list[tuple[Any, Any]]:
    # The classes' own methods: a mapping out of a pickle may carry attributes of these names.
    if isinstance(node, dict):
        return list(dict.items(node))
    if isinstance(node, Namespace):
        return list(vars(node).items())
    if isinstance(node, list | tuple):
        return list(enumerate(node))
    return []


def _follow(tree: object, path: tuple[str, ...]) -> object:
    node = tree
    for part in path:
        node = next(value for key, value in _items(node) if str(key) == part)
    return node


def _set(node: object, key: Any, value: object) -> None:
    if isinstance(node, OrderedDict):
        OrderedDict.__setitem__(node, key, value)
    elif isinstance(node, dict):
        dict.__setitem__(node, key, value)
    elif isinstance(node, Namespace):
        vars(node)[key] = value


def _delete(node: object, key: Any) -> None:
    if isinstance(node, OrderedDict):
        OrderedDict.__delitem__(node, key)
    elif isinstance(node, dict):
        dict.__delitem__(node, key)
    elif isinstance(node, Namespace):
        del vars(node)[key]
