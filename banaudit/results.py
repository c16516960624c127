"""Facts that leave the process: what a scan, an inspection or a repair found, as versioned JSON.

Everything here is frozen, refuses unknown fields, and holds plain numbers and words only: a tensor never enters.
``SCHEMA_VERSION`` follows semantic versioning: a field added is a minor step, a field removed or renamed a major one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = "1.2"

Scalar = str | int | float | bool | None
"""A setting's value as it is recorded in a report."""


class Record(BaseModel):
    """Base of everything in a report: immutable, strict about its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Verdict(StrEnum):
    """What a scan may say. There is no "safe": absence of evidence is all that can be reported."""

    BACKDOORED = "backdoored"
    NO_EVIDENCE = "no evidence"
    INCONCLUSIVE = "inconclusive"


class Reading(StrEnum):
    """The shape of backdoor that a piece of evidence speaks of."""

    ALL_TO_ONE = "all-to-one"
    """Every triggered image goes to one target label."""
    ALL_TO_ALL = "all-to-all"
    """Each class has a target of its own."""
    SOURCE_TARGET = "source-target"
    """Only images of one class go to the target."""


class ExitCode:
    """Process exit codes, the same for every output format."""

    NO_EVIDENCE = 0
    BACKDOORED_OR_UNSAFE = 1
    ERROR = 2
    INCONCLUSIVE = 3
    INTERRUPTED = 130


class ClassScore(Record):
    """One bar of a report: how suspicious one class looks to one reading (higher is more suspicious)."""

    label: int
    name: str
    score: float


class Evidence(Record):
    """One reading of one detector, held against its threshold.

    ``fired`` is ``score > threshold`` and whatever agreement the detector asks for besides; ``null`` is the same score
    where no backdoor can be (random noise, shuffled labels), so that a reader sees what chance alone gives.
    """

    reading: Reading = Field(description="Which classes the trigger would work on.")
    label: str = Field(default="", description="Short name, where a method has several readings of one kind.")
    measures: str = Field(description="What the score is, in one line, with its unit.")
    score: float = Field(description="Higher is more suspicious; with restarts that of the weakest.")
    threshold: float = Field(description="A score above it may fire.")
    fired: bool
    null: float | None = Field(default=None, description="The same score where no backdoor can be.")
    target: int | None = Field(default=None, description="Suspected target label; none for all-to-all.")
    sources: tuple[int, ...] = Field(default=(), description="Classes the trigger works on; empty: all of them.")
    mapping: dict[int, int] | None = Field(default=None, description="All-to-all: source label -> target label.")
    per_class: tuple[ClassScore, ...] = Field(
        default=(),
        description="One for each class, with restarts their mean: for the target it may differ from ``score``.",
    )
    restarts: tuple[float, ...] = Field(default=(), description="The score of each restart.")
    agreement: float | None = Field(
        default=None,
        description="Share of the restarts that name the same target; all-to-all: of the map that all have in common.",
    )
    note: str = ""


class PictureFile(Record):
    """A picture of a recovered trigger that was kept."""

    name: str = Field(description="E.g. pattern, mask, clean, triggered, difference.")
    shows: str
    path: str


class TriggerFacts(Record):
    """A trigger that a method recovered for one class. Found on clean models too: that there is one proves nothing."""

    target: int
    accused: bool = Field(description="Whether a reading of this method that names this class fired.")
    what: str = Field(description="What was recovered, e.g. a patch.")
    size: float = Field(description="How large it is.")
    size_of: str = Field(description="What the size is, with its unit.")
    success: float | None = Field(default=None, description="Share of held-out images of other classes that it moves.")
    pictures: tuple[PictureFile, ...] = Field(default=(), description="Empty: nobody asked for them to be kept.")


class Finding(Record):
    """What one detector says of the model."""

    method: str
    title: str
    verdict: Verdict
    reason: str = Field(description="One line: why this verdict.")
    evidence: tuple[Evidence, ...] = ()
    triggers: tuple[TriggerFacts, ...] = Field(default=(), description="What was recovered, the strongest class first.")
    settings: dict[str, Scalar] = Field(default_factory=dict)
    seconds: float = 0.0
    forward_images: int = Field(default=0, description="Images passed forward through the network.")
    backward_images: int = Field(default=0, description="Images passed backward through the network.")


class CheckpointFacts(Record):
    """Where the weights came from."""

    path: str
    sha256: str
    bytes: int
    format: Literal["torch zip", "torch legacy", "safetensors"]
    state_key: str | None = Field(default=None, description="Where in the file the weights were, dotted.")
    stripped_prefixes: tuple[str, ...] = ()
    folded: tuple[str, ...] = Field(default=(), description="Pruned weights stored as _orig and _mask, folded.")
    ignored: tuple[str, ...] = Field(default=(), description="Other entries in the file (optimizer, epoch, ...).")
    tensors: int
    parameters: int


class ArchitectureFacts(Record):
    """Which network the weights were put into, and how that was decided."""

    name: str
    description: str
    source: Literal["recognised", "--arch"]
    classes: int
    channels: int
    parameters: int
    batch_norms: int
    outputs: Literal["logits", "probabilities", "log-probabilities"] = "logits"
    output_note: str = Field(default="", description="E.g. that the forward returns a tuple, and what was taken.")
    renamed_keys: int = Field(default=0, description="Keys whose name differs from ours but means the same.")


class PreprocessingFacts(Record):
    """How an image becomes the network's input: resized, scaled to [0, 1], then (x - mean) / std."""

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    source: Literal["given", "chosen by clean accuracy"]
    tried: dict[str, float] = Field(default_factory=dict, description="Clean accuracy of each one tried.")


