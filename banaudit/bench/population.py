"""The benchmark's victims as recipes: which models are trained for development and which for the test.

The split was fixed before any model was looked at. Both are lists from the most to the least urgent, so that any first
part of them is a fair population of its own size. Victims that were thought of later come after all others, whose
recipes never change: the last ten of 30 replicates (seeds from 1380 on), those of :class:`Evasive`, two of SSDT, those
trained again, more of SSDT, more on digits, a mixture on signs and photographs, and twice digits and signs.

The test is opened part by part. Victims on which a threshold of the default scan was set are published as they were
opened, and become development (``opened``); ``test`` is the rest, most of it still sealed.

Only the test was made to have: Imagenette at 64 pixels, MobileNetV2 and DenseNet, IAD and Adap-Patch, random
derangements, and other target labels than development on every data set; what was opened since counts as development
too: IAD, Adap-Patch, derangements, and three networks on Imagenette. Adap-Blend and SSDT are in both.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from banaudit.bench.attacks import IAD, SSDT, AdapBlend, AdapPatch, AnyAttack, BadNets, Blend, Bpp, WaNet
from banaudit.bench.attacks.evasive import Evasive
from banaudit.bench.attacks.grond import Grond
from banaudit.bench.attacks.label_consistent import LabelConsistent
from banaudit.bench.attacks.labelling import AllToAll, AllToOne, AnyLabelling, Derangement, SourceTarget
from banaudit.bench.trainer import TrainingSettings
from banaudit.bench.victims import VictimFacts, VictimRecipe

TEST_SEED = 1000
"""First seed of the test; development uses 100 to 999."""
EVASIVE_SEED = 9000
"""First seed of the test's victims that were added at its end; far from those of the others, however many there are."""

AGAIN_SEED = 20000
"""What the seed of a victim grows by when it is trained a second time."""
AGAIN_FACTOR = 1.5
"""Times as many epochs for it."""

SSDT_SEED = 22000
"""First seed of the test's victims of SSDT that were added when a rule of ``pair-perturbation`` was frozen: of the ones
on digits, which are cheap, none was left sealed."""
SSDT_SHIFTS = (2, 3)
"""Places between target and source, for each time that such victims were added."""

DIGITS_SEED = 23000
"""First seed of the test's victims on digits that were added when ``pair-perturbation`` joined the default verdict: of
the ones with ten classes, which it judges, hardly a cheap one was left sealed."""
DIGITS_SETUPS = ("wrn-16", "preact_resnet18")
"""Their networks, in turn."""

MIXTURE_SEED = 24000
"""First seed of the test's victims that were added when the joint verdict learnt to spare models of imbalanced classes:
signs and photographs in turn, and of the clean ones every third is imbalanced."""
MIXTURE_SETUPS = ("gtsrb32", "cifar10")
"""Their data sets, in turn; the network is VGG11, the cheapest of those that reach the floors on both."""

PAIRS_SEED = 25000
"""First seed of the test's victims that were added when ``corruptions`` joined the default verdict: digits and signs in
turn, of the ones on signs the cheapest network, on digits one that none before was trained on there."""
PAIRS_DIGITS, PAIRS_SIGNS = "densenet37", "vgg11"
"""Their networks."""

RESIDUAL_SEED = 26000
"""First seed of the test's victims that were added when joint evidence was first held against nature: of the networks
that are cheap to train, those without residual connections, and DenseNets on digits, were nearly used up."""
RESIDUAL_NETWORKS = ("wrn-16", "preact_resnet18")
"""Their networks."""
RESIDUAL_SSDT_SHIFT = 5
"""Places between target and source of those of SSDT; the shifts 1 to 4 have been used on digits, not all for either."""

EPOCHS = {"cifar10": 8, "gtsrb32": 12, "mnist": 4, "imagenette64": 30}
"""Passes over the training images at the small scale; a clean ResNet-18 of width 16 passes 80 % on CIFAR with them."""
EPOCHS_FACTOR = {"vgg11": 1.5, "vgg16": 1.5}
"""Times as many for networks that learn more slowly and cost less."""

PAPER_SEED = 40000
"""First seed of the victims of the paper's size."""
PAPER_WIDTH = 64
"""Channels of the first stage of the paper's networks."""
PAPER_EPOCHS = {"cifar10": 60, "gtsrb32": 40, "tiny-imagenet-32": 60, "imagenette160": 100}
"""Epochs of these; the paper takes 200. There are 3,000 images of Imagenette to train on."""

ATTACK_SUCCESS_FLOOR = 0.9
ALL_TO_ALL_FLOOR = 0.75
CIFAR_ACCURACY_FLOOR = 0.8
TWIN_GAP = 0.03
"""A victim counts where its attack succeeds this often, its clean accuracy is this high on CIFAR and falls short of its
clean twin's by at most this much. Fixed before training."""

TEST_TARGETS = {
    "cifar10": (2, 7, 0, 5, 8, 3),
    "gtsrb32": (1, 13, 25, 4, 33, 9),
    "mnist": (0, 8, 5, 2, 9, 4),
    "imagenette64": (6, 3, 0, 8, 5, 1),
    "imagenette160": (6, 3, 0, 8, 5, 1),
    "tiny-imagenet-32": (12, 70, 111, 150, 183, 44),
}
"""Target labels of the test; development uses none of them."""

