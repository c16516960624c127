"""Studies: the same victims scanned under several conditions, one results file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from banaudit.bench.conditions import StudyName, study_conditions
from banaudit.bench.results_files import read_results
from banaudit.bench.runner import StudyResults, scan_victims
from banaudit.bench.strata import stratified
from banaudit.bench.victims import VictimRecipe, is_trained
from banaudit.bench.workplace import Workplace
from banaudit.detectors import Detector
from banaudit.errors import UsageError


def run_study(
    study: StudyName,
    recipes: Sequence[VictimRecipe],
    path: Path,
    *,
    split: str,
    limit: int | None = None,
    detectors: Sequence[Detector] | None = None,
    images: int = 1000,
    seed: int = 0,
    workplace: Workplace | None = None,
) -> StudyResults:
    """Scan a sample of the trained victims under every condition of a study; the file is whole after each scan.

    Args:
        study: Its name.
        recipes: Victims to choose from; those that are not in the cache yet are left out.
        path: Results file; scans in it with the same settings are kept.
        split: Name of the list of recipes.
        limit: Size of the sample, drawn evenly from attacks and kinds of clean models; none: all that are trained.
        detectors: Methods to run; none: the default ones.
        images: Most clean images, where the study does not vary them.
        seed: Of methods and drawing, where the study does not vary them.
        workplace: Where and how to work; none: here, with the user's cache.

    Raises:
        UsageError: The file is of another study or split, or of the same under other conditions.
        DataError: A data set is missing.
    """
    conditions = study_conditions(study, images=images, seed=seed)
    named = {condition.name: condition for condition in conditions}
    results = read_results(path, StudyResults) or StudyResults(split=split, study=study, conditions=named)
    if (results.split, results.study, results.conditions) != (split, study, named):
        raise UsageError(
            f"{path}: holds study {results.study} of split {results.split}, or the same with other images or another "
            "seed; give another --output"
        )
    workplace = workplace or Workplace()
    trained = [recipe for recipe in recipes if is_trained(recipe, workplace.cache)]
    return scan_victims(
        stratified(trained, limit),
        conditions,
        path,
        results,
        detectors=detectors,
        workplace=workplace,
    )
