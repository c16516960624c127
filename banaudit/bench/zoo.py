"""Checkpoints of known truth: clean accuracy against what is known of it, and the whole default scan of each.

A zoo is a folder with manifests, lists of entries that name a file, its data set, preprocessing, truth and measured
clean accuracy. Architectures that are not recognised come from small Python files beside a ``factories.json``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from banaudit.audit import Prepared, Subject, facts_of, judge, prepare
from banaudit.bench.results_files import read_results, update_results
from banaudit.bench.runner import (
    Outcome,
    ScanRecord,
    ScanSettings,
    Truth,
    describe,
    hold_against,
    measures_of,
    record_scan,
)
from banaudit.bench.workplace import Progress
from banaudit.data import CleanData, read_clean_folder
from banaudit.detectors import Detector, default_detectors
from banaudit.errors import BanauditError, UnsafeCheckpointError, UsageError
from banaudit.meter import Meter
from banaudit.preflight import predictions
from banaudit.preprocessing import PRESETS
from banaudit.results import Reading, Record

MANIFESTS = ("third_party.json", "trained.json")
FACTORIES = "factories.json"

DATA_FOLDERS = {"CIFAR-10": "cifar10/test", "GTSRB": "gtsrb32/test", "MNIST": "mnist/test"}
"""First word of a manifest's data set -> folder of clean images below the root."""
CLASSES = {"CIFAR-10": 10, "GTSRB": 43, "MNIST": 10}

ACCURACY_TOLERANCE = 0.015
"""How far the clean accuracy over the whole test split may lie from the manifest's."""


class ManifestEntry(BaseModel):
    """What a zoo's manifest says of a file; fields that are not listed here are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    file: str
    dataset: str
    truth: str
    attack: str
    target: int | None = None
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    measured: dict[str, Any] = Field(default_factory=dict)

    @property
    def data(self) -> str:
        """The data set's first word, a key of :data:`DATA_FOLDERS`."""
        return self.dataset.split()[0]

    @property
    def clean_accuracy(self) -> float | None:
        """Measured clean accuracy; on images cropped to the sign where the manifest has both, as the data are."""
        return self.measured.get("clean_acc_roi", self.measured.get("clean_acc"))

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the channels."""
        if self.preprocessing.get("mean"):
            return tuple(self.preprocessing["mean"]), tuple(self.preprocessing["std"])
        # One entry gives its statistics in words: those of the whole training set of MNIST.
        return PRESETS["mnist" if "sigma" in str(self.preprocessing.get("scale")) else "none"]

    def known(self) -> Truth:
        """The manifest's words as a truth."""
        if not self.truth.startswith("backdoored"):
            return Truth(backdoored=False)
        if self.attack.startswith("all-to-all"):
            count = CLASSES[self.data]
            return Truth(
                backdoored=True,
                reading=Reading.ALL_TO_ALL,
                mapping={label: (label + 1) % count for label in range(count)},
            )
        pair = re.search(r"label (\d+) -> (\d+)", self.attack)
        if pair is not None:
            return Truth(backdoored=True, reading=Reading.SOURCE_TARGET, source=int(pair[1]), target=int(pair[2]))
        return Truth(backdoored=True, reading=Reading.ALL_TO_ONE, target=self.target)


class ZooEntry(Record):
    """One checkpoint of a zoo."""

    file: str = Field(description="Relative to the zoo.")
    dataset: str
    attack: str
    words: str = Field(description="The manifest's own words for the truth.")
    truth: Truth
    outcome: Outcome
    problem: str = Field(default="", description="Why there is no scan.")
    offenders: tuple[str, ...] = Field(default=(), description="Globals that loading the file would call.")
    architecture: str = ""
    batch_norms: int | None = None
    outputs: str = ""
    manifest_accuracy: float | None = None
    accuracy: float | None = Field(default=None, description="Whole test split, the manifest's preprocessing.")
    accuracy_images: int = 0
    recognised: str = Field(default="", description="Normalisation found when none is given.")
    recognised_accuracy: float | None = Field(default=None, description="Whole test split, recognised normalisation.")
    settings: str = Field(description="Digest of the settings.")
    scan: ScanRecord | None = None

    @property
    def accuracy_agrees(self) -> bool | None:
        """Whether the clean accuracy is the manifest's; none where there is nothing to compare."""
        if self.accuracy is None or self.manifest_accuracy is None:
            return None
        return abs(self.accuracy - self.manifest_accuracy) <= ACCURACY_TOLERANCE