class DataFacts(Record):
    """The clean images."""

    path: str
    layout: Literal["class folders", "csv", "file names"]
    found: int
    unreadable: int
    used: int
    class_mapping: dict[str, int] = Field(description="Folder or label name -> label of the network.")
    mapping_source: str = Field(description="How the mapping was decided: a file, by number, sorted order.")
    per_class_min: int
    per_class_max: int
    missing_classes: tuple[int, ...] = ()
    sha256: str = Field(description="Over the sorted relative paths and bytes of the images used, with their labels.")


LOW_ACCURACY = 0.6
"""Clean accuracy below which a report carries a caveat even where it is above the floor."""


class CleanAccuracy(Record):
    """Share of clean images classified as labelled. It tells the reader that the set-up is right."""

    accuracy: float
    balanced_accuracy: float | None = Field(
        default=None, description="The same averaged over the classes, each of equal weight however many images it has."
    )
    images: int
    unanswered: int = Field(default=0, description="Of these, those with an output that is no finite number: mistakes.")
    floor: float = Field(description="Below it, by either accuracy, no verdict is given.")
    one_answer: int | None = Field(
        default=None, description="Label that nearly all answers are although the images are not of that class."
    )
    label_permutation: dict[int, int] | None = Field(
        default=None, description="Label -> predicted label, when renaming the labels would give a high accuracy."
    )
    permuted_accuracy: float | None = None

    @property
    def is_low(self) -> bool:
        """Whether it is a caveat even where it is above the floor."""
        return self.accuracy < LOW_ACCURACY

    @property
    def averaged(self) -> float:
        """Accuracy averaged over the classes; of a record that does not have it, over the images."""
        return self.accuracy if self.balanced_accuracy is None else self.balanced_accuracy


class Report(Record):
    """The answer of a scan, verdict first."""

    schema_version: str = SCHEMA_VERSION
    kind: Literal["scan"] = "scan"
    verdict: Verdict
    reason: str
    target: int | None = None
    target_name: str | None = None
    reading: Reading | None = Field(default=None, description="Of the evidence furthest above its threshold.")
    sources: tuple[int, ...] = ()
    mapping: dict[int, int] | None = None
    calibration: str = Field(description='"uncalibrated" and why, or the measured false-alarm rate.')
    p_value: float | None = Field(
        default=None, description="Rank among clean development models; none: the model is not like them."
    )
    clean_accuracy: CleanAccuracy | None = None
    findings: tuple[Finding, ...] = ()
    checked: tuple[str, ...] = Field(default=(), description="What the methods that ran look for.")
    not_checked: tuple[str, ...] = Field(default=(), description="What they are known to miss, and what none looks at.")
    caveats: tuple[str, ...] = ()
    checkpoint: CheckpointFacts | None = None
    architecture: ArchitectureFacts | None = None
    preprocessing: PreprocessingFacts | None = None
    data: DataFacts | None = None
    class_names: tuple[str, ...] = ()
    seed: int
    device: str
    seconds: float
    tool_version: str
    torch_version: str
    started: str = Field(description="UTC, ISO 8601.")