FIRST_OPENED = frozenset((
    1003, 1004, 1011, 1017, 1019, 1020, 1027, 1034, 1043, 1050, 1051, 1056, 1059, 1066, 1067,
    1073, 1082, 1083, 1098, 1099, 1106, 1112, 1114, 1115, 1122, 1129, 1138, 1146, 1151,
))  # fmt: skip
"""The first part of the test, as it was opened (``docs/benchmark/test-first.md``); the verdict fell short on it."""
SECOND_OPENED = frozenset((
    1000, 1001, 1002, 1012, 1013, 1015, 1016, 1021, 1025, 1035, 1044, 1045, 1048, 1057, 1058,
    1076, 1077, 1079, 1091, 1154, 1161, 1162, 1168, 1177, 1178, 1193, 1194, 1201, 1207, 1209,
    1210, 1217, 1224, 1233, 1241, 1246, 1249, 1257, 1263, 1272, 1273, 1289, 1296, 1302, 1304,
    1305, 1312, 1319, 1328, 1336, 1341, 1344, 1352, 1367, 1368,
))  # fmt: skip
"""The second part (``docs/benchmark/test-second.md``): too many false alarms, on it and on development models."""
THIRD_OPENED = frozenset((
    1007, 1022, 1023, 1026, 1038, 1049, 1101, 1105, 1135, 1136, 1137, 1158, 1173, 1185, 1190,
    1192, 1240, 1247, 1269, 1271, 1351, 1382, 1383, 1384, 1397, 1407, 1431, 1439, 1453, 1462,
    1463, 1486, 1494, 1495, 1509, 1518, 1531, 1542, 21158, 22000, 22001, 22002, 22003, 22004,
    22005, 22006, 22007, 22008, 22009, 22010, 22011,
))  # fmt: skip
"""Of the third part (``docs/benchmark/test-third.md``) those with ten classes: source-specific backdoors were missed on
them, and ``pair-perturbation`` joined the default verdict of networks with few classes. The others, with 43, were
judged as before, and stayed in the test."""
FOURTH_OPENED = frozenset((
    1080, 1104, 1113, 1124, 1152, 1153, 1156, 1182, 1184, 1203, 1211, 1256, 1266, 1288, 1391, 1399, 1400, 1401,
    1414, 1423, 1436, 1437, 1446, 1447, 1479, 1502, 1526, 1534, 1557, 1558, 23000, 23001, 23002, 23003, 23004,
    23005, 23006, 23007, 23008, 23009, 23010, 23011, 23012, 23013, 23014, 23015, 23016, 23017, 23018,
))  # fmt: skip
"""The fourth part (``docs/benchmark/test-fourth.md``), with what was left of the third: two clean models of imbalanced
classes were accused. On one of its victims, 23000, it had been chosen that a reading which names a source names the
backdoor."""
FIFTH_OPENED = frozenset((
    23019, 23020, 23021, 23022, 23024, 23025, 23026, 23027, 23028, 23029, 23030, 23032, 23033, 23034, 23037,
    23038, 23039, 23040, 23041, 23058, 24000, 24001, 24002, 24003, 24004, 24005, 24006, 24007, 24008, 24009,
    24010, 24012, 24013,
))  # fmt: skip
"""The fifth part (``docs/benchmark/test-fifth.md``): blended patterns on digits were missed, and backdoors that one
class alone triggers."""
SIXTH_OPENED = frozenset((
    23042, 23043, 23044, 23045, 23046, 23047, 23048, 23049, 24011, 24014, 24015, 24016, 24024, 24025, 24026,
    24027, 24028, 24029,
))  # fmt: skip
"""The sixth part (``docs/benchmark/test-sixth.md``). Its verdicts were all right, but the rule accused the
demonstration's clean model on some other draws of its images, and was changed."""
SEVENTH_OPENED = frozenset((23050, 23051, 23052, 23053, 24017, 24018, 24030, 24031, 24032, 24033, 24034))
"""The seventh part (``docs/benchmark/test-seventh.md``): a clean model of digits was accused, and a blended pattern on
digits, IAD on photographs and a source-specific backdoor of 43 classes were missed."""
EIGHTH_OPENED = frozenset((
    1100, 1155, 1234, 1235, 1267, 1281, 1303, 1314, 1358, 1393, 1424, 1493, 1503, 23023, 23031, 23035, 23054,
    23055, 23056, 23057, 23059, 23060, 23061, 23062, 23063, 23064, 23065, 23066, 23068, 23069, 23070, 23071,
    24035, 24036, 24037, 24040, 24043, 24048, 24049, 24050, 24051, 24052, 24054, 24055, 24056, 24057, 24059,
    24060, 24066,
))  # fmt: skip
"""The eighth part (``docs/benchmark/test-eighth.md``): two clean models were accused, one adversarially trained on
digits, one on photographs of imbalanced classes; ``corruptions`` joined the default verdict, which asks for more."""
NINTH_OPENED = frozenset((
    1548, 24053, 24061, 25000, 25001, 25002, 25003, 25004, 25005, 25006, 25007, 25008, 25009, 25010, 25011, 25012,
    25014, 25015, 25019,
))  # fmt: skip
"""The ninth part (``docs/benchmark/test-ninth.md``): a map that hardly fired named a backdoor of one target, since maps
named before targets."""
TENTH_OPENED = frozenset(
    (24064, 25013, 25016, 25017, 25018, 25020, 25021, 25022, 25023, 25024, 25025, 25026, 25027, 25029)
)
"""The tenth part (``docs/benchmark/test-tenth.md``): a clean model was accused of a map, a DenseNet that neuron noise
steers easily."""
ELEVENTH_OPENED = frozenset((
    1042, 1118, 1346, 24038, 25028, 25030, 25033, 25034, 25035, 25036, 25037, 25038, 25041, 25042,
))  # fmt: skip
"""The eleventh part (``docs/benchmark/test-eleventh.md``): two clean models were accused, one on Imagenette of a pair
of classes, one on digits of what ordinary changes do to it; Adap-Blend on signs was missed."""
TWELFTH_OPENED = frozenset((
    24042, 24058, 24067, 25040, 25043, 25044, 25045, 25046, 25047, 25048, 25050, 25051, 25052, 25053, 25054,
    25056, 25057, 25060, 25061, 25062, 25064, 25065, 25066, 25073, 25074, 25076, 25077, 25082, 44015, 44042,
))  # fmt: skip
"""The twelfth part (``docs/benchmark/test-twelfth.md``): a source-specific backdoor of 43 classes was missed, and one
of Adap-Blend on signs."""
THIRTEENTH_OPENED = frozenset((
    1032, 24021, 25049, 25055, 25058, 25059, 25063, 25067, 25068, 25070, 25081, 25085, 25086, 25093, 25096,
))  # fmt: skip
"""The thirteenth part (``docs/benchmark/test-thirteenth.md``): a clean network for digits was accused of the 8, and a
source-specific backdoor on digits was missed."""
FOURTEENTH_OPENED = frozenset((
    24020, 25071, 25078, 25079, 25080, 25090, 25101, 25116, 26003, 26023, 26025, 26026, 26039, 26057,
    26075, 26111,
))  # fmt: skip
"""The fourteenth part (``docs/benchmark/test-fourteenth.md``): a clean network for digits, trained on uneven classes,
was accused by the agreement of both kinds of neuron noise, a rule that is gone since."""
FIFTEENTH_OPENED = frozenset((
    25088, 25099, 25102, 25105, 25110, 26000, 26001, 26002, 26004, 26006, 26007, 26008, 26009, 26011, 26013, 26015,
    26016, 26018, 26019, 26020, 26021, 26022, 26028, 26030, 26032, 26037, 26040, 26059, 26061, 26062, 26073, 26093,
    26095, 26097, 26098, 26147, 26183,
))  # fmt: skip
"""The fifteenth part (``docs/benchmark/test-fifteenth.md``). Its verdicts were all right, but one of its clean networks
was accused with other images, of a pair that the pixels alone put first."""
OPENED_SHARES = {
    "opened-1": (FIRST_OPENED, SECOND_OPENED, THIRD_OPENED, FOURTH_OPENED, FIFTH_OPENED, SIXTH_OPENED, SEVENTH_OPENED),
    "opened-2": (EIGHTH_OPENED, NINTH_OPENED),
    "opened-3": (TENTH_OPENED, ELEVENTH_OPENED, TWELFTH_OPENED, THIRTEENTH_OPENED, FOURTEENTH_OPENED),
    "opened-4": (FIFTEENTH_OPENED,),
}
"""Name of a split -> parts whose scans of today share a results file, which is to stay below a MiB."""
OPENED_SEEDS = frozenset[int]().union(*itertools.chain.from_iterable(OPENED_SHARES.values()))
"""Test victims on which the default scan was changed after they had been opened; development victims since."""

