"""What makes one run of a comparison another run than the next."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segae.tasks.compare import Compare

_NO_MATTER = (
    *("data", "out", "device", "workers", "resume", "overwrite", "probe", "probe_every", "classes"),
    *("data_path", "epoch_images", "activation_checkpointing", "compile"),
)


def settings_of(config: Compare, arm: str, seed: int) -> tuple[str, str]:
    """Digests of everything that decides a pretraining and a fine-tuning, the images' names included.

    A run folder or a row with another digest is another run, however alike it looks.
    """
    from segae.data.open import open_dataset
    from segae.data.pretraining import find_pretraining_images
    from segae.tasks.arms import own_settings, parse_arm, pretraining_of
    from segae.training.schedule import protocol_of

    parsed = parse_arm(arm)
    own = own_settings(config, parsed)
    data = open_dataset(config.data, config.classes, config.merge)
    used = {split: [pair.name for pair in pairs] for split, pairs in data.splits.items()}
    common = {"dataset": data.name, "splits": used, "encoder": config.encoder, "init": parsed.init}
    pretraining: dict[str, Any] = {}
    if parsed.objective:
        wanted = asdict(pretraining_of(config, parsed, seed))
        images = find_pretraining_images((config.data, *config.unlabelled))
        if wanted["micro_batch"] is None:
            del wanted["micro_batch"]  # a run is the same one that it was before there were such batches
        pretraining = {name: str(value) for name, value in wanted.items() if name not in _NO_MATTER}
        pretraining["images"] = [path.name for path in images]
    settings = ("decoder", "image_size", "freeze_epochs", "epochs", "batch_size", "labels", "split")
    fine_tuning = {name: getattr(own, name) for name in settings}
    fine_tuning |= {"classes": data.classes, "transfer": parsed.transfer, "seed": seed}
    for name, value in asdict(protocol_of(parsed.init, parsed.transfer)).items():
        given = getattr(own, name)
        fine_tuning[name] = value if given is None else given
    fine_tuning |= _younger(config)
    return digest([common, pretraining]), digest([common, pretraining, fine_tuning])


def _younger(config: Compare) -> dict[str, Any]:
    """Settings that runs are older than: left as they were then, the run is the same one that it was."""
    given: dict[str, Any] = {}
    if config.epoch_images is not None:
        given["epoch_images"] = config.epoch_images
    if config.loss != "cross_entropy":
        given["loss"] = config.loss
    if not config.augment:
        given["augment"] = False
    if config.merge:
        from segae.data.merge import read_merge

        given["merge"] = {name: sorted(parts) for name, parts in read_merge(config.merge).items()}
    return given


def digest(content: Any) -> str:
    """Ten hexadecimal digits for any JSON value."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=5).hexdigest()
