"""Tables of refitted thresholds: each reading's scores, and what the joint verdict would say."""

from __future__ import annotations

from collections.abc import Sequence

from banaudit.bench.calibration import FEWEST_CLEAN, VARIANTS, Calibration, ReadingFit, Variant, VictimVerdicts
from banaudit.bench.runner import Outcome
from banaudit.bench.tables.markdown import NOTHING, bullets, grouped, share, table
from banaudit.bench.tables.scans import DETECTED, outcome_cell

MEANING: dict[Variant, str] = {
    "frozen": "the thresholds that the scans were made with",
    "proposed": "the refitted ones, on the victims they were fitted on",
    "left out": "refitted without the victim at hand",
    "setup left out": "refitted without any victim of its data set and network",
}


def calibration_tables(calibration: Calibration) -> str:
    """Thresholds refitted from raw scores beside the frozen ones."""
    victims = calibration.victims
    clean = sum(not victim.backdoored for victim in victims)
    parts = [
        f"# Thresholds refitted on the {calibration.split} split",
        f"{len(victims) - clean} backdoored and {clean} clean victims. A threshold is the larger of the largest clean "
        "score and m + s log(0.5 q / a): q is the share of the clean victims on which the reading could have fired "
        "(restarts that agree and the like), m the median of its scores on those, s the mean excess over m of those "
        f"above it, and a = {calibration.reading_rate:.3%}: {calibration.aimed_rate:.1%} false alarms aimed at, shared "
        f"among {len(calibration.readings)} readings. Where it could have fired on fewer than {FEWEST_CLEAN}, the "
        "frozen threshold stays.",
        ""
        if calibration.current_settings
        else "**The scans were made with other settings than those in the code now.**",
        "## Readings",
        "*Own kind*: victims with the kind of backdoor that the reading is meant for. Medians, smallest and largest "
        "are of victims on which it could have fired. *Vouched for*: whatever the distribution, with the largest clean "
        "score as its threshold the reading fires on a new clean model with at most this probability. *Uncertain*: "
        "victims on which the record does not say whether the reading fires as proposed; they count as if it did.",
        table(
            (
                "reading",
                "frozen",
                "proposed",
                "proposed / frozen",
                "clean: could fire / all",
                "median",
                "largest",
                "largest of all",
                "vouched for",
                "own kind: could fire / all",
                "smallest",
                "median",
                "above frozen",
                "above proposed",
                "uncertain",
            ),
            [_reading_row(fit) for fit in calibration.readings],
        ),
        bullets(
            f"`{fit.key}`: largest on {fit.clean_largest_victim}"
            for fit in calibration.readings
            if fit.clean_largest_victim
        ),
        "## The joint verdict",
        table(
            ("thresholds", "detected", "target right", "false alarms", "inconclusive"),
            [_joint_row(variant, victims) for variant in VARIANTS],
        ),
        bullets(f"*{variant}*: {meaning}" for variant, meaning in MEANING.items()),
        "## By attack and kind",
        "Right of all: backdoored victims detected with the right target, clean ones not accused.",
        table(("victims", *VARIANTS), _stratum_rows(victims)),
        "## Victims that are wrong at some of the thresholds",
        table(
            ("victim", *VARIANTS),
            [
                (victim.key, *(outcome_cell(victim.outcomes[variant]) for variant in VARIANTS))
                for victim in victims
                if set(victim.outcomes.values()) != {Outcome.RIGHT}
            ],
        ),
        f"Left out, below their floor: {', '.join(calibration.excluded)}." if calibration.excluded else "",
        f"Left out, scanned with other settings than those in the code now: {', '.join(calibration.outdated)}."
        if calibration.outdated
        else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _reading_row(fit: ReadingFit) -> tuple[str, ...]:
    return (
        fit.key,
        f"{fit.frozen:.3g}",
        f"{fit.proposed:.3g}" if fit.fitted else "stays",
        f"{fit.proposed / fit.frozen:.2f}" if fit.fitted else NOTHING,
        f"{fit.clean_able} / {fit.clean}",
        _number(fit.clean_median),
        _number(fit.clean_largest),
        _number(fit.clean_largest_of_all),
        f"{1 / (fit.clean + 1):.1%}",
        f"{fit.own_able} / {fit.own}",
        _number(fit.own_smallest),
        _number(fit.own_median),
        str(fit.own_above_frozen),
        str(fit.own_above_proposed),
        str(fit.uncertain),
    )


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _joint_row(variant: Variant, victims: Sequence[VictimVerdicts]) -> tuple[str, ...]:
    backdoored = [victim.outcomes[variant] for victim in victims if victim.backdoored]
    clean = [victim.outcomes[variant] for victim in victims if not victim.backdoored]
    return (
        variant,
        share(sum(outcome in DETECTED for outcome in backdoored), len(backdoored)),
        share(backdoored.count(Outcome.RIGHT), len(backdoored)),
        share(clean.count(Outcome.FALSE_ALARM), len(clean)),
        f"{backdoored.count(Outcome.INCONCLUSIVE)} backdoored, {clean.count(Outcome.INCONCLUSIVE)} clean",
    )


def _stratum_rows(victims: Sequence[VictimVerdicts]) -> list[tuple[str, ...]]:
    return [
        (
            stratum,
            *(
                f"{sum(victim.outcomes[variant] is Outcome.RIGHT for victim in group)} of {len(group)}"
                for variant in VARIANTS
            ),
        )
        for stratum, group in grouped(victims, lambda victim: victim.stratum).items()
    ]