CHOSE_METHOD = {
    "pair-perturbation": frozenset((1049, 1486, 22000, 22001, 22002, 22003, 22004)),
    "clean-logits": frozenset((
        1100, 1234, 1235, 1267, 23035, 23054, 23055, 23056, 23057, 23059, 23060, 23061, 23062, 23063, 23064, 23065,
        23066, 23068, 23069, 23070, 23071, 24035, 24040, 24048, 24049, 24050, 24051, 24052, 24054, 24055, 24056, 24057,
    )),
}  # fmt: skip
"""Method -> victims of the test on which its rule was set: sealed for the other methods, not for it."""

CHOSE_REPAIR = frozenset((
    1017, 1020, 1043, 1056, 1112, 1303, 1414, 1423, 1436, 1439, 1446, 22006,
    23035, 23045, 23047, 23050, 23051, 23053, 23059, 23063, 23065,
    24000, 24006, 24011, 24015, 24018, 24024, 24026, 24027, 24030, 24032, 24033, 24035, 24048, 24049, 24050, 24052,
    24054, 24057,
))  # fmt: skip
"""Test victims that have a repair in the tables and may have chosen its settings. IAD of the first part: the settings
were tried on four of that part (IAD, Adap-Blend, SSDT on signs and digits) of which the other two were not kept. Blend
on digits, 1439: an older rule left it whole. Those on signs below 2000: a rule in between cost them two to four points.
Where and how strongly a universal perturbation is unlearned: 23063, 24006, 24048, 24050, 24052; how: 24000, which an
earlier way had cost too much. All others: how far the images that choose are shifted, and what may be lost on them, was
set on what earlier rules had made of them."""