class Inspection(Record):
    """What is in a file, found without running anything from it."""

    schema_version: str = SCHEMA_VERSION
    kind: Literal["inspection"] = "inspection"
    path: str
    bytes: int
    sha256: str
    format: str
    loadable: bool = Field(description="True without keys: several sets of weights, and none was chosen.")
    reason: str = Field(description="One line: what can be done with the file.")
    unsafe: bool = Field(default=False, description="Loading the file would run code that it carries.")
    unsafe_globals: tuple[str, ...] = ()
    state_keys: tuple[str, ...] = Field(default=(), description="Places in the file that look like weights.")
    keys: tuple[Annotated[tuple[str, tuple[int, ...], str], "name, shape, dtype"], ...] = ()
    stripped_prefixes: tuple[str, ...] = ()
    parameters: int = 0
    architecture: str | None = None
    classes: int | None = None
    other_entries: tuple[str, ...] = ()


class RepairEpoch(Record):
    """One pass of a repair over its training images, or what a repair without such passes tries in their place."""

    epoch: int = Field(description="Counts from 1.")
    what: str = Field(default="", description="What was tried, such as a pruning threshold; empty: an epoch.")
    loss: float | None = Field(default=None, description="Mean over the batches; none: nothing was trained.")
    accuracy: float = Field(description="On the images that choose what is kept.")
    seconds: float
    earlier: bool = Field(default=False, description="It ran in an earlier call, which was interrupted.")


class RelapseProbe(Record):
    """How easily the suspected backdoor comes back: shares of images that a stand-in for the trigger moves.

    The stand-in is a small change of all pixels, found on the model before the repair; then a copy of the repaired
    model is fine-tuned for a few steps on images that carry it. ``control`` is the same with another class as target.
    """

    wanted: dict[int, int] = Field(description="Source label -> label that the stand-in aims at.")
    before_repair: float = Field(description="On the model before the repair.")
    after_repair: float = Field(description="On the repaired model, before any fine-tuning.")
    relapsed: float = Field(
        description="After the fine-tuning steps on stamped images, and no less than ``after_repair``."
    )
    control: float | None = Field(default=None, description="As ``relapsed``, for a class that nobody suspects.")
    threshold: float | None = Field(
        default=None, description="Above it the backdoor is back; none: it decides nothing."
    )
    fired: bool = False
    steps: int = Field(description="Of fine-tuning; 0 where there was none, and the probe decides nothing.")
    images: int
    note: str


class UnlearnedChange(Record):
    """A change of pixels that a repair found on the network as it came, and trained it to ignore."""

    kind: Literal["patch", "perturbation"] = Field(description="A perturbation changes all pixels a little.")
    target: int = Field(description="Label that it led to.")


class RepairSettings(Record):
    """How a repair was made."""

    method: str
    title: str
    settings: dict[str, Scalar]
    augmentation: str
    training_images: int
    selection_images: int = Field(description="They choose the epoch or pruning that is kept.")
    untouched_images: int = Field(description="They played no part; the accuracies come from them.")
    max_drop: float = Field(description="Clean accuracy that the repair may cost, as a share: 0.02 is two points.")
    attempts: tuple[str, ...] = Field(
        default=(),
        description="What was tried as a whole, a line each; where it differs from ``settings``, its own are named.",
    )
    unlearned: tuple[UnlearnedChange, ...] = ()


class Repair(Record):
    """The answer of a repair: what the file that was written is worth."""

    schema_version: str = SCHEMA_VERSION
    kind: Literal["repair"] = "repair"
    verdict: Verdict = Field(description="On the repaired model; inconclusive also where nothing was written.")
    reason: str
    written: bool
    path: str | None = Field(default=None, description="The repaired checkpoint; none: not written.")
    sha256: str | None = Field(default=None, description="Of the repaired checkpoint.")
    parent: CheckpointFacts
    replaced: tuple[str, ...] = Field(default=(), description="Other copies of the weights, now the repaired ones.")
    dropped: tuple[str, ...] = Field(default=(), description="Entries left out, as they could carry the old weights.")
    accuracy_before: float
    accuracy_after: float
    accuracy_drop_error: float = Field(description="Standard error of the difference of the two accuracies.")
    epochs: tuple[RepairEpoch, ...]
    kept_epoch: int
    made: RepairSettings
    before: Report
    after: Report | None = None
    relapse: RelapseProbe | None = None
    caveats: tuple[str, ...] = ()
    forward_images: int
    backward_images: int
    seed: int
    device: str
    seconds: float
    tool_version: str
    torch_version: str
    started: str = Field(description="UTC, ISO 8601.")


EXIT_CODES: dict[Verdict, int] = {
    Verdict.NO_EVIDENCE: ExitCode.NO_EVIDENCE,
    Verdict.BACKDOORED: ExitCode.BACKDOORED_OR_UNSAFE,
    Verdict.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
}
