"""The weights that come with segae are worth something where they are used."""

from __future__ import annotations

import csv
from pathlib import Path

from segae.data.drawn_pets import draw_pets
from segae.tasks.segment import Segment, run


def test_a_few_images_are_learnt_sooner_from_the_published_weights_than_from_random(tmp_path: Path) -> None:
    pets = tmp_path / "pets"
    draw_pets(pets, train=16, test=2, unlabelled=0, size=64)
    alike = {"data": pets, "image_size": 64, "epochs": 1, "epoch_images": 32, "batch_size": 8, "device": "cpu"}
    scores = {}
    for init, transfer in (("random", "encoder"), ("pets_layers", "encoder+decoder")):
        out = tmp_path / init
        run(Segment(out=out, init=init, transfer=transfer, workers=0, threads=1, **alike))
        with (out / "log.csv").open(newline="") as file:
            scores[init] = float(list(csv.DictReader(file))[-1]["train_loss"])
    assert scores["pets_layers"] < scores["random"] - 0.05