TRAINED_AGAIN = (1101, 1136, 1158, 1269, 24015, 24042)
"""Test victims on CIFAR, of cells of which more than 30 % stayed below the floors, by a clean accuracy just below 80 %
(some by their attack as well): a backdoor takes some of what eight epochs are enough for, or twelve. They are trained a
second time, for longer; the first versions stay in the tables as misses. Attacks that do not take within their papers'
poison rates (Bpp on digits, WaNet on signs) are not trained again: it is attack success that they lack."""

BAN_POISON_RATE = 0.05
"""Rate at which BAN's experiments use the adaptive attacks, whose own papers use 0.003."""
ALL_TO_ALL_RATE = 0.1
"""Rate of BadNets with a target for each class."""
SMALL_GENERATORS = 16
"""Width of the generators of IAD and SSDT at the small scale: half the paper's, for networks of a quarter its width."""
SMALL_MASK_EPOCHS = 1
"""Passes that train their mask alone: an eighth of the epochs on CIFAR, as 25 of 200 are in the paper's setting."""
ROBUST_EPS = 4 / 255
"""Size of the perturbations on which adversarially trained clean models are trained."""


@dataclass(frozen=True)
class Setup:
    """A data set and a network.

    Args:
        dataset: Name of the data set.
        architecture: Name of the network.
        width: Channels of its first stage.
    """

    dataset: str
    architecture: str
    width: int = 16


@dataclass(frozen=True)
class CleanKind:
    """A way to train a clean model.

    Args:
        training: What differs from the plain settings, as (name, value) pairs.
        epochs_factor: Times the usual number of epochs.
        imbalance: Images of the rarest class for each of the most frequent.
    """

    training: dict[str, float | str] = field(default_factory=dict)
    epochs_factor: float = 1.0
    imbalance: float = 1.0


PLAIN = CleanKind()
IMBALANCED = CleanKind(imbalance=0.1)
HARD_KINDS = (
    CleanKind({"label_smoothing": 0.1, "augmentation": "strong"}),
    IMBALANCED,
    CleanKind({"adversarial_eps": ROBUST_EPS}),
    CleanKind(epochs_factor=0.25),
    CleanKind({"augmentation": "none"}),
    CleanKind(epochs_factor=2.5),
    CleanKind({"label_smoothing": 0.1}),
    CleanKind({"augmentation": "strong"}),
)
"""Clean models on which detectors raise false alarms: smoothed, imbalanced, robust, under-trained, over-fitted."""

CIFAR = Setup("cifar10", "resnet18")
"""The small twin of the paper's main setting."""

TEST_SETUPS = (
    CIFAR,
    Setup("gtsrb32", "vgg11"),
    Setup("imagenette64", "resnet18"),
    Setup("cifar10", "vgg16"),
    Setup("gtsrb32", "resnet18"),
    Setup("cifar10", "mobilenetv2"),
    Setup("mnist", "wrn-16"),
    Setup("cifar10", "preact_resnet18"),
    Setup("gtsrb32", "densenet37"),
    Setup("imagenette64", "vgg16"),
)
"""Each tenth of the test; no data set and no network has more than four of the ten."""


def small_iad() -> IAD:
    """IAD with the generators of the small scale."""
    return IAD(width=SMALL_GENERATORS, mask_epochs=SMALL_MASK_EPOCHS)


def small_ssdt() -> SSDT:
    """SSDT with the generators of the small scale."""
    return SSDT(width=SMALL_GENERATORS, mask_epochs=SMALL_MASK_EPOCHS)


def adaptive_blend() -> AdapBlend:
    """Adap-Blend at the rates of BAN's experiments."""
    return AdapBlend(poison_rate=BAN_POISON_RATE, cover_rate=BAN_POISON_RATE)


def adaptive_patch() -> AdapPatch:
    """Adap-Patch at the rates of BAN's experiments; twice as many covers as poisoned images, as in its paper."""
    return AdapPatch(poison_rate=BAN_POISON_RATE, cover_rate=2 * BAN_POISON_RATE)


def many_badnets() -> BadNets:
    """BadNets at the rate for a target for each class."""
    return BadNets(poison_rate=ALL_TO_ALL_RATE)


TEST_ATTACKS: tuple[Callable[[], AnyAttack], ...] = (
    BadNets,
    Blend,
    WaNet,
    small_iad,
    Bpp,
    adaptive_blend,
    adaptive_patch,
    small_ssdt,
    LabelConsistent,
    Grond,
)
TEST_ALL_TO_ALL: tuple[Callable[[], AnyAttack], ...] = (many_badnets, WaNet, small_iad, Bpp)


