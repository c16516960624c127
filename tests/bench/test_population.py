import hashlib
import itertools
from collections import Counter
from pathlib import Path

import torch

from banaudit.bench.attacks import IAD, AdapPatch, BadNets
from banaudit.bench.attacks.labelling import AllToAll, AllToOne, Derangement, SourceTarget
from banaudit.bench.datasets import DATASETS
from banaudit.bench.networks import NETWORKS, build_network
from banaudit.bench.population import (
    AGAIN_SEED,
    DIGITS_SEED,
    MIXTURE_SEED,
    OPENED_SEEDS,
    OPENED_SHARES,
    PAIRS_SEED,
    RESIDUAL_SEED,
    SPLITS,
    SSDT_SEED,
    TEST_SEED,
    TRAINED_AGAIN,
    development,
    floor_misses,
    opened,
    paper_scale,
    sealed_test,
    still_sealed,
)
from banaudit.bench.published_detection import PUBLISHED, cell_of
from banaudit.bench.trainer import TrainingSettings
from banaudit.bench.victims import VictimFacts, VictimRecipe

PLAIN_TRAINING = [TrainingSettings(epochs=epochs) for epochs in (8, 12, 18, 4, 30, 45)]


def targets(recipes):
    return {(r.dataset, r.labelling.target) for r in recipes if isinstance(r.labelling, (AllToOne, SourceTarget))}


def test_seeds_are_unique_and_split_the_population():
    chosen, sealed = development(), sealed_test()
    assert len({r.seed for r in chosen}) == len(chosen)
    assert len({r.seed for r in sealed}) == len(sealed)
    assert all(100 <= r.seed < TEST_SEED for r in chosen)
    assert all(r.seed >= TEST_SEED for r in sealed)
    assert len({r.key for r in chosen + sealed}) == len(chosen + sealed)


def test_no_target_is_in_both_splits():
    assert not targets(development()) & targets(sealed_test())


def test_development_never_sees_what_only_the_test_has():
    for recipe in development():
        assert recipe.dataset != "imagenette64"
        assert recipe.architecture not in ("mobilenetv2", "densenet37")
        assert not isinstance(recipe.attack, (IAD, AdapPatch))
        assert not isinstance(recipe.labelling, Derangement)


def test_the_test_is_as_large_and_as_mixed_as_promised():
    sealed = sealed_test()[:600]
    attacks = Counter((r.attack.name, r.labelling.kind) for r in sealed if r.attack)
    singles = {name: n for (name, kind), n in attacks.items() if kind in ("all-to-one", "source-target")}
    assert len(singles) == 11
    assert set(singles.values()) == {30}
    assert all(n >= 10 for n in attacks.values())
    clean = [r for r in sealed if r.attack is None]
    assert len(clean) >= 100
    plain = [r for r in clean if r.training in PLAIN_TRAINING and r.imbalance == 1]
    assert len(plain) <= len(clean) / 2
    for group in (clean, [r for r in sealed if r.attack]):
        assert max(Counter(r.dataset for r in group).values()) <= 0.4 * len(group)
        assert max(Counter(r.architecture for r in group).values()) <= 0.4 * len(group)


def digest(recipes):
    return hashlib.sha256("\n".join(recipe.key for recipe in recipes).encode()).hexdigest()[:16]


def test_recipes_never_change_and_new_ones_come_last():
    assert digest(development()[:50]) == "7340e32398087190"
    assert digest(sealed_test()[:380]) == "fdd1a8400103336e"
    assert digest(sealed_test(5)[:95]) == "1366d68b168a992e"
    assert [recipe.attack.name for recipe in development()[50:55]] == ["evasive"] * 3 + ["ssdt"] * 2
    assert {recipe.attack.name for recipe in sealed_test()[570:600]} == {"evasive"}


