"""How often rules for an interval over seeds and images reject a mean that is true: the table in docs/statistics.md.

    python benchmarks/interval_rules.py

The variance from images is known exactly, that from S seeds with S - 1 degrees of freedom; the share of the seeds in
the whole goes from none to all. Printed is the lowest and the highest rate over these shares.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
SHARES = np.linspace(0, 1, 21)


def rejections(seeds: int, level: float, draws: int, seed: int = 0) -> dict[str, Array]:
    """Share of ``draws`` simulated results in which each rule rejects the true mean, for each of ``SHARES``."""
    generator = np.random.default_rng(seed)
    freedom = seeds - 1
    distance = np.abs(generator.standard_normal(draws))
    measured = generator.chisquare(freedom, draws) / freedom
    rates: dict[str, list[float]] = {"Satterthwaite": [], "Cochran": [], "weighted tails": []}
    for share in SHARES:
        of_seeds, of_images = share * measured, 1 - share
        both = np.maximum(of_seeds + of_images, 1e-12)
        quotient, weight = distance / np.sqrt(both), of_seeds / both
        degrees = freedom / np.maximum(weight**2, 1e-9)
        quantile = weight * special.stdtrit(freedom, 1 - level / 2) + (1 - weight) * special.ndtri(1 - level / 2)
        tails = 2 * (weight * special.stdtr(freedom, -quotient) + (1 - weight) * special.ndtr(-quotient))
        rates["Satterthwaite"].append(np.mean(2 * special.stdtr(degrees, -quotient) < level))
        rates["Cochran"].append(np.mean(quotient > quantile))
        rates["weighted tails"].append(np.mean(tails < level))
    return {name: np.array(found) for name, found in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400_000, help="simulated results for each share")
    draws = parser.parse_args().draws
    for level in (0.05, 0.005):
        for seeds in (2, 3, 5):
            found = rejections(seeds, level, draws)
            shown = ", ".join(
                f"{name} {100 * rate.min():.2f} to {100 * rate.max():.2f} %" for name, rate in found.items()
            )
            print(f"{seeds} seeds, level {100 * level:g} %: {shown}")


if __name__ == "__main__":
    main()
