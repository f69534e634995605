"""Compare start weights over seeds, with intervals: the core of `segae bench`.

python recipes/4_benchmark.py [FOLDER] [--weights random imagenet runs/recipe/encoder.safetensors] [--seeds 3]
"""

from pathlib import Path

import numpy as np
import tyro

import segae


def main(
    folder: tyro.conf.Positional[Path | None] = None,
    *,
    weights: tuple[str, ...] = ("random", "pets_pseudo_masks"),
    labels: int = 30,
    seeds: int = 3,
    image_size: int = 96,
    out: Path = Path("runs/recipe"),
) -> None:
    """Fine-tune from each start with each seed, score the test split once per run, compare the means."""
    data = folder or segae.data.drawn_pets()
    scores = np.zeros((len(weights), seeds))
    for place, start in enumerate(weights):
        for seed in range(seeds):
            run = segae.finetune(
                data,
                weights=start,
                labels=labels,  # chosen by the seed: the same images for all starts
                image_size=image_size,
                val_fraction=0.0,
                seed=seed,
                out=out / f"finetune-{place}-{seed}",
                overwrite=True,
            )
            scores[place, seed] = segae.evaluate(run.model, data).miou
            print(f"{start}, seed {seed}: {scores[place, seed]:.3f}")

    for start, mine in zip(weights, scores, strict=True):
        mean = segae.statistics.mean_interval(mine)
        gain = segae.statistics.compare(mine, scores[0]).difference  # paired by seed
        print(f"{start}: {mean.estimate:.3f} ({mean.low:.3f} to {mean.high:.3f})", end="; ")
        print(f"over {weights[0]}: {gain.estimate:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})")


if __name__ == "__main__":
    tyro.cli(main)