def test_the_papers_size_has_the_papers_cells():
    recipes = paper_scale()
    assert len({r.key for r in recipes}) == len(recipes) == 3 * (9 + 3 + 5 * 6)
    assert {r.width for r in recipes} == {64}
    assert not {r.seed for r in recipes} & {r.seed for r in development() + sealed_test()}
    first = recipes[: len(recipes) // 3]
    cells = {cell for r in first if (cell := cell_of(r)) is not None}
    tables = {number: set(table.rows) for number, table in enumerate(PUBLISHED)}
    assert all(rows & cells for rows in tables.values())
    assert {r.dataset for r in recipes} <= set(DATASETS)
    for r in first:
        assert r.training.epochs >= 40
        with torch.device("meta"):
            spec = DATASETS[r.dataset]
            build_network(r.architecture, r.width, spec.channels, spec.num_classes)
        if isinstance(r.labelling, (AllToOne, SourceTarget)):
            assert r.labelling.target < DATASETS[r.dataset].num_classes


def test_what_is_trained_again_differs_in_seed_and_epochs():
    again = {recipe.seed - AGAIN_SEED: recipe for recipe in (*sealed_test()[600:604], *sealed_test()[880:882])}
    assert tuple(again) == TRAINED_AGAIN
    for recipe in sealed_test():
        if recipe.seed in again:
            longer = again[recipe.seed]
            assert longer.training.epochs == 1.5 * recipe.training.epochs
            assert longer.model_copy(update={"seed": recipe.seed, "training": recipe.training}) == recipe


def test_victims_added_at_the_end_are_the_same_however_many_come_before():
    assert [recipe.key for recipe in sealed_test(5)[95:100]] == [recipe.key for recipe in sealed_test()[570:575]]


def test_more_victims_of_ssdt_come_last():
    more = sealed_test()[604:616]
    assert len(more) == 12 == len({(recipe.labelling.source, recipe.labelling.target) for recipe in more})
    assert all(recipe.attack.name == "ssdt" and recipe.seed >= SSDT_SEED for recipe in more)


def test_more_victims_on_digits_come_last():
    more = sealed_test()[616:688]
    assert [recipe.seed for recipe in more] == list(range(DIGITS_SEED, DIGITS_SEED + 72))
    assert {recipe.dataset for recipe in more} == {"mnist"}
    assert sum(recipe.attack is None for recipe in more) == 24
    assert digest(more) == "5df5e80047304256"


def test_a_mixture_on_signs_and_photographs_comes_last():
    more = sealed_test()[688:760]
    assert [recipe.seed for recipe in more] == list(range(MIXTURE_SEED, MIXTURE_SEED + 72))
    assert Counter(recipe.dataset for recipe in more) == {"gtsrb32": 36, "cifar10": 36}
    assert sum(recipe.imbalance < 1 for recipe in more) == 6 == sum(recipe.attack is None for recipe in more) / 3
    assert all(recipe.attack is None for recipe in more if recipe.imbalance < 1)
    assert digest(more) == "4a867d68ab5c657c"


def test_digits_and_signs_in_turn_come_last():
    more = sealed_test()[760:880]
    assert [recipe.seed for recipe in more] == list(range(PAIRS_SEED, PAIRS_SEED + 120))
    assert Counter((recipe.dataset, recipe.architecture) for recipe in more) == {
        ("mnist", "densenet37"): 60,
        ("gtsrb32", "vgg11"): 60,
    }
    cleans = [recipe for recipe in more if recipe.attack is None]
    assert len(cleans) == 36
    assert len({recipe.training.model_dump_json() for recipe in cleans}) > 8
    assert digest(more) == "209956b21fd371d2"


def test_residual_networks_come_last():
    more = sealed_test()[882:]
    assert [recipe.seed for recipe in more] == list(range(RESIDUAL_SEED, RESIDUAL_SEED + 216))
    assert set(Counter((recipe.dataset, recipe.architecture) for recipe in more).values()) == {54}
    one_class = [recipe.labelling for recipe in more if isinstance(recipe.labelling, SourceTarget)]
    assert len(one_class) == 12
    assert all(labelling.source != labelling.target for labelling in one_class)
    assert len({recipe.training.model_dump_json() for recipe in more if recipe.attack is None}) > 8
    assert digest(more) == "5afbbfbc9afc5384"


def test_imbalanced_development_victims_come_last():
    more = development()[55:]
    assert {recipe.imbalance for recipe in more} == {0.1}
    assert sum(recipe.attack is None for recipe in more) == 7
    assert digest(more) == "770cb1d117d58062"


def test_every_recipe_can_be_built():
    for recipe in development() + sealed_test():
        assert recipe.dataset in DATASETS
        assert recipe.architecture in NETWORKS
        if recipe.labelling is not None:
            recipe.labelling.mapping(DATASETS[recipe.dataset].num_classes)


def facts(recipe, accuracy, success):
    return VictimFacts(
        recipe=recipe, clean_accuracy=accuracy, attack_success=success, train_loss=0, seconds=0, torch_version=""
    )


def test_floors_hold_for_backdoored_victims_only():
    patched = VictimRecipe(attack=BadNets(), labelling=AllToOne())
    assert floor_misses(facts(patched, 0.82, 0.95), 0.84) == ()
    assert len(floor_misses(facts(patched, 0.78, 0.85), 0.84)) == 3
    assert floor_misses(facts(VictimRecipe(attack=BadNets(), labelling=AllToAll()), 0.82, 0.8)) == ()
    assert floor_misses(facts(VictimRecipe(), 0.4, None), 0.84) == ()


def test_the_shares_of_what_was_opened_are_all_of_it_and_their_files_small():
    shares = [[recipe.key for recipe in SPLITS[name]()] for name in OPENED_SHARES]
    assert sorted(itertools.chain(*shares)) == sorted(recipe.key for recipe in opened())
    benchmark = Path(__file__).parents[2] / "docs" / "benchmark"
    assert all((benchmark / f"{name}.json").stat().st_size < 2**20 for name in OPENED_SHARES)


def test_what_was_opened_is_no_longer_sealed():
    names = [recipe.key for recipe in opened()]
    assert len(names) == len(OPENED_SEEDS)
    assert not set(names) & {recipe.key for recipe in still_sealed()}
    assert set(names) | {recipe.key for recipe in still_sealed()} == {recipe.key for recipe in sealed_test()}
