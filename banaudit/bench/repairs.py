"""Mitigations x victims: what a repair leaves of a known backdoor and of clean accuracy, and what it is then called.

An entry of the results file has two parts. The repair is measured on the held-out split, which plays no part in it; the
second scan, with the relapse probe, can be made later, since the repaired weights stay in the cache.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import banaudit
from banaudit.after_repair import compare, judge_repaired, missed_budget
from banaudit.architectures.base import SplitModel
from banaudit.bench.code import CODE
from banaudit.bench.conditions import draw_clean
from banaudit.bench.cost import device_name
from banaudit.bench.datasets import load_split
from banaudit.bench.parallel import spread
from banaudit.bench.repair_results import (
    Amount,
    Behaviour,
    Relapse,
    RepairEntry,
    RepairMeasured,
    RepairResults,
    RepairSetup,
    Rescan,
    rounded,
)
from banaudit.bench.results_files import read_results, update_results
from banaudit.bench.runner import ScanSettings, record_scan, truth_of
from banaudit.bench.trigger import Trigger, attack_success, clean_accuracy
from banaudit.bench.victims import Victim, VictimFacts, VictimRecipe, is_trained, load_victim, victim_folder
from banaudit.bench.workplace import Workplace
from banaudit.data import CleanData
from banaudit.detectors import Detector, default_detectors, suited
from banaudit.errors import BanauditError, UsageError
from banaudit.meter import Meter
from banaudit.mitigations import Mitigation, TargetedMitigation
from banaudit.mitigations.base import MAX_DROP
from banaudit.purify import MAX_SCAN_IMAGES, MIN_SCAN_IMAGES
from banaudit.relapse import probe_relapse, wanted_labels
from banaudit.results import Reading
from banaudit.shapes import Labels
from banaudit.whole_files import write_whole

TEST_IMAGES = 2000
"""Held-out images on which accuracy and attack success are measured, unless the user says otherwise."""

TEST_SEED = 0
"""Of the drawing of these: the same ones for every repair."""

SCAN_SEED = 0
"""Of the scans and probes of repaired models."""

WHOLE = 10**9
"""More images than any data set has."""


def run_repairs(
    recipes: Sequence[VictimRecipe],
    path: Path,
    *,
    split: str,
    mitigations: Sequence[Mitigation],
    amounts: Sequence[Amount],
    runs: int = 1,
    max_drop: float = MAX_DROP,
    test_images: int = TEST_IMAGES,
    rescan: bool = True,
    detectors: Sequence[Detector] | None = None,
    workplace: Workplace | None = None,
) -> RepairResults:
    """Repair every victim that is trained by every mitigation, and keep the results file whole after each part.

    Args:
        recipes: Victims; those that are not in the cache yet are left out.
        path: Results file; what is in it with the same settings is kept and not made again. Several processes may work
            on one file.
        split: Name of the list of recipes.
        mitigations: To compare; none twice.
        amounts: Clean images of a repair, out of the pool that no victim was trained on.
        runs: Repairs of each victim, with seeds from 0 on; each draws images of its own.
        max_drop: Clean accuracy that a repair may cost.
        test_images: Most held-out images to measure on.
        rescan: Whether to scan and probe the repaired models too.
        detectors: Methods of that scan; none: the default ones.
        workplace: Where and how to work; none: here, with the user's cache.

    Raises:
        UsageError: The file is of another split, or cannot be written.
        DataError: A data set is missing.
    """
    results = read_results(path, RepairResults) or RepairResults(split=split)
    if results.split != split:
        raise UsageError(f"{path}: holds repairs of split {results.split}, not of {split}; give another --output")
    workplace = workplace or Workplace()
    detectors = tuple(detectors) if detectors is not None else default_detectors()
    bench = _Bench(
        workplace=workplace,
        images=_Images(workplace.root, workplace.cache, test_images),
        detectors=detectors,
        rescan=rescan,
    )
    setups = [
        RepairSetup(
            method=mitigation.name,
            settings=mitigation.settings(),
            max_drop=max_drop,
            test_images=test_images,
            tool_version=banaudit.__version__,
            aimed=isinstance(mitigation, TargetedMitigation) and mitigation.target is None,
        )
        for mitigation in mitigations
    ]
    repair = _Repair(
        path,
        results.model_copy(update={"entries": ()}),
        bench,
        tuple(itertools.product(amounts, range(runs), zip(mitigations, setups, strict=True))),
        len(recipes),
    )
    for _ in spread(repair, enumerate(recipes, start=1), workplace.jobs):
        pass
    return read_results(path, RepairResults) or results


@dataclass(frozen=True)
class _Repair:
    """What all repairs of a run have in common; a call repairs one victim in every way that is asked for."""

    path: Path
    empty: RepairResults
    bench: _Bench
    ways: tuple[tuple[Amount, int, tuple[Mitigation, RepairSetup]], ...]
    """Amount of clean images, seed, mitigation."""
    total: int

    def __call__(self, numbered: tuple[int, VictimRecipe]) -> None:
        number, recipe = numbered
        place = self.bench.workplace
        if not is_trained(recipe, place.cache):
            return
        victim = functools.cache(functools.partial(self.bench.load, victim_folder(recipe, place.cache)))
        for amount, seed, (mitigation, setup) in self.ways:
            case = _Case(recipe, mitigation, setup, amount, seed)
            known = None if place.fresh else _find(read_results(self.path, RepairResults) or self.empty, case)
            scan = self.bench.scan_settings(case)
            if not self.bench.lacks(known, scan):
                continue
            for entry in self.bench.make(case, victim(), known, scan):
                add = functools.partial(_with_entry, entry, setup, victim().facts, scan)
                update_results(self.path, self.empty, add)
                place.tell(f"{number} of {self.total}: {recipe.key}: {describe(entry, setup)}")


def _find(results: RepairResults, case: _Case) -> RepairEntry | None:
    return next((entry for entry in results.entries if entry.identity == case.identity), None)


def _with_entry(
    entry: RepairEntry, setup: RepairSetup, facts: VictimFacts, scan: ScanSettings, results: RepairResults
) -> RepairResults:
    """The results with an entry in its place, and with everything that it speaks of."""
    scans = {} if entry.rescan is None else {entry.rescan.settings: scan}
    victims = {other.recipe.key: other for other in results.victims} | {facts.recipe.key: facts}
    entries = {other.identity: other for other in results.entries} | {entry.identity: entry}
    return results.model_copy(
        update={
            "setups": {**results.setups, setup.digest: setup},
            "scans": {**results.scans, **scans},
            "victims": tuple(victims.values()),
            "entries": tuple(entries.values()),
        }
    )


def describe(entry: RepairEntry, setup: RepairSetup) -> str:
    """One line for a terminal."""
    head = f"{setup.method}, {entry.images} images, seed {entry.seed}: "
    if entry.repair is None:
        return head + entry.problem
    before, after = entry.repair.before, entry.repair.after
    text = f"accuracy {before.accuracy:.1%} -> {after.accuracy:.1%}"
    if before.attack_success is not None and after.attack_success is not None:
        text += f", attack success {before.attack_success:.1%} -> {after.attack_success:.1%}"
    text += f", {entry.repair.seconds:.0f} s" + ("" if entry.repair.within_budget else ", over the budget")
    if entry.rescan is not None:
        text += f"; second scan: {entry.rescan.verdict.value}, {entry.rescan.seconds:.0f} s"
    return head + text


@dataclass(frozen=True)
class _Case:
    recipe: VictimRecipe
    mitigation: Mitigation
    setup: RepairSetup
    amount: Amount
    seed: int

    @property
    def identity(self) -> tuple[str, str, str, int]:
        return self.recipe.key, self.setup.digest, str(self.amount), self.seed


@dataclass(frozen=True)
class _Parts:
    """Clean images by their use; the scan's are the repair's only where the pool has no others."""

    repair: CleanData
    scan: CleanData
    apart: bool


class _Images:
    """The clean images of the benchmark; the last ones are kept."""

    def __init__(self, root: Path | None, cache: Path, test_images: int) -> None:
        self._root = root
        self._cache = cache
        self._test_images = test_images
        self._keep_last()

    def _keep_last(self) -> None:
        self.training_set = functools.cache(self._training_set)
        self.held_out = functools.lru_cache(maxsize=1)(self._held_out)
        self.pool = functools.lru_cache(maxsize=1)(self._pool)

    def __getstate__(self) -> tuple[Path | None, Path, int]:
        """What another process needs to draw the same images; it keeps its own."""
        return self._root, self._cache, self._test_images

    def __setstate__(self, state: tuple[Path | None, Path, int]) -> None:
        """Nothing is kept yet."""
        self._root, self._cache, self._test_images = state
        self._keep_last()

    def _training_set(self, dataset: str) -> int:
        """Number of images of the whole training set."""
        return len(load_split(dataset, "train", root=self._root, cache=self._cache))

    def _held_out(self, dataset: str) -> CleanData:
        return draw_clean(dataset, "test", self._test_images, TEST_SEED, root=self._root, cache=self._cache)

    def _pool(self, dataset: str, seed: int) -> CleanData:
        """The whole pool: the first of each class, then the second, and so on."""
        return draw_clean(dataset, "pool", WHOLE, seed, root=self._root, cache=self._cache)

    def parts(self, dataset: str, wanted: int, seed: int) -> _Parts:
        """So many images for a repair, and others for the scan of the repaired model."""
        pool = self.pool(dataset, seed)
        wanted = min(wanted, len(pool))
        spare = min(len(pool) - wanted, MAX_SCAN_IMAGES)
        generator = torch.Generator().manual_seed(seed)
        if spare < MIN_SCAN_IMAGES:
            repair = pool.subset(torch.arange(wanted))
            return _Parts(repair, repair.subset(torch.randperm(wanted, generator=generator)[:MAX_SCAN_IMAGES]), False)
        order = _in_like_proportion(pool.labels[: wanted + spare])
        scan = order[wanted:][torch.randperm(spare, generator=generator)]
        return _Parts(pool.subset(order[:wanted]), pool.subset(scan), True)


def _in_like_proportion(labels: Labels) -> Tensor:
    """Positions in an order of which any first part has about the same share of every class."""
    place = torch.empty(len(labels))
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        place[members] = (torch.arange(len(members)) + 0.5) / len(members)
    return place.argsort(stable=True)


@dataclass(frozen=True)
class _Victim:
    """A victim on the device, and what it does before any repair."""

    facts: VictimFacts
    model: SplitModel
    trigger: Trigger | None
    held_out: CleanData
    before: Behaviour
    success_images: int


@dataclass(frozen=True)
class _Bench:
    """What all repairs of a run have in common."""

    workplace: Workplace
    images: _Images
    detectors: tuple[Detector, ...]
    """Of the scans of repaired models."""
    rescan: bool
    """Whether there are such scans."""

    def scan_settings(self, case: _Case) -> ScanSettings:
        """Of the scan of a case's repaired victim, by the methods that an audit asks with its images."""
        images = self._parts(case).scan
        asked = suited(self.detectors, images.num_classes, images.class_sizes)
        return ScanSettings.of(asked, MAX_SCAN_IMAGES, seed=SCAN_SEED)

    def lacks(self, entry: RepairEntry | None, scan: ScanSettings) -> bool:
        """Whether something of a case's entry is still to be made."""
        return entry is None or (entry.repair is not None and self._lacks_scan(entry, entry.repair, scan))

    def _lacks_scan(self, entry: RepairEntry, repair: RepairMeasured, scan: ScanSettings) -> bool:
        current = entry.rescan is not None and entry.rescan.settings == scan.digest
        return self.rescan and repair.within_budget and not current

    def _parts(self, case: _Case) -> _Parts:
        dataset = case.recipe.dataset
        return self.images.parts(dataset, case.amount.images(self.images.training_set(dataset)), case.seed)

    def load(self, folder: Path) -> _Victim:
        """A victim and its behaviour."""
        victim: Victim = load_victim(folder)
        model = victim.model.to(self.workplace.where)
        trigger = victim.trigger.to(self.workplace.where) if victim.trigger is not None else None
        held_out = self.images.held_out(victim.facts.recipe.dataset).to(self.workplace.where)
        before, success_images = _behaviour(model, trigger, held_out)
        return _Victim(victim.facts, model, trigger, held_out, before, success_images)

    def make(
        self, case: _Case, victim: _Victim, entry: RepairEntry | None, scan: ScanSettings
    ) -> Iterator[RepairEntry]:
        """What a case lacks, part by part."""
        parts = self._parts(case)
        parts = _Parts(parts.repair.to(self.workplace.where), parts.scan.to(self.workplace.where), parts.apart)
        repaired: SplitModel | None = None
        if entry is not None and entry.repair is not None:
            repaired = self._stored(case, victim, len(parts.repair))
        if entry is None or entry.repair is None or repaired is None:
            entry, repaired = self._repair(case, victim, parts)
            yield entry
        if repaired is not None and entry.repair is not None and self._lacks_scan(entry, entry.repair, scan):
            scanned = self._rescan(case, victim, repaired, parts, scan)
            yield entry.model_copy(update={"rescan": scanned})

    def _place(self, case: _Case, images: int) -> Path:
        return (
            self.workplace.cache / "repairs" / case.recipe.key / f"{case.setup.digest}-{images}-{case.seed}.safetensors"
        )

    def _stored(self, case: _Case, victim: _Victim, images: int) -> SplitModel | None:
        """A repaired model of an earlier run; none where its weights are not there."""
        model = copy.deepcopy(victim.model)
        try:
            model.network.load_state_dict(safetensors.torch.load_file(self._place(case, images)))
        except (OSError, safetensors.SafetensorError, RuntimeError):
            return None  # not kept, or cut short: the repair is made again
        return model

    def _repair(self, case: _Case, victim: _Victim, parts: _Parts) -> tuple[RepairEntry, SplitModel | None]:
        place = self._place(case, len(parts.repair))
        entry = RepairEntry(
            victim=case.recipe.key,
            setup=case.setup.digest,
            amount=str(case.amount),
            images=len(parts.repair),
            asked=case.amount.images(self.images.training_set(case.recipe.dataset)),
            seed=case.seed,
        )
        mitigation, target = case.mitigation, truth_of(victim.facts).target
        if case.setup.aimed and isinstance(mitigation, TargetedMitigation) and target is not None:
            mitigation = mitigation.aimed_at(target)
        max_drop, state = case.setup.max_drop, place.with_suffix(f".{CODE}.state")  # another code's is not taken up
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            repaired = mitigation(victim.model, parts.repair, max_drop=max_drop, seed=case.seed, state=state)
            weights = {name: tensor.contiguous() for name, tensor in repaired.model.network.state_dict().items()}
            write_whole(place, safetensors.torch.save(weights))
        except OSError as problem:
            raise UsageError(f"{place}: cannot be written ({problem.strerror or problem}); choose a --cache") from None
        except UsageError:
            raise
        except BanauditError as problem:
            return entry.model_copy(update={"problem": str(problem)}), None
        state.unlink(missing_ok=True)
        after, _ = _behaviour(repaired.model, victim.trigger, victim.held_out)
        found = compare(victim.model, repaired.model, parts.scan, Meter())
        kept = next(item for item in repaired.epochs if item.epoch == repaired.kept_epoch)
        measured = RepairMeasured(
            code=CODE,
            before=victim.before,
            after=after,
            test_images=len(victim.held_out),
            success_images=victim.success_images,
            within_budget=not missed_budget(repaired, found, max_drop),
            kept_epoch=repaired.kept_epoch,
            kept_what=kept.what,
            attempts=repaired.attempts,
            unlearned=repaired.unlearned,
            losses=tuple(None if item.loss is None else rounded(item.loss) for item in repaired.epochs),
            accuracies=tuple(rounded(item.accuracy) for item in repaired.epochs),
            accuracy_before=rounded(repaired.accuracy_before),
            augmentation=str(repaired.augmentation),
            training_images=repaired.training_images,
            selection_images=repaired.selection_images,
            seconds=repaired.seconds,
            forward_images=repaired.forward_images,
            backward_images=repaired.backward_images,
            device=device_name(self.workplace.where),
            threads=torch.get_num_threads(),
        )
        return entry.model_copy(update={"repair": measured}), repaired.model

    def _rescan(
        self, case: _Case, victim: _Victim, repaired: SplitModel, parts: _Parts, settings: ScanSettings
    ) -> Rescan:
        started, meter = time.monotonic(), Meter()
        truth, classes = truth_of(victim.facts), parts.scan.num_classes
        sources = () if truth.source is None else (truth.source,)
        judged = judge_repaired(
            victim.model,
            repaired,
            wanted_labels(classes, truth.target, sources, truth.mapping),
            truth.reading,
            scan=parts.scan,
            training=parts.repair,
            held_out=parts.scan,
            detectors=self.detectors,
            trains_against=case.mitigation.trains_against,
            seed=SCAN_SEED,
            meter=meter,
        )
        if truth.reading is not None and judged.relapse is not None:
            relapse = [Relapse.of(truth.reading, judged.relapse)]
        else:
            relapse = [
                Relapse.of(
                    reading,
                    probe_relapse(
                        victim.model,
                        repaired,
                        parts.repair,
                        parts.scan,
                        wanted,
                        reading,
                        seed=SCAN_SEED,
                        meter=meter,
                    ),
                )
                for reading, wanted in arbitrary_targets(case.recipe.seed, classes).items()
            ]
        scan = record_scan(judged.report, settings, meter)
        return Rescan(
            settings=settings.digest,
            code=CODE,
            verdict=judged.report.verdict,
            reason=judged.report.reason,
            target=scan.target,
            scores={item.key: item.score for item in scan.readings},
            fired=tuple(item.key for item in scan.readings if item.fired),
            images=len(parts.scan),
            images_apart=parts.apart,
            relapse=tuple(relapse),
            seconds=round(time.monotonic() - started, 3),
            forward_images=meter.forward_images,
            backward_images=meter.backward_images,
        )


