"""Options of the command line as values: the subject, numbers for each channel, methods and their settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from banaudit.errors import UsageError

if TYPE_CHECKING:
    from banaudit.audit import Subject
    from banaudit.detectors.base import Detector
    from banaudit.mitigations import Mitigation

Method = TypeVar("Method", "Detector", "Mitigation")


def make_subject(
    model: Path,
    data: Path,
    *,
    arch: str | None,
    state_key: str | None,
    classes: Path | None,
    preset: str | None,
    mean: str | None,
    std: str | None,
    size: int | None,
    max_images: int,
    accuracy_floor: float | None,
) -> Subject:
    """What is to be judged, from the options in :mod:`banaudit.cli.subject`, which have the same names.

    Raises:
        UsageError: Mean or standard deviation is not one or three numbers.
    """
    means, stds = parse_numbers("--mean", mean), parse_numbers("--std", std)
    from banaudit import audit

    return audit.Subject(
        model=model,
        data=data,
        arch=arch,
        state_key=state_key,
        class_map=classes,
        preset=preset,
        mean=means,
        std=stds,
        size=size,
        max_images=max_images,
        accuracy_floor=accuracy_floor,
    )


def input_files(model: Path, data: Path, *, classes: Path | None, arch: str | None) -> tuple[Path, ...]:
    """What a command reads, as the user named it; nothing that is written may go there."""
    code = (arch or "").rpartition(":")[0]
    files = (model, data, classes, Path(code).expanduser() if code.endswith(".py") else None)
    return tuple(file for file in files if file is not None)


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers of the channels, e.g. ``0.49,0.48,0.45``.

    Raises:
        UsageError: Not one or three numbers.
    """
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in {1, 3} or not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"{option} {text}: expected one number or three, e.g. {option} 0.49,0.48,0.45")
    return numbers


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """``--set name.key=value`` as method -> setting -> value.

    Raises:
        UsageError: Not of that form, or the same setting twice.
    """
    settings: dict[str, dict[str, str]] = {}
    for text in texts:
        place, equals, value = text.partition("=")
        method, dot, key = place.partition(".")
        if not (method and dot and key and equals):
            raise UsageError(f"--set {text}: expected METHOD.SETTING=VALUE, e.g. --set ban.eps=0.2")
        if key in settings.setdefault(method, {}):
            raise UsageError(f"--set {text}: {place} is set twice; keep one of them")
        settings[method][key] = value
    return settings


def choose_detectors(
    methods: str | None,
    settings: Mapping[str, Mapping[str, str]],
    *,
    released: bool = False,
    option: str = "--method",
) -> tuple[Detector, ...] | None:
    """The methods that are to run, with their settings; none: the default ones as they are.

    Args:
        methods: Names with commas between them, ``default`` for the default ones, or ``all``; none: the default ones.
        settings: Method -> setting -> value, as text.
        released: Whether to run BAN as its authors released it, and nothing else.
        option: That names the methods.

    Raises:
        UsageError: An unknown method or setting, a value out of range, or options that contradict each other.
    """
    if methods is None and not settings and not released:
        return None
    from banaudit.detectors import DETECTORS, default_detectors

    if released and methods not in {None, "ban"}:
        raise UsageError("--released runs BAN alone as its authors released it; leave --method out")
    if released:
        from banaudit.detectors.ban import BAN

        chosen: list[Detector] = [BAN.released()]
    elif methods is None:
        chosen = list(default_detectors())
    else:
        groups = {"all": list(DETECTORS), "default": [detector.name for detector in default_detectors()]}
        names: list[str] = []
        for name in (part.strip() for part in methods.split(",")):
            if name not in DETECTORS and name not in groups:
                raise UsageError(f"{option} {name}: no such method; there are {', '.join(sorted(DETECTORS))}")
            names += groups.get(name, [name])
        if len(set(names)) < len(names):
            raise UsageError(f"{option} {methods}: names a method twice")
        chosen = [DETECTORS[name]() for name in names]
    running = [detector.name for detector in chosen]
    for name in settings:
        if name not in running:
            raise UsageError(
                f"--set {name}.{next(iter(settings[name]))}: {name} is not among the methods that run "
                f"({', '.join(running)}); name it with {option}"
            )
    return tuple(_with_settings(detector, settings.get(detector.name, {})) for detector in chosen)


def choose_mitigation(method: str, settings: Mapping[str, Mapping[str, str]], *, epochs: int | None) -> Mitigation:
    """The mitigation that is to run, with its settings.

    Args:
        method: Its name.
        settings: Method -> setting -> value, as text.
        epochs: Passes over the images; none: its own default.

    Raises:
        UsageError: An unknown method or setting, a value out of range, or epochs for a method that has none.
    """
    from banaudit.mitigations import MITIGATIONS

    if method not in MITIGATIONS:
        raise UsageError(f"--method {method}: no such method; there are {', '.join(sorted(MITIGATIONS))}")
    for name in settings:
        if name != method:
            raise UsageError(
                f"--set {name}.{next(iter(settings[name]))}: {name} does not run, {method} does; --method names it"
            )
    changes = dict(settings.get(method, {}))
    if epochs is not None:
        if "epochs" in changes:
            raise UsageError(f"--set {method}.epochs: --epochs is given too; keep one of them")
        if "epochs" not in MITIGATIONS[method].model_fields:
            raise UsageError(f"--epochs: {method} does not train the network's weights; leave it out")
        changes["epochs"] = str(epochs)
    return _with_settings(MITIGATIONS[method](), changes)


def choose_mitigations(methods: str, settings: Mapping[str, Mapping[str, str]]) -> tuple[Mitigation, ...]:
    """Several mitigations that are to run, with their settings.

    Args:
        methods: Names with commas between them.
        settings: Method -> setting -> value, as text.

    Raises:
        UsageError: An unknown method or setting, a value out of range, or a method twice.
    """
    names = [name.strip() for name in methods.split(",")]
    if len(set(names)) < len(names):
        raise UsageError(f"--method {methods}: names a method twice")
    for name in settings:
        if name not in names:
            raise UsageError(
                f"--set {name}.{next(iter(settings[name]))}: {name} is not among the methods that run "
                f"({', '.join(names)}); name it with --method"
            )
    return tuple(
        choose_mitigation(name, {name: settings[name]} if name in settings else {}, epochs=None) for name in names
    )


def _with_settings(method: Method, changes: Mapping[str, str]) -> Method:
    if not changes:
        return method
    try:
        return method.with_settings(dict(changes))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else next(iter(changes))
        if first["type"] == "extra_forbidden":
            known = ", ".join(type(method).model_fields)
            raise UsageError(f"--set {method.name}.{key}: no such setting; there are {known}") from None
        value = changes.get(key, "")
        raise UsageError(f"--set {method.name}.{key}={value}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
