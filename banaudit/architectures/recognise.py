"""From weights to a network: the architecture recognised from keys and shapes, every weight loaded strictly.

Each family proposes; the proposal is built without memory and believed only where every key and every shape agrees with
the file. Nothing is ever left at its random start: one missing ``num_batches_tracked`` (a counter that evaluation does
not read) is all that is forgiven.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from banaudit.architectures import (
    densenet,
    mobilenetv2,
    preact_resnet,
    resnet,
    resnet_thin,
    torchvision_models,
    vgg,
    wideresnet,
)
from banaudit.architectures.base import SplitNetwork, WrappedNetwork
from banaudit.architectures.family import Recognition, rename
from banaudit.architectures.final_linear import FinalLinearSplit, split_module
from banaudit.architectures.outputs import recognise_outputs
from banaudit.architectures.user_code import factory_from_file, names_a_file, user_code
from banaudit.errors import ArchitectureError, UnsupportedModelError, UsageError
from banaudit.results import ArchitectureFacts
from banaudit.shapes import COUNTER, Weights

FAMILIES = (
    resnet.FAMILY,
    resnet_thin.FAMILY,
    preact_resnet.FAMILY,
    wideresnet.FAMILY,
    vgg.FAMILY,
    densenet.FAMILY,
    mobilenetv2.FAMILY,
    torchvision_models.FAMILY,
)
ADVICE = "give the network with --arch path/to/file.py:factory"
PROBE_IMAGES = 4
PROBE_SIZES = (32, 28, 224, 64, 96, 128, 48, 256, 299)
"""Resolutions tried, in this order, on a network of the user's that fits only some."""
LISTED = 3
"""Keys that a message names."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with the weights of a file in it.

    Args:
        network: In eval mode, on the CPU, float32.
        facts: What a report says of it.
        keys: Key in the file -> key in ``network.state_dict()``, for every tensor of the file.
        deterministic: Whether the same probe images gave the same output twice.
    """

    network: SplitNetwork
    facts: ArchitectureFacts
    keys: dict[str, str]
    deterministic: bool


