"""How much a pretrained decoder needs each of the encoder's feature maps.

    python benchmarks/level_use.py RUN_FOLDER ... [--write]

A run folder is that of a finished `segae pretrain` with its resume file. Its model sees up to 64 of its validation
images, corrupted as the objective says; then the maps of one level are exchanged between the images, and the loss is
divided by what it was. 1 means that the decoder does without this level: nothing that pretraining changed there
helped it. The image itself is no level. ``--write`` puts the rows into results/level_use.csv.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from segae.data.quarantine import Quarantine
from segae.tasks.arms import parse_arm, read_pretraining
from segae.tasks.loading import load_unlabelled
from segae.tasks.pretrain import Pretrain, begin
from segae.tasks.rows import read_rows, write_rows
from segae.training.checkpoint import load_resume_file
from segae.training.provenance import provenance
from segae.training.run import RESUME_FILE

TABLE = Path(__file__).resolve().parent.parent / "results" / "level_use.csv"
KEY = ("run", "stride")


@torch.no_grad()
def measure(folder: Path, images: int = 64) -> list[dict[str, Any]]:
    """A row for each level of the run's encoder."""
    device = torch.device("cpu")
    stored = json.loads((folder / "config.json").read_text())
    arm = parse_arm(("imagenet+" if stored["init"] == "imagenet" else "") + f"ae:{stored['objective']}")
    settings = read_pretraining(folder / "config.json", arm)
    names = {"encoder": stored["encoder"], "init": stored["init"], "objective": stored["objective"]}
    config = Pretrain(**settings, **names, data=tuple(map(Path, stored["data"])), seed=stored["seed"], device="cpu")
    config, model, description, objective, _ = begin(config, device)
    model.load_state_dict(load_resume_file(folder / RESUME_FILE)["model"])
    model.eval()
    held_out = load_unlabelled(config, description, device, Quarantine()).valid
    if held_out is None or len(held_out) < 2:
        sys.exit(f"{folder} kept no two validation images apart; wanted a pretraining with --val-fraction above 0.")
    chosen = Subset(held_out, range(min(images, len(held_out))))
    clean_bchw = next(iter(DataLoader(chosen, len(chosen))))
    clean_bchw = clean_bchw[0] if isinstance(clean_bchw, (list, tuple)) else clean_bchw
    shown = objective.corruption(clean_bchw, torch.Generator().manual_seed(0))
    target_bchw = clean_bchw if shown.target_bchw is None else shown.target_bchw

    def loss(features: list[torch.Tensor]) -> float:
        answer_bchw = model.decode(features, shown.hidden_b1hw)
        return float(objective.reconstruction(answer_bchw, target_bchw, shown.hidden_b1hw))

    features = model.encode(shown.image_bchw, shown.hidden_b1hw)
    whole = loss(features)
    about = {
        "run": folder.name, "init": arm.init, "encoder": config.encoder, "decoder": config.decoder,
        "image_size": config.image_size, "skip_dropout": config.skip_dropout, "images": len(chosen),
        "images_seen": json.loads((folder / "metrics.json").read_text())["images_seen"],
    }  # fmt: skip
    rows = []
    for level in range(1, len(features)):
        if not features[level].shape[1]:
            continue
        exchanged = [map_bchw.roll(1, 0) if level == at else map_bchw for at, map_bchw in enumerate(features)]
        ratio = loss(exchanged) / whole
        rows.append({**about, "stride": 2**level, "loss": round(whole, 5), "exchanged_over_loss": round(ratio, 4)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER")
    parser.add_argument("--write", action="store_true", help="put the rows into results/level_use.csv")
    options = parser.parse_args()
    for folder in options.runs:
        rows = measure(folder)
        ratios = ", ".join(f"{row['stride']}: {row['exchanged_over_loss']:.3f}" for row in rows)
        print(f"{rows[0]['init']} with {rows[0]['decoder']}, {rows[0]['images_seen']} images seen, stride {ratios}")
        if options.write:
            new = [{**row, **provenance(torch.device("cpu"))} for row in rows]
            keys = {tuple(str(row[name]) for name in KEY) for row in new}
            kept = [row for row in read_rows(TABLE) if tuple(row[name] for name in KEY) not in keys]
            write_rows(TABLE, [*kept, *new])


if __name__ == "__main__":
    main()