def usual_epochs(dataset: str, architecture: str, width: int) -> float | None:
    """Passes over the training images of a plain clean model; none where no split has such.

    Args:
        dataset: Name of the data set.
        architecture: Name of the network.
        width: Channels of its first stage.
    """
    if width == PAPER_WIDTH:
        return PAPER_EPOCHS.get(dataset)
    return EPOCHS_FACTOR.get(architecture, 1.0) * EPOCHS[dataset] if dataset in EPOCHS else None


def clean(setup: Setup, seed: int, kind: CleanKind = PLAIN) -> VictimRecipe:
    """A clean model."""
    usual = usual_epochs(setup.dataset, setup.architecture, setup.width)
    assert usual is not None, setup
    return VictimRecipe(
        dataset=setup.dataset,
        architecture=setup.architecture,
        width=setup.width,
        seed=seed,
        training=TrainingSettings.model_validate({"epochs": max(1, round(kind.epochs_factor * usual))} | kind.training),
        imbalance=kind.imbalance,
    )


def backdoored(setup: Setup, seed: int, attack: AnyAttack, labelling: AnyLabelling) -> VictimRecipe:
    """A backdoored model, trained as the plain clean one."""
    return clean(setup, seed).model_copy(update={"attack": attack, "labelling": labelling})


def development() -> list[VictimRecipe]:
    """Victims on which scores, thresholds and their combination are chosen."""
    vgg, preact, wide = Setup("cifar10", "vgg11"), Setup("cifar10", "preact_resnet18"), Setup("cifar10", "wrn-16")
    signs, signs_vgg, digits = Setup("gtsrb32", "resnet18"), Setup("gtsrb32", "vgg11"), Setup("mnist", "resnet18")
    return [
        clean(CIFAR, 100),
        backdoored(vgg, 110, BadNets(), AllToOne(target=9)),
        clean(vgg, 111),
        backdoored(CIFAR, 101, BadNets(), AllToOne(target=4)),
        backdoored(digits, 113, BadNets(), AllToOne(target=7)),
        clean(digits, 112),
        backdoored(CIFAR, 102, Blend(), AllToOne(target=1)),
        backdoored(vgg, 115, Blend(), AllToOne(target=6)),
        clean(CIFAR, 103, HARD_KINDS[0]),
        clean(vgg, 114, HARD_KINDS[0]),
        backdoored(CIFAR, 104, WaNet(), AllToOne(target=6)),
        backdoored(signs_vgg, 109, BadNets(), AllToOne(target=12)),
        clean(signs_vgg, 108),
        clean(vgg, 117, HARD_KINDS[4]),
        backdoored(CIFAR, 106, many_badnets(), AllToAll()),
        backdoored(vgg, 118, WaNet(), AllToOne(target=1)),
        backdoored(CIFAR, 105, Bpp(), AllToOne(target=9)),
        clean(vgg, 121, HARD_KINDS[1]),
        backdoored(vgg, 122, many_badnets(), AllToAll()),
        clean(vgg, 123, HARD_KINDS[3]),
        backdoored(vgg, 124, Bpp(), AllToOne(target=4)),
        backdoored(CIFAR, 107, adaptive_blend(), AllToOne(target=4)),
        backdoored(CIFAR, 116, small_ssdt(), SourceTarget(source=1, target=6)),
        clean(signs, 119),
        backdoored(signs, 120, WaNet(), AllToOne(target=2)),
        backdoored(digits, 125, Blend(), AllToOne(target=3)),
        clean(CIFAR, 126, HARD_KINDS[3]),
        backdoored(preact, 127, WaNet(), AllToOne(target=9)),
        clean(wide, 128),
        backdoored(wide, 129, BadNets(), AllToOne(target=1)),
        clean(vgg, 130, HARD_KINDS[2]),
        backdoored(CIFAR, 131, WaNet(), AllToAll()),
        clean(CIFAR, 132, HARD_KINDS[1]),
        backdoored(CIFAR, 133, LabelConsistent(), AllToOne(target=4)),
        clean(preact, 134),
        backdoored(wide, 135, Blend(), AllToOne(target=9)),
        clean(CIFAR, 136, HARD_KINDS[2]),
        backdoored(signs_vgg, 137, Blend(), AllToOne(target=38)),
        clean(signs_vgg, 138, HARD_KINDS[0]),
        backdoored(CIFAR, 139, Bpp(), AllToAll()),
        clean(vgg, 140, HARD_KINDS[5]),
        backdoored(CIFAR, 141, Grond(), AllToOne(target=1)),
        clean(wide, 142, HARD_KINDS[7]),
        backdoored(vgg, 143, adaptive_blend(), AllToOne(target=9)),
        backdoored(wide, 144, small_ssdt(), SourceTarget(source=3, target=9)),
        clean(digits, 145, HARD_KINDS[1]),
        backdoored(CIFAR, 146, Blend(), AllToOne(target=9)),
        clean(CIFAR, 147),
        backdoored(CIFAR, 148, BadNets(), AllToOne(target=6)),
        clean(CIFAR, 149, HARD_KINDS[5]),
        backdoored(CIFAR, 150, Evasive(), AllToOne(target=6)),
        backdoored(vgg, 151, Evasive(), AllToOne(target=1)),
        backdoored(wide, 152, Evasive(), AllToOne(target=4)),
        backdoored(signs_vgg, 153, small_ssdt(), SourceTarget(source=14, target=38)),
        backdoored(digits, 154, small_ssdt(), SourceTarget(source=1, target=7)),
        *_development_imbalanced(),
    ]


