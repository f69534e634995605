"""Find images that are unlike normal ones, after seeing normal images alone.

python recipes/8_anomaly.py GOOD NEW [--encoder imagenet] [--image-size 128]
"""

from pathlib import Path

import tyro

import segae


def main(
    good: tyro.conf.Positional[Path],
    new: tyro.conf.Positional[Path],
    *,
    encoder: str = "imagenet",
    image_size: int = 128,
    out: Path = Path("runs/recipe"),
) -> None:
    """Print the three most anomalous images of NEW, and keep the detector."""
    # Four fifths of the normal images are learned from; the others set the threshold.
    detector = segae.AnomalyDetector.fit(good, encoder, image_size=image_size, false_alarm_rate=0.05)
    low, high = detector.info.rate_interval
    print(f"between {low:.1%} and {high:.1%} of normal images are called anomalies")

    images = segae.data.find_images([new])
    scores = detector.score(images)
    for place in scores.argsort()[::-1][:3]:
        print(f"{images[place]}: {scores[place]:.2f}, anomaly: {scores[place] > detector.info.threshold}")

    # Where in the image: as large as the image itself.
    print("heat map", detector.heatmap(images[int(scores.argmax())]).shape)
    print("wrote", detector.save(out / "detector.safetensors"))


if __name__ == "__main__":
    tyro.cli(main)
