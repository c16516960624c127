"""Tables of victims under neuron noise and feature mask."""

from __future__ import annotations

from collections.abc import Sequence

from banaudit.bench.noise import LEVELS, NoiseResults, VictimNoise
from banaudit.bench.tables.markdown import NOTHING, table


def noise_tables(results: NoiseResults) -> str:
    """The numbers behind the paper's Figures 1 to 3, victim by victim."""
    entries = sorted(results.entries, key=lambda entry: (entry.truth.backdoored, entry.stratum, entry.key))
    return (
        "\n\n".join(
            [
                f"# Neuron noise and feature mask, {results.split} split",
                f"{len(entries)} victims; noise and mask are found on one half of at most {results.images} clean "
                f"images and read on the other; seed {results.seed}. The paper shows the same as pictures, without "
                "numbers.",
                "## Predictions under noise (Figure 1)",
                "Accuracy, then the share of other-class images that go to the true target of an all-to-one backdoor, "
                "for others to the class that most mistakes go to (in brackets).",
                table(
                    ("victim", *(f"eps {eps:g}" for eps in LEVELS)),
                    [(entry.key, *_level_cells(entry)) for entry in entries],
                ),
                f"## Noise of eps {results.eps:g} and the negative mask (Figure 2)",
                table(
                    ("victim", "accuracy under noise", "through the negative mask (Eq. 6)"),
                    [(entry.key, f"{entry.noisy_accuracy:.1%}", f"{entry.masked_accuracy:.1%}") for entry in entries],
                ),
                "## What the mask parts (Figure 3)",
                "Cross-entropy on clean images without noise.",
                table(
                    ("victim", "through the mask", "through its negative", "mean of the mask's entries"),
                    [
                        (entry.key, f"{entry.kept_loss:.3f}", f"{entry.removed_loss:.3f}", f"{entry.mask_mean:.3f}")
                        for entry in entries
                    ],
                ),
            ]
        )
        + "\n"
    )


def _level_cells(entry: VictimNoise) -> Sequence[str]:
    levels = {level.eps: level for level in entry.levels}
    return [
        f"{level.accuracy:.0%}; "
        + (f"{level.target_share:.0%}" if level.target_share is not None else f"{level.top_share:.0%} ({level.top})")
        if (level := levels.get(eps)) is not None
        else NOTHING
        for eps in LEVELS
    ]