def _development_imbalanced() -> list[VictimRecipe]:
    """Models of imbalanced classes: clean ones, on which the joint verdict raised false alarms, and backdoored ones.

    What spares the former must not lose the latter.
    """
    wide, preact, digits = Setup("mnist", "wrn-16"), Setup("mnist", "preact_resnet18"), Setup("mnist", "resnet18")
    vgg = Setup("cifar10", "vgg11")
    recipes = [clean(setup, 155 + place, IMBALANCED) for place, setup in enumerate((wide, preact, wide, vgg, digits))]
    uneven = {"imbalance": IMBALANCED.imbalance}
    attacked: tuple[tuple[AnyAttack, int], ...] = ((BadNets(), 7), (Blend(), 3), (WaNet(), 1))
    recipes += [
        backdoored(wide, 160 + place, attack, AllToOne(target=target)).model_copy(update=uneven)
        for place, (attack, target) in enumerate(attacked)
    ]
    return [*recipes, clean(vgg, 163, IMBALANCED), clean(wide, 164, IMBALANCED)]


def sealed_test(replicates: int = 30) -> list[VictimRecipe]:
    """Victims that are opened once: in each replicate one of every attack, and half as many clean ones, most hard.

    After them all, one victim for each replicate that was trained against the default scan's own score, those that are
    trained a second time, one of SSDT on digits for each of the targets, a mixture on digits, one on signs and
    photographs, one on digits and signs, those of the former that are trained a second time, and one of residual
    networks on digits and signs.

    Args:
        replicates: Victims of each attack; of each all-to-all variant half as many.
    """
    recipes: list[VictimRecipe] = []
    for replicate in range(replicates):
        for number, attack in enumerate(TEST_ATTACKS):
            setup = _setup(replicate, number)
            seed = TEST_SEED + len(recipes)
            made = attack()
            recipes.append(backdoored(setup, seed, made, _labelling(made, setup, replicate)))
            if number % 2 == 0:
                kind = HARD_KINDS[(replicate + number) % len(HARD_KINDS)] if number % 4 == 0 else PLAIN
                recipes.append(clean(setup, TEST_SEED + len(recipes), kind))
        # Every other replicate shifts the labels by one, the others permute them.
        for number, attack in enumerate(TEST_ALL_TO_ALL):
            seed = TEST_SEED + len(recipes)
            recipes.append(backdoored(_setup(replicate, number), seed, attack(), _to_all(replicate + number, seed)))
    for replicate in range(replicates):
        setup, made = _setup(replicate, len(TEST_ATTACKS)), Evasive()
        recipes.append(backdoored(setup, EVASIVE_SEED + replicate, made, _labelling(made, setup, replicate)))
    mixture = _mixture()
    again, mixture_again = (
        [_again(recipe) for recipe in part if recipe.seed in TRAINED_AGAIN] for part in (recipes, mixture)
    )
    more = _more_ssdt() + _more_digits() + mixture + _digits_and_signs() + mixture_again + _residual()
    return recipes + again + more


def paper_scale(replicates: int = 3) -> list[VictimRecipe]:
    """Victims of the paper's size, in the cells of its tables; for a GPU, the cells that matter most first.

    ResNet-18 on CIFAR-10 with every attack of the paper, then VGG16 and DenseNet121 there with those of its Table 1,
    then ResNet-18 on the larger data sets with those of its Table 9; a clean one in each.

    Args:
        replicates: Victims of each cell; the second of all cells comes after the first of all.
    """
    resnet = Setup("cifar10", "resnet18", PAPER_WIDTH)
    others = [Setup("cifar10", name, PAPER_WIDTH) for name in ("vgg16", "densenet121")]
    larger = [Setup(name, "resnet18", PAPER_WIDTH) for name in ("gtsrb32", "tiny-imagenet-32", "imagenette160")]
    all_to_one: tuple[Callable[[], AnyAttack], ...] = (BadNets, Blend, WaNet, IAD, Bpp)
    adaptive: tuple[Callable[[], AnyAttack], ...] = (adaptive_blend, adaptive_patch, SSDT)
    all_to_all: tuple[Callable[[], AnyAttack], ...] = (WaNet, IAD, Bpp)
    recipes: list[VictimRecipe] = []
    for replicate in range(replicates):

        def add(setup: Setup, attack: AnyAttack | None = None, labelling: AnyLabelling | None = None) -> None:
            seed = PAPER_SEED + len(recipes)
            recipes.append(
                clean(setup, seed) if attack is None else backdoored(setup, seed, attack, labelling or AllToAll())
            )

        for setup, attacks in ((resnet, all_to_one + adaptive), *((setup, all_to_one) for setup in (*others, *larger))):
            add(setup)
            for make in attacks:
                attack = make()
                add(setup, attack, _labelling(attack, setup, replicate))
            if setup is resnet:
                for make in all_to_all:
                    add(setup, make())
    return recipes


