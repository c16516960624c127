"""From whatever a file contained to one flat mapping of names to tensors: found, renamed, folded, checked."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from banaudit.checkpoints.pickles import MAX_DIMENSIONS
from banaudit.checkpoints.wording import enumerated, printable
from banaudit.errors import CheckpointError
from banaudit.shapes import COUNTER

MAX_DEPTH = 8
"""Levels of nesting that are searched for weights. Real checkpoints have one to three."""

MAX_KEY = 1000
"""Characters of a key below which is searched: it is spelled out for every place that is found there."""

TOP_LEVEL = "(top level)"
"""What the place of a bare state dict is called."""

_WRAPPERS = ("model.", "net.", "network.", "backbone.", "1.")
"""Names under which a whole network sits inside another: Lightning modules, ``Sequential(Resize(), network)``."""

_COPY_MARKS = frozenset({"ema", "swa", "avg", "averaged", "average", "teacher", "shadow"})
"""Words in the first name of a copy that training keeps beside the network: ``model_ema``, ``ema_model``."""

_PLAIN = (int, float, bool, str, type(None))

_WEIGHT_NAMES = frozenset(
    {"running_mean", "running_var", COUNTER, "weight_orig", "weight_mask", "weight_g", "weight_v"}
)
_OPTIMIZER_NAMES = frozenset(
    {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta", "sum"}
)


@dataclass(frozen=True)
class Candidate:
    """A place in the file that looks like the weights of a network.

    Args:
        path: Keys that lead there; empty for the top level.
        entries: What is there.
        tensors: How many of its values are tensors.
        prefix: What the keys of the entries begin with where the mapping holds other networks too: ``model_ema.``.
    """

    path: tuple[str, ...]
    entries: dict[object, object]
    tensors: int
    prefix: str = ""

    @property
    def key(self) -> str:
        """The dotted place, as ``--state-key`` takes it."""
        return ".".join((*self.path, *self.prefix.split(".")[:-1])) or TOP_LEVEL

    def beginning_with(self, prefix: str) -> Candidate:
        """The entries whose keys begin so, as a place of their own."""
        entries = {key: value for key, value in self.entries.items() if str(key).startswith(prefix)}
        return Candidate(self.path, entries, _count_tensors(entries), prefix)


@dataclass(frozen=True)
class TidyWeights:
    """Weights under the names that a network uses.

    Args:
        weights: Name -> tensor on the CPU, in the file's order.
        original_keys: Name -> the key or keys of the state dict in the file that it was made of.
        stripped_prefixes: Prefixes that were taken off, outermost first.
        folded: Names of pruned weights that were multiplied with their masks.
        ignored: Entries of the state dict that are no tensors, in words.
    """

    weights: dict[str, Tensor]
    original_keys: dict[str, tuple[str, ...]]
    stripped_prefixes: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def find_state_dicts(tree: object) -> list[Candidate]:
    """Every place that looks like the weights of a network, innermost places first; optimizer state is none.

    Args:
        tree: The file's content: nested mappings, lists, numbers and tensors.
    """
    seen: set[int] = set()
    found = [network for candidate in _search(tree, (), seen) for network in _networks(candidate)]
    likely = [candidate for candidate in found if _looks_like_weights(candidate.entries)]
    return likely or found


def _search(node: object, path: tuple[str, ...], seen: set[int]) -> Iterator[Candidate]:
    """Mappings of mostly tensors. One that holds such mappings is their wrapper, unless it has weights beside them."""
    # Looked at before it is copied: a small file may refer to one mapping many times.
    if id(node) in seen or len(path) > MAX_DEPTH:
        return
    children = _children(node)
    if children is None:
        return
    seen.add(id(node))
    names = {key for key in children if isinstance(key, str)}
    if names and names <= _OPTIMIZER_NAMES:
        return
    inner = [
        candidate
        for key, value in children.items()
        if isinstance(key, int) or (isinstance(key, str) and len(key) <= MAX_KEY)
        for candidate in _search(value, (*path, str(key)), seen)
    ]
    yield from inner
    has_weights = _has_weights(children)
    # Weights by name count whatever else is there: one odd key must not hide them.
    if isinstance(node, list | tuple) or (not has_weights and (inner or len(names) != len(children))):
        return
    tensors = [value for value in children.values() if isinstance(value, Tensor)]
    mostly = 2 * len(tensors) >= len(children) or has_weights
    if mostly and any(value.ndim >= 2 and (value.is_floating_point() or value.is_complex()) for value in tensors):
        yield Candidate(path, children, len(tensors))


def _networks(candidate: Candidate) -> list[Candidate]:
    """The copies of one network that share a flat mapping, such as ``model.*`` and ``model_ema.*``; else the whole.

    Copies have matrices of the same names and shapes behind their first name, nothing else has matrices, and one of the
    names says what it is: equal blocks of one network have the same names and shapes too.
    """
    first_names: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, value in candidate.entries.items():
        name, dot, rest = str(key).partition(".")
        if dot and isinstance(value, Tensor) and value.ndim > 1:
            first_names.setdefault(name, {})[rest.removeprefix("module.")] = tuple(value.shape)
    largest = max(first_names.values(), key=len, default={})
    words = {word for name in first_names for word in name.lower().split("_")}
    if len(first_names) < 2 or any(shapes != largest for shapes in first_names.values()) or not words & _COPY_MARKS:
        return [candidate]
    return [candidate.beginning_with(f"{name}.") for name in first_names]


def _count_tensors(entries: Mapping[object, object]) -> int:
    return sum(isinstance(value, Tensor) for value in entries.values())


def _children(node: object) -> dict[object, object] | None:
    # dict.items, not node.items: an OrderedDict out of a pickle may carry attributes of its own.
    if isinstance(node, dict):
        return dict(dict.items(node))
    if isinstance(node, Namespace):
        return _children(vars(node))
    if isinstance(node, list | tuple):
        return {at: value for at, value in enumerate(node) if isinstance(value, dict | Namespace | list | tuple)}
    return None


def _has_weights(entries: Mapping[object, object]) -> bool:
    matrices = {key: value for key, value in entries.items() if isinstance(value, Tensor) and value.ndim > 1}
    return _looks_like_weights(matrices)


def _looks_like_weights(entries: Mapping[object, object]) -> bool:
    last = [str(key).rpartition(".")[2] for key, value in entries.items() if isinstance(value, Tensor)]
    return any(name in _WEIGHT_NAMES or name.endswith(("weight", "bias")) for name in last)


def choose_state_dict(tree: object, state_key: str | None, name: str) -> Candidate:
    """The one place to take the weights from.

    Args:
        tree: The file's content.
        state_key: Dotted place that the user named, or None to find it.
        name: What to call the file in a message.

    Raises:
        CheckpointError: There is no such place, or there are several and the user named none.
    """
    candidates = find_state_dicts(tree)
    listed = enumerated([f"{each.key} ({each.tensors} tensors)" for each in candidates], limit=8)
    if state_key is not None:
        return _follow_key(tree, state_key, listed or "none", name)
    if not candidates:
        raise CheckpointError(f"{name}: expected weights by name, found {_describe(tree)}; save model.state_dict()")
    if len(candidates) > 1:
        raise CheckpointError(
            f"{name}: found {len(candidates)} sets of weights, {listed}; "
            f"say which is the model with --state-key, e.g. --state-key {printable(candidates[0].key)}"
        )
    return candidates[0]


def _follow_key(tree: object, state_key: str, listed: str, name: str) -> Candidate:
    node = tree
    path: tuple[str, ...] = ()
    rest = "" if state_key == TOP_LEVEL else state_key
    while rest:
        children = {str(key): value for key, value in (_children(node) or {}).items()}
        fitting = [key for key in children if rest == key or rest.startswith(f"{key}.")]
        if not fitting:
            network = Candidate(path, _children(node) or {}, 0).beginning_with(f"{rest}.")
            if network.tensors:
                return network
            raise CheckpointError(
                f"{name}: --state-key {printable(state_key)} is not in the file; weights there: {listed}"
            )
        longest = max(fitting, key=len)
        node, path, rest = children[longest], (*path, longest), rest[len(longest) + 1 :]
    entries = _children(node)
    if not isinstance(node, dict | Namespace) or entries is None:
        raise CheckpointError(
            f"{name}: --state-key {printable(state_key)} is {_describe(node)}; weights there: {listed}"
        )
    return Candidate(path, entries, _count_tensors(entries))


def _describe(node: object) -> str:
    if isinstance(node, Tensor):
        return f"a single tensor {list(node.shape)}"
    if isinstance(node, dict):
        if not node:
            return "an empty mapping"
        return f"a mapping of {len(node)} entries: {enumerated(node)}"
    return f"an object of type {type(node).__name__}"


@dataclass
class _Entry:
    """A tensor on its way from the file's name to the network's."""

    key: str
    tensor: Tensor
    sources: tuple[str, ...] = field(default=())


def tidy(candidate: Candidate, name: str) -> TidyWeights:
    """Bring a state dict into the form that a bare network would have saved.

    Prefixes of wrappers are stripped where all keys have them; weights that were pruned with ``torch.nn.utils.prune``
    (``X_orig`` and ``X_mask``) become ``X``. A weight norm's and a spectral norm's parts keep their names.

    Args:
        candidate: The state dict in the file.
        name: What to call the file in a message.

    Raises:
        CheckpointError: Something in it is no dense tensor with finite values, or nothing is in it.
    """
    entries, ignored = _tensors(candidate, name)
    if not entries:
        raise CheckpointError(f"{name}: the state dict at {printable(candidate.key)} has no tensors")
    if candidate.prefix:
        entries = _without_prefix(entries, candidate.prefix, ignored)
    entries, prefixes = _strip_prefixes(entries, ignored)
    entries, folded = _fold_pruned(entries)
    _check_finite(entries, name)
    return TidyWeights(
        weights={entry.key: entry.tensor for entry in entries},
        original_keys={entry.key: entry.sources for entry in entries},
        stripped_prefixes=(candidate.prefix, *prefixes) if candidate.prefix else prefixes,
        folded=folded,
        ignored=tuple(ignored),
    )


def _tensors(candidate: Candidate, name: str) -> tuple[list[_Entry], list[str]]:
    entries: list[_Entry] = []
    ignored: list[str] = []
    for key, value in candidate.entries.items():
        if not isinstance(key, str) or not key.isprintable() or len(key) > 1000:
            raise CheckpointError(
                f"{name}: expected readable text as the name of a weight, found {printable(ascii(key))}"
            )
        if isinstance(value, Tensor):
            entries.append(_Entry(key, _plain_tensor(key, value, name), (key,)))
        elif isinstance(value, int) and key.endswith(COUNTER):
            if not -(2**63) <= value < 2**63:
                raise CheckpointError(f"{name}: expected a 64-bit count for {printable(key)}, found a larger number")
            entries.append(_Entry(key, torch.tensor(value), (key,)))
        elif isinstance(value, _PLAIN):
            ignored.append(f"{printable(key)} ({type(value).__name__})")
        else:
            raise CheckpointError(f"{name}: expected a tensor for {printable(key)}, found a {type(value).__name__}")
    return entries, ignored


def _plain_tensor(key: str, tensor: Tensor, name: str) -> Tensor:
    kind = None
    if tensor.ndim > MAX_DIMENSIONS:
        kind = f"one of {tensor.ndim} dimensions"
    elif tensor.is_meta:
        kind = "a meta tensor, which has no values"
    elif tensor.layout != torch.strided:
        kind = "a sparse tensor"
    elif tensor.is_quantized:
        kind = "a quantized tensor"
    elif tensor.is_complex():
        kind = "complex numbers, which no known network computes with"
    if kind:
        raise CheckpointError(f"{name}: expected a dense tensor for {printable(key)}, found {kind}; convert it first")
    return tensor.detach().cpu()


def _without_prefix(entries: list[_Entry], prefix: str, ignored: list[str]) -> list[_Entry]:
    """Entries of one network among several, without the single numbers that an average keeps beside its weights."""
    kept = []
    for entry in entries:
        key = entry.key.removeprefix(prefix)
        if "." not in key and entry.tensor.ndim == 0:
            ignored.append(f"{printable(entry.key)} (tensor)")
        else:
            kept.append(_Entry(key, entry.tensor, entry.sources))
    return kept


def _strip_prefixes(entries: list[_Entry], ignored: list[str]) -> tuple[list[_Entry], tuple[str, ...]]:
    """Take wrappers' prefixes off until none is left; two keys are never made equal."""
    prefixes: list[str] = []
    while True:
        keys = [entry.key for entry in entries]
        if "n_averaged" in keys and all(key == "n_averaged" or key.startswith("module.") for key in keys):
            # torch.optim.swa_utils.AveragedModel counts its updates beside the network.
            ignored.append("n_averaged (tensor)")
            entries = [entry for entry in entries if entry.key != "n_averaged"]
            continue
        for prefix, renamed in _renamings(keys):
            if renamed != keys and len(set(renamed)) == len(keys) and all(renamed):
                entries = [
                    _Entry(key, entry.tensor, entry.sources) for key, entry in zip(renamed, entries, strict=True)
                ]
                prefixes.append(prefix)
                break
        else:
            return entries, tuple(prefixes)


