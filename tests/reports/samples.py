"""Records of every kind, with and without hostile names, for the tests of reports and commands."""

from __future__ import annotations

from banaudit.results import (
    ArchitectureFacts,
    CheckpointFacts,
    ClassScore,
    CleanAccuracy,
    DataFacts,
    Evidence,
    Finding,
    Inspection,
    PreprocessingFacts,
    Reading,
    Report,
    Verdict,
)

NAMES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOSTILE = (
    "\x1b[31mred\x9b2J\u202e [bold]x[/bold] <b onclick=x>|`code`** "
    "[a](http://evil.example) www.evil.example @all \n# top"
)


def evidence(*, classes: int = 10, fired: bool = True, names: tuple[str, ...] = NAMES) -> Evidence:
    return Evidence(
        reading=Reading.ALL_TO_ONE,
        measures="1 - loss of the lowest class over the runner-up's; no unit",
        score=0.91 if fired else 0.04,
        threshold=0.3,
        fired=fired,
        null=0.05,
        target=7 if fired else None,
        per_class=tuple(
            ClassScore(
                label=label,
                name=names[label] if label < len(names) else str(label),
                score=0.91 if fired and label == 7 else 0.01 * (label % 5),
            )
            for label in range(classes)
        ),
        restarts=(0.91, 0.9, 0.88),
        agreement=1.0,
        note="",
    )


def report(
    verdict: Verdict = Verdict.BACKDOORED,
    *,
    classes: int = 10,
    accuracy: float = 0.945,
    permuted: bool = False,
    names: tuple[str, ...] = NAMES,
    path: str = "model.pt",
) -> Report:
    fired = verdict is Verdict.BACKDOORED
    quiet = Evidence(
        reading=Reading.ALL_TO_ALL,
        measures="mean share of a class that goes to its favourite",
        score=0.31,
        threshold=0.5,
        fired=False,
        null=0.28,
        restarts=(0.3, 0.31),
        agreement=0.5,
    )
    found = Finding(
        method="targeted_noise",
        title="Additive neuron noise aimed at each class in turn",
        verdict=verdict,
        reason="all-to-one score 0.91 is above the threshold 0.3" if fired else "no score is above its threshold",
        evidence=(evidence(classes=classes, fired=fired, names=names), quiet),
        settings={"eps_max": 0.4, "steps": 10, "restarts": 3},
        seconds=12.3,
        forward_images=15_000,
        backward_images=7_500,
    )
    return Report(
        verdict=verdict,
        reason=found.reason,
        target=7 if fired else None,
        target_name=names[7] if fired else None,
        reading=Reading.ALL_TO_ONE if fired else None,
        calibration="uncalibrated: no false-alarm rate has been measured yet",
        clean_accuracy=CleanAccuracy(
            accuracy=accuracy,
            images=500,
            floor=0.5,
            label_permutation={0: 1, 1: 0, 2: 2} if permuted else None,
            permuted_accuracy=0.93 if permuted else None,
        ),
        findings=(found,),
        checked=("all-to-one", "all-to-all"),
        not_checked=("backdoors that need more than one trigger", "anything outside the image classifier"),
        caveats=("uncalibrated: thresholds are provisional",),
        checkpoint=CheckpointFacts(
            path=path,
            sha256="ab" * 32,
            bytes=1_234_567,
            format="torch zip",
            state_key="netC",
            stripped_prefixes=("module.",),
            ignored=("optimizer", "epoch"),
            tensors=122,
            parameters=700_000,
        ),
        architecture=ArchitectureFacts(
            name="resnet18",
            description="ResNet-18 with a 3x3 stem and no max-pooling, width 16, basic blocks 2-2-2-2",
            source="recognised",
            classes=classes,
            channels=3,
            parameters=700_000,
            batch_norms=20,
            outputs="log-probabilities",
        ),
        preprocessing=PreprocessingFacts(
            size=32,
            channels=3,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.247, 0.2435, 0.2616),
            name="cifar10",
            source="chosen by clean accuracy",
            tried={"cifar10": accuracy, "imagenet": 0.9, "none": 0.62},
        ),
        data=DataFacts(
            path="clean/",
            layout="class folders",
            found=512,
            unreadable=2,
            used=500,
            class_mapping={name: label for label, name in enumerate(names)},
            mapping_source="sorted order",
            per_class_min=48,
            per_class_max=52,
            sha256="cd" * 32,
        ),
        class_names=names,
        seed=0,
        device="cpu",
        seconds=14.2,
        tool_version="0.1.0",
        torch_version="2.15.0",
        started="2026-11-20T10:00:00Z",
    )


def inspection(*, unsafe: bool = False, path: str = "model.pt", key: str = "conv1.weight") -> Inspection:
    return Inspection(
        path=path,
        bytes=1000,
        sha256="ab" * 32,
        format="torch zip",
        loadable=not unsafe,
        reason="it would call os.system; save model.state_dict() instead" if unsafe else "weights of a resnet18",
        unsafe=unsafe,
        unsafe_globals=("os.system",) if unsafe else (),
        state_keys=() if unsafe else ("state_dict",),
        keys=() if unsafe else ((key, (16, 3, 3, 3), "float32"),),
        parameters=0 if unsafe else 432,
        architecture=None if unsafe else "resnet18",
        classes=None if unsafe else 10,
    )