def _more_ssdt() -> list[VictimRecipe]:
    targets = TEST_TARGETS["mnist"]
    return [
        backdoored(
            Setup("mnist", "wrn-16"),
            SSDT_SEED + round_ * len(targets) + number,
            small_ssdt(),
            SourceTarget(source=targets[(number + shift) % len(targets)], target=target),
        )
        for round_, shift in enumerate(SSDT_SHIFTS)
        for number, target in enumerate(targets)
    ]


def _more_digits() -> list[VictimRecipe]:
    """Of each target a victim of every attack that takes on digits, SSDT twice, and four clean ones."""
    targets = TEST_TARGETS["mnist"]
    kinds = itertools.cycle(HARD_KINDS)
    recipes: list[VictimRecipe] = []
    for replicate, target in enumerate(targets):
        setup = Setup("mnist", DIGITS_SETUPS[replicate % len(DIGITS_SETUPS)])

        def add(attack: AnyAttack, labelling: AnyLabelling, setup: Setup = setup) -> None:
            recipes.append(backdoored(setup, DIGITS_SEED + len(recipes), attack, labelling))

        def add_clean(kind: CleanKind, setup: Setup = setup) -> None:
            recipes.append(clean(setup, DIGITS_SEED + len(recipes), kind))

        to_one = AllToOne(target=target)
        near, far = (targets[(replicate + shift) % len(targets)] for shift in (1, 4))
        add(small_ssdt(), SourceTarget(source=near, target=target))
        add_clean(PLAIN)
        add(BadNets(), to_one)
        add(Blend(), to_one)
        add_clean(next(kinds))
        add(WaNet(), to_one)
        add(small_iad(), to_one)
        add(small_ssdt(), SourceTarget(source=far, target=target))
        add_clean(PLAIN)
        add(adaptive_blend(), to_one)
        add_clean(next(kinds))
        to_all = (many_badnets, WaNet, small_iad)[replicate % 3]()
        add(to_all, _to_all(replicate, DIGITS_SEED + len(recipes)))
    return recipes


def _mixture() -> list[VictimRecipe]:
    """Of each target a victim of every attack of the paper, one with a target for each class, and three clean ones.

    The clean ones are a plain one, an imbalanced one, and one of another hard kind.
    """
    kinds = itertools.cycle(kind for kind in HARD_KINDS if kind is not IMBALANCED)
    recipes: list[VictimRecipe] = []
    for replicate in range(len(TEST_TARGETS["cifar10"])):
        setup = Setup(MIXTURE_SETUPS[replicate % len(MIXTURE_SETUPS)], "vgg11")
        kind = next(kinds)
        to_one: tuple[AnyAttack | CleanKind, ...] = (
            *(BadNets(), IMBALANCED, Blend(), WaNet(), PLAIN, small_iad()),
            *(Bpp(), kind, adaptive_blend(), adaptive_patch(), small_ssdt()),
        )
        for item in to_one:
            recipes.append(_clean_or_backdoored(setup, MIXTURE_SEED + len(recipes), item, replicate))
        seed, to_all = MIXTURE_SEED + len(recipes), (many_badnets, WaNet, small_iad, Bpp)[replicate % 4]
        recipes.append(backdoored(setup, seed, to_all(), _to_all(replicate, seed)))
    return recipes


def _digits_and_signs() -> list[VictimRecipe]:
    """Of each target digits and signs in turn, of both clean models and victims of the attacks that take there."""
    setups = (Setup("mnist", PAIRS_DIGITS), Setup("gtsrb32", PAIRS_SIGNS))
    half = len(HARD_KINDS) // 2
    on_first, on_second = itertools.cycle(HARD_KINDS), itertools.cycle((*HARD_KINDS[half:], *HARD_KINDS[:half]))
    recipes: list[VictimRecipe] = []
    for replicate in range(len(TEST_TARGETS["mnist"])):
        on_digits: tuple[AnyAttack | CleanKind, ...] = (
            *(BadNets(), next(on_first), WaNet(), PLAIN, small_iad(), next(on_first)),
            *(adaptive_blend(), Blend(), small_ssdt()),
        )
        on_signs: tuple[AnyAttack | CleanKind, ...] = (
            *(PLAIN, Blend(), next(on_second), small_iad(), Bpp(), adaptive_patch()),
            *(next(on_second), BadNets(), adaptive_blend()),
        )
        for items in zip(on_digits, on_signs, strict=True):
            for setup, item in zip(setups, items, strict=True):
                recipes.append(_clean_or_backdoored(setup, PAIRS_SEED + len(recipes), item, replicate))
        to_all = (many_badnets, WaNet, small_iad)[replicate % 3](), (Bpp, small_iad, many_badnets)[replicate % 3]()
        for setup, attack in zip(setups, to_all, strict=True):
            seed = PAIRS_SEED + len(recipes)
            recipes.append(backdoored(setup, seed, attack, _to_all(replicate, seed)))
    return recipes