@dataclass(frozen=True)
class _Difference:
    """How a file differs from a network; all empty where it fits."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.shapes)

    def __str__(self) -> str:
        parts = []
        for label, items in (("missing", self.missing), ("unexpected", self.unexpected), ("wrong shape", self.shapes)):
            if items:
                more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
                parts.append(f"{label}: {', '.join(items[:LISTED])}{more}")
        return "; ".join(parts)


def list_architectures() -> tuple[str, ...]:
    """Names that ``--arch`` takes; other depths and widths of the same families are recognised too."""
    return tuple(name for family in FAMILIES for name in family.names)


def recognise(weights: Weights) -> Recognition:
    """Say which network weights belong to.

    Args:
        weights: Key -> tensor, without prefixes such as ``module.``.

    Returns:
        The one network whose every key and shape agrees.

    Raises:
        ArchitectureError: None does; the message names the nearest and what keeps it from fitting.
    """
    return _recognise(weights, None)


def load_network(
    weights: Weights, *, arch: str | None = None, classes: int | None = None, size: int | None = None
) -> LoadedNetwork:
    """Build the network that weights belong to and put them in, every one of them.

    Half, bfloat16 and double weights become float32. The weights handed in are neither changed nor shared with the
    network, and the global random state stays as it is.

    Args:
        weights: Key -> tensor, without prefixes such as ``module.``.
        arch: A name of :func:`list_architectures` or ``path/to/file.py:factory``; none: recognise.
        classes: Number of classes K that the caller expects; none: read from the weights.
        size: Side of the images in pixels, for a factory's network that fits only one; none: usual sizes are tried.

    Returns:
        The network with what is known of it.

    Raises:
        ArchitectureError: The weights fit no known network, or not the one named, or its class count is another.
        UsageError: ``arch`` is unknown, or its file or factory cannot be used.
        UnsupportedModelError: The network in a factory's file takes or returns something that no classifier does.
    """
    if arch is not None and names_a_file(arch):
        with user_code(arch):
            return _load_with_factory(weights, arch, classes, size)
    recognition = _recognise(weights, arch)
    if classes not in (None, recognition.classes):
        raise ArchitectureError(_wrong_classes(recognition.name, recognition.classes, classes))
    with torch.random.fork_rng(devices=[]), _WithoutMemory():
        network = recognition.build()
    keys = _put_in(network, weights, recognition.renames, recognition.name)
    facts = ArchitectureFacts(
        name=recognition.name,
        description=recognition.description,
        source="recognised" if arch is None else "--arch",
        classes=recognition.classes,
        channels=recognition.channels,
        parameters=_count_parameters(network),
        batch_norms=count_batch_norms(network),
        renamed_keys=len(recognition.renames),
    )
    return LoadedNetwork(network.eval(), facts, keys, deterministic=True)


def _known() -> str:
    """The families in a few words, for messages."""
    own = (family.names for family in FAMILIES if family is not torchvision_models.FAMILY)
    spans = (names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}" for names in own)
    return f"{', '.join(spans)}, {torchvision_models.PREFIX}NAME"


def count_batch_norms(network: nn.Module) -> int:
    """Number of BatchNorm layers, of any dimension."""
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules())


class _WithoutMemory(TorchFunctionMode):
    """Modules made inside have their weights on the meta device: shapes without memory, and no time for random numbers.

    Buffers too: shapes that a file claims may be those of many gigabytes of running means.

    ``torch.device("meta")`` would also move the few tensors that some constructors compute with.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones, torch.full) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _recognise(weights: Weights, arch: str | None) -> Recognition:
    empty = next((key for key, tensor in weights.items() if tensor.numel() == 0), None)
    if empty is not None or not weights:
        found = f"{empty} with shape {list(weights[empty].shape)}" if empty else "no tensor at all"
        raise ArchitectureError(f"the weights of a network were expected, found {found}; is the checkpoint complete?")
    fits: list[Recognition] = []
    misfits: list[tuple[_Difference, Recognition]] = []
    for recognition in (proposal for family in FAMILIES for proposal in family.propose(weights)):
        try:
            with torch.random.fork_rng(devices=[]), _WithoutMemory():
                network = recognition.build()
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
            continue  # shapes that no network of this family can have
        difference = _compare(_target(network)[0], weights, recognition.renames)
        if len(difference) == 0:
            if arch in (None, recognition.name):
                return recognition
            fits.append(recognition)
        else:
            misfits.append((difference, recognition))
    if arch is not None:
        raise _not_the_named(arch, fits, misfits)
    misfit, nearest = min(misfits, key=lambda pair: len(pair[0]), default=(None, None))
    if misfit is None or nearest is None or len(misfit) > len(weights) / 2:
        raise ArchitectureError(
            f"no known architecture has these keys ({', '.join(list(weights)[:LISTED])}, ...); known: {_known()}; "
            f"{ADVICE}",
            unexpected=tuple(weights),
        )
    raise ArchitectureError(
        f"the weights fit no known architecture; nearest is {nearest.name} ({nearest.description}), but {misfit}; "
        f"check the checkpoint, or {ADVICE}",
        missing=misfit.missing,
        unexpected=misfit.unexpected,
    )


def _not_the_named(
    arch: str, fits: list[Recognition], misfits: list[tuple[_Difference, Recognition]]
) -> ArchitectureError | UsageError:
    """Why weights are not those of a named architecture."""
    same_name = [pair for pair in misfits if pair[1].name == arch]
    if same_name:
        difference, recognition = min(same_name, key=lambda pair: len(pair[0]))
        return ArchitectureError(
            f"the weights do not fit {arch} ({recognition.description}): {difference}; check --arch and the checkpoint",
            missing=difference.missing,
            unexpected=difference.unexpected,
        )
    if arch not in list_architectures():
        return UsageError(f"--arch {arch}: expected one of {_known()}, or path/to/file.py:factory")
    what = f"they are those of {fits[0].name} ({fits[0].description})" if fits else "their keys are of another kind"
    return ArchitectureError(f"the weights do not fit {arch}: {what}; leave --arch out, or check the checkpoint")


