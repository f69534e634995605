"""What makes one run of a comparison another run than the next."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segae.tasks.compare import Compare


def settings_of(config: Compare, arm: str, seed: int) -> tuple[str, str]:
    """Digests of everything that decides a pretraining and a fine-tuning, the images' names included.

    A run folder or a row with another digest is another run, however alike it looks.
    """
    from segae.data.open import open_dataset
    from segae.data.pretraining import find_pretraining_images
    from segae.training.schedule import protocol_of

    data = open_dataset(config.data, config.classes)
    used = {split: [pair.name for pair in pairs] for split, pairs in data.splits.items()}
    common = {"dataset": data.name, "splits": used, "encoder": config.encoder, "arm": arm, "seed": seed}
    pretraining: dict[str, Any] = {}
    if "ae:" in arm:
        images = find_pretraining_images((config.data, *config.unlabelled))
        names = ("pretrain_image_size", "pretrain_epochs", "pretrain_batch_size", "pretrain_lr")
        pretraining = {name: getattr(config, name) for name in names} | {"images": [path.name for path in images]}
        pretraining["pretrain_image_size"] = config.pretrain_image_size or config.image_size
    settings = ("decoder", "image_size", "freeze_epochs", "epochs", "batch_size", "labels", "split")
    fine_tuning = {name: getattr(config, name) for name in settings} | {"classes": data.classes}
    protocol = asdict(protocol_of(arm))
    fine_tuning |= {
        name: value if getattr(config, name) is None else getattr(config, name) for name, value in protocol.items()
    }
    return digest([common, pretraining]), digest([common, pretraining, fine_tuning])


def digest(content: Any) -> str:
    """Ten hexadecimal digits for any JSON value."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=5).hexdigest()
