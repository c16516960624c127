"""What neuron noise and the feature mask do to victims: the numbers behind the paper's Figures 1 to 3.

Noise and mask are those of the default ``ban`` detector, found on one half of the clean images and read on the other.

Source: Xu et al., "BAN", NeurIPS 2024, Figures 1 (features under growing noise), 2 (accuracy under noise with and
without the negative mask, Eq. 6) and 3 (cross-entropy through the mask and through its negative, Eq. 5).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from banaudit.bench.code import CODE
from banaudit.bench.conditions import draw_clean
from banaudit.bench.embedding import tsne
from banaudit.bench.results_files import read_results, update_results
from banaudit.bench.runner import Truth, truth_of
from banaudit.bench.strata import kind_of, setup_of, stratum_of
from banaudit.bench.victims import Victim, VictimRecipe, is_trained, load_victim, victim_folder
from banaudit.bench.workplace import Workplace
from banaudit.data import CleanData
from banaudit.detectors.ban import BAN, noisy_features
from banaudit.detectors.base import SEARCH_SHARE
from banaudit.errors import UsageError
from banaudit.neurons import NoisyModel
from banaudit.results import Reading, Record

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4)
"""Sizes eps of the noise."""

PICTURED = (0.0, 0.2, 0.3, 0.4)
"""Those at which the features of one backdoored victim and its clean twin are laid out in the plane."""

POINTS = 200
"""Images in such a picture."""

WHAT = "neuron noise"
"""What a meter is told; nobody listens."""


class Layout(Record):
    """Features under noise, laid out in the plane by t-SNE."""

    eps: float
    points: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    predicted: tuple[int, ...]


class NoiseLevel(Record):
    """Predictions on held-out images under noise of one size."""

    eps: float
    accuracy: float
    target_share: float | None = Field(description="Share of other-class images that go to the true target.")
    top: int = Field(description="Class that most mistakes go to.")
    top_share: float = Field(description="Share of the images of other classes that go there.")


class VictimNoise(Record):
    """One victim under noise and mask."""

    key: str
    stratum: str
    setup: str
    truth: Truth
    code: str
    levels: tuple[NoiseLevel, ...]
    noisy_accuracy: float = Field(description="Under noise of the detector's size.")
    masked_accuracy: float = Field(description="Under the same noise, through the negative mask (Eq. 6).")
    kept_loss: float = Field(description="Cross-entropy through the mask, without noise.")
    removed_loss: float = Field(description="Cross-entropy through the negative mask, without noise.")
    mask_mean: float = Field(description="Mean of the mask's entries.")
    layouts: tuple[Layout, ...] = ()


class NoiseResults(Record):
    """Victims of one split under noise and mask."""

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["noise"] = "noise"
    split: str
    images: int
    seed: int
    eps: float = Field(description="Size of the detector's noise.")
    entries: tuple[VictimNoise, ...] = ()


def run_noise(
    recipes: Sequence[VictimRecipe],
    path: Path,
    *,
    split: str,
    images: int = 500,
    seed: int = 0,
    workplace: Workplace | None = None,
) -> NoiseResults:
    """Measure every trained victim under noise and mask; the results file is whole after each.

    Args:
        recipes: Victims; those that are not in the cache yet are left out.
        path: Results file; victims in it are not measured again.
        split: Name of the list of recipes.
        images: Most clean images, of the held-out split.
        seed: Of images, noise and mask.
        workplace: Where and how to work; none: here, with the user's cache.

    Raises:
        UsageError: The file is of another split, number of images or seed.
        DataError: A data set is missing.
    """
    empty = NoiseResults(split=split, images=images, seed=seed, eps=BAN().eps)
    results = read_results(path, NoiseResults) or empty
    if results.model_copy(update={"entries": ()}) != empty:
        raise UsageError(
            f"{path}: holds {results.images} images and seed {results.seed} of split {results.split}, "
            f"not {images} and {seed} of {split}; give another --output"
        )
    place = workplace or Workplace()
    trained = [recipe for recipe in recipes if is_trained(recipe, place.cache)]
    pictured = _pictured(trained)
    done = set() if place.fresh else {entry.key for entry in results.entries}
    for number, recipe in enumerate(trained, start=1):
        if recipe.key in done:
            continue
        clean = draw_clean(recipe.dataset, "test", images, seed, root=place.root, cache=place.cache).to(place.where)
        entry = measure_noise(
            load_victim(victim_folder(recipe, place.cache)), clean, seed=seed, picture=recipe in pictured
        )
        results = update_results(path, empty, functools.partial(_with_entry, entry))
        place.tell(
            f"{number} of {len(trained)}: {recipe.key}: accuracy {entry.noisy_accuracy:.1%} under noise, "
            f"{entry.masked_accuracy:.1%} through the negative mask"
        )
    return results


def _with_entry(entry: VictimNoise, results: NoiseResults) -> NoiseResults:
    others = (other for other in results.entries if other.key != entry.key)
    return results.model_copy(update={"entries": (*others, entry)})


def _pictured(recipes: Sequence[VictimRecipe]) -> list[VictimRecipe]:
    """The first all-to-one victim that has a plain clean twin of the same data set and network, and that twin."""
    for recipe in recipes:
        if recipe.labelling is None or recipe.labelling.kind != "all-to-one":
            continue
        for twin in recipes:
            if twin.attack is None and kind_of(twin) == "plain" and setup_of(twin) == setup_of(recipe):
                return [recipe, twin]
    return []


def measure_noise(victim: Victim, clean: CleanData, *, seed: int = 0, picture: bool = False) -> VictimNoise:
    """One victim under noise of every size, and through mask and negative mask.

    Args:
        victim: Its model is not changed.
        clean: Clean images, on the device to compute on.
        seed: Of noise and mask.
        picture: Whether to lay out features in the plane as well.
    """
    settings = BAN()
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(victim.model).to(clean.images.device).eval()
    search, held_out = clean.split(SEARCH_SHARE, generator)
    noisy = NoisyModel(model, form="relative", statistics=settings.statistics)
    noise = {eps: _find_noise(noisy, search, eps, generator) for eps in sorted({*LEVELS, settings.eps})}
    features = {eps: noisy_features(noisy, held_out.images, found, WHAT) for eps, found in noise.items()}
    fitted_on = search.draw(settings.search_images, generator)
    clean_features = noisy_features(noisy, fitted_on.images, noisy.no_noise(), WHAT)
    mask = settings.fit_mask(model, clean_features, fitted_on.labels, generator)
    truth, recipe = truth_of(victim.facts), victim.facts.recipe
    with torch.no_grad():
        predicted = {eps: model.head(found).argmax(dim=1) for eps, found in features.items()}
        masked = model.head(features[settings.eps] * (1 - mask)).argmax(dim=1)
        kept = F.cross_entropy(model.head(features[0.0] * mask), held_out.labels)
        removed = F.cross_entropy(model.head(features[0.0] * (1 - mask)), held_out.labels)
    return VictimNoise(
        key=recipe.key,
        stratum=stratum_of(recipe),
        setup=setup_of(recipe),
        truth=truth,
        code=CODE,
        levels=tuple(_level(eps, predicted[eps], held_out, truth) for eps in LEVELS),
        noisy_accuracy=_share(predicted[settings.eps] == held_out.labels),
        masked_accuracy=_share(masked == held_out.labels),
        kept_loss=round(float(kept), 4),
        removed_loss=round(float(removed), 4),
        mask_mean=round(float(mask.mean()), 4),
        layouts=tuple(_layout(eps, features[eps], predicted[eps], held_out) for eps in PICTURED) if picture else (),
    )


def _find_noise(noisy: NoisyModel, search: CleanData, eps: float, generator: torch.Generator) -> Tensor:
    """Noise [2, P] of one size that raises the loss (Eq. 4)."""
    return BAN(eps=eps).search_noise(noisy, search, generator, WHAT) if eps else noisy.no_noise()


def _level(eps: float, predicted: Tensor, held_out: CleanData, truth: Truth) -> NoiseLevel:
    labels = held_out.labels
    wrong = predicted[predicted != labels]
    top = int(torch.bincount(wrong, minlength=held_out.num_classes).argmax()) if len(wrong) else 0
    target = truth.target if truth.reading is Reading.ALL_TO_ONE else None
    return NoiseLevel(
        eps=eps,
        accuracy=_share(predicted == labels),
        target_share=None if target is None else _share(predicted[labels != target] == target),
        top=top,
        top_share=_share(predicted[labels != top] == top),
    )


def _share(hits: Tensor) -> float:
    return round(float(hits.double().mean()), 4)


def _layout(eps: float, features: Tensor, predicted: Tensor, held_out: CleanData) -> Layout:
    # Held-out images come class by class; every so manieth keeps all classes in the picture.
    chosen = torch.linspace(0, len(held_out) - 1, min(POINTS, len(held_out))).round().long().to(features.device)
    pooled = features[chosen].flatten(2).mean(dim=2) if features.dim() > 2 else features[chosen]
    places = tsne(pooled)
    places = places / places.abs().max().clamp_min(1e-12)
    return Layout(
        eps=eps,
        points=tuple((round(x, 3), round(y, 3)) for x, y in places.tolist()),
        labels=tuple(held_out.labels[chosen].tolist()),
        predicted=tuple(predicted[chosen].tolist()),
    )
