"""Convert weight files of version 0.1 to the header of 0.2; the tensors stay as they are.

python tools/migrate_weights.py OLD.safetensors NEW.safetensors
python tools/migrate_weights.py OLD-decoder.safetensors NEW-decoder.safetensors --encoder OLD.safetensors
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from segae.models.checkpoint import DecoderInfo, fingerprint, save_described
from segae.models.encoder import EncoderInfo, Weights

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "mask": ("inpaint", {}),
    "sparse_mask": ("spark", {}),
    "decoder_denoise": ("ddep", {}),
    # with the boundary of files that do not name it
    "layers": ("pseudo_masks", {"source": "color", "boundary": 0.0}),
    "feature_layers": ("pseudo_masks", {"source": "features", "boundary": 1 / 48}),
    "otsu": ("pseudo_masks", {"source": "brightness", "boundary": 1 / 96}),
}
ARGS = {"noise_sigma": "sigma", "patch": "patch_size", "mask_ratio": "mask_ratio", "boundary": "boundary"}
SETTINGS = {"hard_mask_share": "hard_mask_fraction", "code_channels": "bottleneck"}
LEFT_OUT = {"precision", "micro_batch", "data_path"}  # how it was computed
VOLATILE = {"objective", "settings", "target", "seconds", "energy_wh"}  # moved, or different in equal runs


def number_or_text(text: str) -> Any:
    """Read a setting."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def encoder_info(old: dict[str, Any]) -> EncoderInfo:
    """Translate the description of an encoder."""
    pretraining = old["pretraining"]
    pairs = [entry.split(" ", 1) for entry in pretraining.get("settings", "").split("; ") if " " in entry]
    settings = {name: number_or_text(value) for name, value in pairs if value != "None"}
    (start, mark, objective), weights = old["init"].rpartition("ae:"), Weights(old["init"])
    method, args = METHODS.get(objective, (objective, {}))
    if mark:
        args = args | {ARGS[name]: settings.pop(name) for name in ARGS if name in settings}
        before = [METHODS.get(name, (name, {}))[0] for name in start.replace("ae:", "").split("+") if name]
        weights = Weights("+".join(before if start.startswith("imagenet") else ["random", *before]), method, args)
        kept = {SETTINGS.get(name, name): value for name, value in settings.items() if name not in LEFT_OUT}
        rest = {name: value for name, value in pretraining.items() if name not in VOLATILE}
        pretraining = {"method": method, "settings": kept, **rest}
    source = f"method {method} from {weights.start} weights" if mark else old["source"]
    size = (tuple(old["mean"]), tuple(old["std"]), old["image_size"])
    return EncoderInfo(old["architecture"], old["in_channels"], *size, weights, source, pretraining)


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--encoder", type=Path)
    given = parser.parse_args()
    with safe_open(given.old, framework="pt") as file:
        kind, old = file.metadata()["kind"], json.loads(file.metadata()["description"])
    if kind == "encoder":
        info: Any = encoder_info(old)
    else:
        method = METHODS.get(old["objective"], (old["objective"], {}))[0]
        info = DecoderInfo(old["encoder"], old["decoder"], method, fingerprint(load_file(given.encoder)))
    save_described(given.new, kind, load_file(given.old), info)


if __name__ == "__main__":
    main()