def _target(network: nn.Module) -> tuple[nn.Module, str]:
    """The module whose keys are those of the file, and the prefix of its keys in the network."""
    return (network.module, "module.") if isinstance(network, WrappedNetwork) else (network, "")


def _compare(target: nn.Module, weights: Weights, renames: dict[str, str]) -> _Difference:
    expected, ours = target.state_dict(), rename(weights, renames)
    spelling = {renames.get(key, key): key for key in weights}
    return _Difference(
        missing=tuple(key for key in expected if key not in ours and not key.endswith(COUNTER)),
        unexpected=tuple(spelling[key] for key in ours if key not in expected),
        shapes=tuple(
            f"{spelling[key]} {list(tensor.shape)} where {list(expected[key].shape)} is expected"
            for key, tensor in ours.items()
            if key in expected and tensor.shape != expected[key].shape
        ),
    )


def _put_in(network: nn.Module, weights: Weights, renames: dict[str, str], name: str) -> dict[str, str]:
    """Load every weight, as float32 copies, and check that nothing else is left in the network.

    Args:
        network: Receives the weights.
        weights: Key in the file -> tensor.
        renames: Key in the file -> key in the network, where they differ.
        name: What messages call the network.

    Returns:
        Key in the file -> key in the network's state dict.

    Raises:
        ArchitectureError: A key or shape disagrees, or a weight would keep its random start.
    """
    target, prefix = _target(network)
    difference = _compare(target, weights, renames)
    if len(difference):
        raise ArchitectureError(
            f"the weights do not fit {name}: {difference}; check --arch and the checkpoint",
            missing=difference.missing,
            unexpected=difference.unexpected,
        )
    expected = target.state_dict()
    state: OrderedDict[str, Tensor] = OrderedDict()
    for key, tensor in rename(weights, renames).items():
        if key.endswith(COUNTER):  # in half precision it may have overflown
            state[key] = torch.nan_to_num(tensor.double(), posinf=0.0, neginf=0.0).to(expected[key].dtype)
            continue
        if expected[key].is_floating_point() and not tensor.is_floating_point():
            raise ArchitectureError(
                f"{key} holds {str(tensor.dtype).removeprefix('torch.')} numbers where {name} computes with "
                "floating-point ones; convert the checkpoint to float32"
            )
        # An index in a file that was halved as a whole is whole again.
        whole = tensor.is_floating_point() and not expected[key].is_floating_point()
        dtype = expected[key].dtype if whole else torch.float32 if tensor.is_floating_point() else tensor.dtype
        state[key] = tensor.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()
    for key in expected:
        if key not in state:
            state[key] = torch.zeros((), dtype=torch.int64)
    # Without the versions some modules take the file for one of an older layout.
    state._metadata = getattr(expected, "_metadata", {})  # type: ignore[attr-defined]
    held = dict(target.named_parameters()) | dict(target.named_buffers())
    # A network without memory can only be given new tensors; one of the user's may hold its own in more than one place.
    try:
        target.load_state_dict(state, strict=True, assign=any(tensor.is_meta for tensor in held.values()))
    except RuntimeError as error:
        raise ArchitectureError(f"{name} did not take the weights: {' '.join(str(error).split())}") from error
    loaded = target.state_dict()
    stale = [key for key in state if not torch.allclose(loaded[key], state[key], rtol=0, atol=0, equal_nan=True)]
    stale += [key for key, _ in target.named_parameters() if key not in state]
    stale += [key for key, buffer in target.named_buffers() if buffer.is_meta]
    if stale:
        raise ArchitectureError(
            f"{name} did not take every weight of the file: {', '.join(stale[:LISTED])} would keep their start; "
            "its state dict must name every parameter, and loading must not change them",
            missing=tuple(stale),
        )
    return {key: prefix + renames.get(key, key) for key in weights}