def _residual() -> list[VictimRecipe]:
    """Of each target, on digits and on signs and for each of two networks, seven backdoored victims and two clean ones.

    The clean ones are a plain one and one of a hard kind; SSDT is on digits alone, of Bpp and Adap-Patch, which do not
    take there, there are some on signs.
    """
    half = len(HARD_KINDS) // 2
    on_digits, on_signs = itertools.cycle(HARD_KINDS), itertools.cycle((*HARD_KINDS[half:], *HARD_KINDS[:half]))
    targets = TEST_TARGETS["mnist"]
    recipes: list[VictimRecipe] = []
    for replicate, network in itertools.product(range(len(targets)), RESIDUAL_NETWORKS):
        from_one = SourceTarget(
            source=targets[(replicate + RESIDUAL_SSDT_SHIFT) % len(targets)], target=targets[replicate]
        )
        digits, signs = Setup("mnist", network), Setup("gtsrb32", network)
        for setup, items in (
            (
                digits,
                (BadNets(), PLAIN, Blend(), small_ssdt(), next(on_digits), small_iad(), adaptive_blend(), WaNet()),
            ),
            (
                signs,
                (Bpp(), PLAIN, BadNets(), adaptive_patch(), next(on_signs), small_iad(), adaptive_blend(), Blend()),
            ),
        ):
            for item in items:
                seed = RESIDUAL_SEED + len(recipes)
                if isinstance(item, SSDT):
                    recipes.append(backdoored(setup, seed, item, from_one))
                else:
                    recipes.append(_clean_or_backdoored(setup, seed, item, replicate))
        for setup, attack in ((digits, (many_badnets, small_iad, WaNet)), (signs, (Bpp, many_badnets, small_iad))):
            seed = RESIDUAL_SEED + len(recipes)
            recipes.append(backdoored(setup, seed, attack[replicate % 3](), _to_all(replicate, seed)))
    return recipes


def _again(recipe: VictimRecipe) -> VictimRecipe:
    longer = recipe.training.model_copy(update={"epochs": round(AGAIN_FACTOR * recipe.training.epochs)})
    return recipe.model_copy(update={"seed": AGAIN_SEED + recipe.seed, "training": longer})


def floor_misses(facts: VictimFacts, twin_accuracy: float | None = None) -> tuple[str, ...]:
    """Why a backdoored victim does not count; empty where it does, and for clean models, which may be of any quality.

    Args:
        facts: What was measured of the victim.
        twin_accuracy: Mean clean accuracy of plain clean models of the same data set and network; none: not compared.
    """
    recipe = facts.recipe
    if recipe.labelling is None or facts.attack_success is None:
        return ()
    misses: list[str] = []
    to_all = isinstance(recipe.labelling, AllToAll | Derangement)
    floor = ALL_TO_ALL_FLOOR if to_all else ATTACK_SUCCESS_FLOOR
    if facts.attack_success < floor:
        misses.append(f"attack success {facts.attack_success:.3f} is below {floor}")
    if recipe.dataset == "cifar10" and facts.clean_accuracy < CIFAR_ACCURACY_FLOOR:
        misses.append(f"clean accuracy {facts.clean_accuracy:.3f} is below {CIFAR_ACCURACY_FLOOR}")
    if twin_accuracy is not None and facts.clean_accuracy < twin_accuracy - TWIN_GAP:
        misses.append(f"clean accuracy {facts.clean_accuracy:.3f} is more than {TWIN_GAP} below {twin_accuracy:.3f}")
    return tuple(misses)


def _setup(replicate: int, number: int) -> Setup:
    return TEST_SETUPS[(replicate + 3 * number) % len(TEST_SETUPS)]


def _clean_or_backdoored(setup: Setup, seed: int, item: AnyAttack | CleanKind, replicate: int) -> VictimRecipe:
    if isinstance(item, CleanKind):
        return clean(setup, seed, item)
    return backdoored(setup, seed, item, _labelling(item, setup, replicate))


def _to_all(turn: int, seed: int) -> AnyLabelling:
    """A target for each class: by turns the next one, and a random other one."""
    return AllToAll() if turn % 2 == 0 else Derangement(seed=seed)


def _labelling(attack: AnyAttack, setup: Setup, replicate: int) -> AnyLabelling:
    targets = TEST_TARGETS[setup.dataset]
    target = targets[replicate % len(targets)]
    if isinstance(attack, SSDT):
        return SourceTarget(source=targets[(replicate + 1) % len(targets)], target=target)
    return AllToOne(target=target)


def opened(seeds: Collection[int] = OPENED_SEEDS) -> list[VictimRecipe]:
    """Victims of the test that were opened before the thresholds of today were set.

    Args:
        seeds: Of those that are wanted.
    """
    return [recipe for recipe in sealed_test() if recipe.seed in seeds]


def still_sealed() -> list[VictimRecipe]:
    """Victims of the test that no threshold of the default scan was set on."""
    return [recipe for recipe in sealed_test() if recipe.seed not in OPENED_SEEDS]


SPLITS: dict[str, Callable[[], list[VictimRecipe]]] = {
    "development": development,
    "opened": opened,
    **{name: functools.partial(opened, frozenset[int]().union(*parts)) for name, parts in OPENED_SHARES.items()},
    "test": still_sealed,
    "whole-test": sealed_test,
    "paper": paper_scale,
}
"""The lists by name. The whole test is for repairs: of what was opened, clean victims chose the relapse probe's
thresholds (:mod:`banaudit.relapse`), backdoored ones nothing of a repair but what ``docs/methods.md`` names."""
