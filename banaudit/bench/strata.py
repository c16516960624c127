"""Groups that victims are counted in, which victims count at all, and samples that have something of every group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from banaudit.bench.population import floor_misses, usual_epochs
from banaudit.bench.runner import VictimEntry
from banaudit.bench.victims import VictimFacts, VictimRecipe


def network_of(recipe: VictimRecipe) -> str:
    """Network and width in words."""
    return f"{recipe.architecture}, width {recipe.width}"


def setup_of(recipe: VictimRecipe) -> str:
    """Data set and network in words."""
    return f"{recipe.dataset}, {network_of(recipe)}"


def attack_of(recipe: VictimRecipe) -> str:
    """Attack and labelling rule of a backdoored victim in words.

    Raises:
        ValueError: The recipe is of a clean model.
    """
    if recipe.attack is None or recipe.labelling is None:
        raise ValueError(f"{recipe.key}: expected a backdoored victim, got a clean one")
    return f"{recipe.attack.name}, {recipe.labelling.kind}"


def kind_of(recipe: VictimRecipe) -> str:
    """How a clean model was trained, in words; ``plain`` where nothing was unusual."""
    training, words = recipe.training, []
    if training.label_smoothing:
        words.append("label-smoothed")
    if training.augmentation != "standard":
        words.append(f"{training.augmentation} augmentation")
    if training.adversarial_eps:
        words.append("adversarially trained")
    if recipe.imbalance < 1:
        words.append("imbalanced classes")
    if not words and training.epochs != _usual_epochs(recipe):
        words.append("under-trained" if training.epochs < _usual_epochs(recipe) else "over-trained")
    return ", ".join(words) or "plain"


def stratum_of(recipe: VictimRecipe) -> str:
    """Attack and labelling of a backdoored victim, kind of a clean one."""
    return f"clean, {kind_of(recipe)}" if recipe.attack is None else attack_of(recipe)


def stratified(recipes: Sequence[VictimRecipe], count: int | None) -> list[VictimRecipe]:
    """The first of every stratum, then the second of each, and so on, until there are so many.

    Args:
        recipes: In their order of urgency.
        count: How many at most; none: all, in that order.

    Returns:
        The sample, in the order of ``recipes``.
    """
    if count is None:
        return list(recipes)
    seen: dict[str, int] = {}
    turns: list[tuple[int, int]] = []
    for position, recipe in enumerate(recipes):
        stratum = stratum_of(recipe)
        turns.append((seen.get(stratum, 0), position))
        seen[stratum] = seen.get(stratum, 0) + 1
    chosen = {position for _, position in sorted(turns)[:count]}
    return [recipe for position, recipe in enumerate(recipes) if position in chosen]


def shortfalls(entries: Iterable[VictimEntry]) -> dict[str, tuple[str, ...]]:
    """Why a victim does not count, by its key; empty where it does. See :func:`shortfalls_of`."""
    return shortfalls_of(entry.victim for entry in entries)


def shortfalls_of(victims: Iterable[VictimFacts]) -> dict[str, tuple[str, ...]]:
    """Why a victim does not count, by its key; empty where it does.

    Clean accuracy is held against the mean of the plain clean models of the same data set and network among the
    victims, where there are some.
    """
    victims = list(victims)
    twins: dict[tuple[str, str], list[float]] = {}
    for facts in victims:
        if facts.recipe.attack is None and kind_of(facts.recipe) == "plain":
            twins.setdefault(_twin_group(facts), []).append(facts.clean_accuracy)
    found: dict[str, tuple[str, ...]] = {}
    for facts in victims:
        accuracies = twins.get(_twin_group(facts), [])
        found[facts.recipe.key] = floor_misses(facts, sum(accuracies) / len(accuracies) if accuracies else None)
    return found


def counted(entries: Sequence[VictimEntry]) -> list[VictimEntry]:
    """The entries whose victims reach their floors."""
    short = shortfalls(entries)
    return [entry for entry in entries if not short[entry.key]]


def _twin_group(facts: VictimFacts) -> tuple[str, str]:
    return facts.recipe.dataset, network_of(facts.recipe)


def _usual_epochs(recipe: VictimRecipe) -> int:
    usual = usual_epochs(recipe.dataset, recipe.architecture, recipe.width)
    return recipe.training.epochs if usual is None else round(usual)