class ZooResults(Record):
    """Every checkpoint of a zoo, right and wrong alike."""

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["zoo"] = "zoo"
    settings: dict[str, ScanSettings] = Field(default_factory=dict, description="By digest.")
    measures: dict[str, str] = Field(default_factory=dict, description="What each reading's score is.")
    entries: tuple[ZooEntry, ...] = ()


def read_manifests(zoo: Path) -> list[ManifestEntry]:
    """Every entry of a zoo's manifests, in their order.

    Raises:
        UsageError: There is no manifest, or it is not one.
    """
    entries: list[ManifestEntry] = []
    for name in MANIFESTS:
        path = zoo / name
        if not path.is_file():
            continue
        try:
            entries += TypeAdapter(list[ManifestEntry]).validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise UsageError(f"{path}: is no manifest of a zoo: {str(error).splitlines()[0]}") from None
    if not entries:
        raise UsageError(f"{zoo}: holds none of {', '.join(MANIFESTS)}; give the folder of the zoo's manifests")
    unknown = sorted({entry.data for entry in entries} - DATA_FOLDERS.keys())
    if unknown:
        raise UsageError(f"{zoo}: data set {unknown[0]!r} is not known; there are {', '.join(DATA_FOLDERS)}")
    return entries


def read_factories(folder: Path | None) -> dict[str, str]:
    """Pattern of file names in the zoo -> ``--arch`` value, in the order of the file.

    Raises:
        UsageError: The folder has no usable ``factories.json``.
    """
    if folder is None:
        return {}
    path = folder / FACTORIES
    try:
        patterns = TypeAdapter(dict[str, str]).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: expected a JSON object, pattern -> FILE.py:FACTORY ({error})") from None
    return {pattern: str(folder / factory) for pattern, factory in patterns.items()}