def _load_with_factory(weights: Weights, arch: str, classes: int | None, size: int | None) -> LoadedNetwork:
    module, keys = _make_for(weights, arch, classes)
    probe = _find_probe(module, arch, size)
    network = module if isinstance(module, SplitNetwork) else _split(module, probe, classes)
    with torch.no_grad():
        found = network(probe).shape[1]
    if classes not in (None, found):
        raise ArchitectureError(_wrong_classes(arch, found, classes))
    outputs = recognise_outputs(network, probe, found)
    if network is not module:
        keys = {key: f"module.{ours}" for key, ours in keys.items()}
    facts = ArchitectureFacts(
        name=arch,
        description=f"{type(module).__name__} from the user's file"
        + (f", split at {network.linear}" if isinstance(network, FinalLinearSplit) else ""),
        source="--arch",
        classes=outputs.classes,
        channels=probe.shape[1],
        parameters=_count_parameters(network),
        batch_norms=count_batch_norms(network),
        outputs=outputs.kind,
        output_note=outputs.note,
    )
    return LoadedNetwork(network.eval(), facts, keys, deterministic=outputs.deterministic)


def _make_for(weights: Weights, arch: str, classes: int | None) -> tuple[nn.Module, dict[str, str]]:
    """The factory's network with the weights in it, and where each of them went.

    Without a class count the factory's default is tried, then the rows of the file's last matrix.
    """
    factory = factory_from_file(arch)

    def filled(count: int | None) -> tuple[nn.Module, dict[str, str]]:
        module = factory.make(count).float().eval()
        return module, _put_in(module, weights, {}, arch)

    try:
        return filled(classes)
    except (ArchitectureError, UsageError):
        rows = [len(tensor) for tensor in weights.values() if tensor.ndim == 2]
        if classes is not None or not factory.takes_classes or not rows:
            raise
        try:
            return filled(rows[-1])
        except (ArchitectureError, UsageError):
            pass  # what the user wrote says more than a guess
        raise


def _split(module: nn.Module, probe: Tensor, classes: int | None) -> SplitNetwork:
    try:
        return split_module(module, probe, classes)
    except UnsupportedModelError:
        if classes is None:
            raise
        return split_module(module, probe)  # of another class count, which the caller reports


def _find_probe(module: nn.Module, arch: str, size: int | None) -> Tensor:
    """Images that a network accepts: random [B, C, H, W] in [0, 1] of the first channels and size that it runs on.

    Raises:
        UnsupportedModelError: It runs on none of those tried.
    """
    convolutions = [part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)]
    channels = dict.fromkeys([*(count for count in convolutions if count in (1, 3)), 3, 1])
    sizes = PROBE_SIZES if size is None else (size,)
    reasons: list[str] = []
    for count in channels:
        for side in sizes:
            probe = torch.rand(PROBE_IMAGES, count, side, side, generator=torch.Generator().manual_seed(0))
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    module(probe)
            except Exception as error:
                reasons.append(f"{type(error).__name__} on {count}x{side}x{side}: {' '.join(str(error).split())[:200]}")
            else:
                return probe
    raise UnsupportedModelError(
        f"{arch}: expected a network that takes images [B, C, H, W], C of {', '.join(map(str, channels))} and sides of "
        f"{', '.join(map(str, sizes))}; it failed on all ({reasons[0]}); give its input size with --size"
    )


def _count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _wrong_classes(name: str, found: int, expected: int | None) -> str:
    return (
        f"the weights are those of {name} for {found} classes, but {expected} were expected; "
        "check the class list and the checkpoint"
    )