def _renamings(keys: list[str]) -> Iterator[tuple[str, list[str]]]:
    yield "module.", [key.removeprefix("module.") for key in keys]
    # torch.compile of a part leaves its mark inside the name.
    yield "_orig_mod.", [key.removeprefix("_orig_mod.").replace("._orig_mod.", ".") for key in keys]
    for prefix in _WRAPPERS:
        # What is left must still be a module's parameter: "1.weight" is the layer of a small Sequential, not a wrapper.
        if all(key.startswith(prefix) and "." in key.removeprefix(prefix) for key in keys):
            yield prefix, [key.removeprefix(prefix) for key in keys]


def _fold_pruned(entries: list[_Entry]) -> tuple[list[_Entry], tuple[str, ...]]:
    by_key = {entry.key: entry for entry in entries}
    result: list[_Entry] = []
    folded: list[str] = []
    dropped: set[str] = set()
    for entry in entries:
        base, _, part = entry.key.rpartition("_")
        original, mask = by_key.get(f"{base}_orig"), by_key.get(f"{base}_mask")
        pruned = part in ("orig", "mask") and base not in by_key and original is not None and mask is not None
        if not pruned or original is None or mask is None or original.tensor.shape != mask.tensor.shape:
            result.append(entry)
        elif base not in dropped:
            dropped.add(base)
            folded.append(base)
            values = original.tensor * mask.tensor.to(original.tensor.dtype)
            result.append(_Entry(base, values, (*original.sources, *mask.sources)))
    return result, tuple(folded)


def _check_finite(entries: list[_Entry], name: str) -> None:
    affected: list[str] = []
    first = ""
    for entry in entries:
        tensor = entry.tensor
        if not tensor.is_floating_point() or entry.key.endswith(COUNTER):
            continue
        values = tensor.float() if tensor.element_size() < 2 else tensor  # torch has no isfinite for 8-bit floats
        if torch.isfinite(values).all():
            continue
        affected.append(entry.key)
        if not first:
            nan = int(torch.isnan(values).sum())
            infinite = int(torch.isinf(values).sum())
            first = f"{printable(entry.key)} has {nan} NaN and {infinite} infinite values of {values.numel()}"
    if affected:
        raise CheckpointError(
            f"{name}: expected finite weights, but {first} ({len(affected)} of {len(entries)} tensors affected); "
            "training diverged or the file is corrupt: ask for another checkpoint"
        )