def arbitrary_targets(seed: int, classes: int) -> dict[Reading, dict[int, int]]:
    """What the relapse probe aims at on a model without a backdoor: source label -> label, for each kind of reading.

    Args:
        seed: Chooses the classes; the victim's own, so that victims differ.
        classes: Number of classes K.
    """
    target, source = seed % classes, (seed + 1) % classes
    return {
        Reading.ALL_TO_ONE: wanted_labels(classes, target, (), None),
        Reading.ALL_TO_ALL: wanted_labels(
            classes, None, (), {label: (label + 1) % classes for label in range(classes)}
        ),
        Reading.SOURCE_TARGET: wanted_labels(classes, target, (source,), None),
    }


def _behaviour(model: SplitModel, trigger: Trigger | None, held_out: CleanData) -> tuple[Behaviour, int]:
    """What a model does, and the number of images that attack success is a share of."""
    accuracy = rounded(clean_accuracy(model, held_out.images, held_out.labels))
    if trigger is None:
        return Behaviour(accuracy=accuracy), 0
    found = attack_success(model, trigger, held_out.images, held_out.labels, held_out.num_classes)
    rates = [None if rate is None or math.isnan(rate) else rounded(rate) for rate in (found.rate, found.leak_rate)]
    return Behaviour(accuracy=accuracy, attack_success=rates[0], leak_rate=rates[1]), found.images