def run_zoo(
    zoo: Path,
    root: Path,
    path: Path,
    *,
    factories: Path | None = None,
    detectors: Sequence[Detector] | None = None,
    images: int = 1000,
    seed: int = 0,
    device: str = "auto",
    only: str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> ZooResults:
    """Load, measure and scan every checkpoint of a zoo; the results file is whole after each.

    Args:
        zoo: Folder of the manifests; files are named relative to it.
        root: Folder of the data sets, see :data:`DATA_FOLDERS`.
        path: Results file; entries in it with the same settings are kept and not made again.
        factories: Folder of :data:`FACTORIES` (code that the user trusts); none: recognised architectures only.
        detectors: Methods to run; none: the default ones.
        images: Most clean images of a scan.
        seed: Of the drawing of images and of every method.
        device: ``auto``, ``cpu`` or ``cuda``.
        only: Shell pattern of the files to scan; none: all.
        fresh: Make again what was made with the same settings.
        progress: Told of each file.

    Raises:
        UsageError: The zoo, its factories or the results file cannot be used.
    """
    detectors = tuple(detectors) if detectors is not None else default_detectors()
    settings = ScanSettings.of(detectors, images, seed)
    results = read_results(path, ZooResults) or ZooResults()
    manifest = read_manifests(zoo)
    patterns = read_factories(factories)
    whole = _whole_split(root)
    order = {entry.file: number for number, entry in enumerate(manifest)}
    done = {entry.file for entry in results.entries if entry.settings == settings.digest and not fresh}
    for number, entry in enumerate(manifest, start=1):
        if entry.file in done or (only is not None and not fnmatch(entry.file, only)):
            continue
        arch = next((factory for pattern, factory in patterns.items() if fnmatch(entry.file, pattern)), None)
        made, measures = _make(zoo, root, entry, arch, detectors, settings, device, whole)
        add = functools.partial(_with_entry, made, settings, measures, order)
        results = update_results(path, ZooResults(), add)
        if progress is not None:
            said = describe(made.scan, made.outcome) if made.scan is not None else f"{made.outcome}: {made.problem}"
            progress(f"{number} of {len(manifest)}: {entry.file}: {said}")
    return results


def _with_entry(
    entry: ZooEntry, settings: ScanSettings, measures: dict[str, str], order: dict[str, int], results: ZooResults
) -> ZooResults:
    """The results with an entry in place of an older one of the same file, in the manifest's order."""
    others = (other for other in results.entries if other.file != entry.file)
    return results.model_copy(
        update={
            "settings": {**results.settings, settings.digest: settings},
            "measures": {**results.measures, **measures},
            "entries": tuple(sorted((*others, entry), key=lambda item: order.get(item.file, len(order)))),
        }
    )


WholeSplit = Callable[[str, int, int], CleanData]
"""Folder below the root, side in pixels, channels -> every image of the split."""


def _whole_split(root: Path) -> WholeSplit:
    @functools.lru_cache(maxsize=1)
    def load(folder: str, size: int, channels: int) -> CleanData:
        return read_clean_folder(root / folder, classes=None, limit=None, seed=0).decode(size, channels)

    return load


def _make(
    zoo: Path,
    root: Path,
    entry: ManifestEntry,
    arch: str | None,
    detectors: Sequence[Detector],
    settings: ScanSettings,
    device: str,
    whole: WholeSplit,
) -> tuple[ZooEntry, dict[str, str]]:
    """One entry, and what its readings measure."""
    truth = entry.known()
    facts: dict[str, Any] = {
        "file": entry.file,
        "dataset": entry.data,
        "attack": entry.attack,
        "words": entry.truth,
        "truth": truth,
        "settings": settings.digest,
        "manifest_accuracy": entry.clean_accuracy,
    }
    folder = DATA_FOLDERS[entry.data]
    side = entry.preprocessing.get("size")
    mean, std = entry.statistics
    meter, started = Meter(), datetime.now(UTC)

    def ready(given: bool) -> Prepared:
        subject = Subject(
            zoo / entry.file,
            root / folder,
            arch=arch,
            mean=mean if given else None,
            std=std if given else None,
            size=side,
            max_images=settings.images,
        )
        return prepare(subject, seed=settings.seed, device=device, meter=meter if given else None)

    try:
        prepared = ready(given=True)
    except UnsafeCheckpointError as refusal:
        problem = _relative(str(refusal), zoo)
        return ZooEntry(**facts, outcome=Outcome.REFUSED, problem=problem, offenders=refusal.offenders), {}
    except BanauditError as problem_found:
        return ZooEntry(**facts, outcome=Outcome.FAILED, problem=_relative(str(problem_found), zoo)), {}
    report = judge(
        prepared.model,
        prepared.clean,
        detectors=detectors,
        accuracy=prepared.accuracy,
        facts=facts_of(prepared),
        seed=settings.seed,
        meter=meter,
        started=started,
    )
    scan = record_scan(report, settings, meter)
    recognised = ready(given=False)
    accuracy = _accuracy(prepared, whole, folder)
    same = _inputs(recognised) == _inputs(prepared)
    architecture = prepared.loaded.facts
    return ZooEntry(
        **facts,
        outcome=hold_against(truth, scan),
        # A factory's name is its path on this machine.
        architecture=architecture.name.rpartition("/")[2],
        batch_norms=architecture.batch_norms,
        outputs=architecture.outputs,
        accuracy=accuracy,
        accuracy_images=len(whole(folder, prepared.preprocessing.size, prepared.preprocessing.channels)),
        recognised=recognised.preprocessing.name,
        recognised_accuracy=accuracy if same else _accuracy(recognised, whole, folder),
        scan=scan,
    ), measures_of(report.findings)


def _accuracy(prepared: Prepared, whole: WholeSplit, folder: str) -> float:
    clean = whole(folder, prepared.preprocessing.size, prepared.preprocessing.channels)
    predicted = predictions(prepared.model, clean.images, batch_size=256)
    return round(float((predicted == clean.labels).double().mean()), 5)


def _inputs(prepared: Prepared) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """All that decides how an image becomes the network's input."""
    found = prepared.preprocessing
    return found.size, found.mean, found.std


def _relative(text: str, zoo: Path) -> str:
    """A message without the path of the zoo."""
    return text.replace(f"{zoo}/", "")
