"""What makes one run of a comparison another run than the next."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segae.data.dataset import SegmentationData
    from segae.tasks.compare import Compare

_NO_MATTER = (
    *("data", "out", "device", "threads", "workers", "resume", "overwrite", "probe", "probe_every", "classes"),
    *("data_path", "epoch_images", "activation_checkpointing", "compile"),
)
_BOUNDARY_THEN = {"feature_layers": 1 / 48, "otsu": 1 / 96}
"""How far the layer of the boundary reached before it was a setting; in other objectives there was none."""


@dataclass(frozen=True)
class UsedImages:
    """The images of a comparison by name and content, looked up once and for all its runs.

    Attributes:
        config: whose data, unlabelled folders, classes and merge are looked at.
    """

    config: Compare

    @property
    def _data(self) -> SegmentationData:  # not kept: these objects travel to other processes
        from segae.data.open import open_dataset

        return open_dataset(self.config.data, self.config.classes, self.config.merge)

    @cached_property
    def labelled(self) -> tuple[str, tuple[str, ...], dict[str, list[str]]]:
        """Name of the data set, its classes, and the images of each split."""
        data = self._data
        return data.name, data.classes, {split: [pair.name for pair in pairs] for split, pairs in data.splits.items()}

    @cached_property
    def contents(self) -> dict[str, list[str]]:
        """Hashes of the images and masks of each split."""
        from segae.data.fingerprint import content_hashes, default_cache_dir

        return {
            split: content_hashes([file for pair in pairs for file in (pair.image, pair.mask)], default_cache_dir())
            for split, pairs in self._data.splits.items()
        }

    @cached_property
    def pretraining(self) -> list[list[str]]:
        """The names and contents of the images of a pretraining."""
        from segae.data.fingerprint import content_hashes, default_cache_dir
        from segae.data.pretraining import find_pretraining_images

        paths = find_pretraining_images((self.config.data, *self.config.unlabelled))
        return [[path.name for path in paths], content_hashes(paths, default_cache_dir())]


def settings_of(config: Compare, arm: str, seed: int, used: UsedImages | None = None) -> tuple[str, str]:
    """Digests of everything that decides a pretraining and a fine-tuning, images and masks included.

    A run folder or a row with another digest is another run, however alike it looks. ``used`` spares many runs of
    the same images a look at the disk for each.
    """
    from segae.objectives.catalogue import DEFAULTS
    from segae.tasks.arms import own_settings, parse_arm, pretraining_of
    from segae.training.schedule import protocol_of

    parsed = parse_arm(arm)
    own = own_settings(config, parsed)
    used = used or UsedImages(config)
    dataset, classes, splits = used.labelled
    common = {"dataset": dataset, "splits": splits, "encoder": config.encoder, "init": parsed.init}
    pretraining: dict[str, Any] = {}
    if parsed.objective:
        wanted = asdict(pretraining_of(config, parsed, seed))
        for younger in ("micro_batch", "skip_dropout"):
            if not wanted[younger]:
                del wanted[younger]  # a run is the same one that it was before there was the setting
        default = DEFAULTS[parsed.objective]["boundary"]
        wanted["boundary"] = default if wanted["boundary"] is None else wanted["boundary"]
        if wanted["boundary"] == _BOUNDARY_THEN.get(parsed.objective, 0.0):
            del wanted["boundary"]
        pretraining = {name: str(value) for name, value in wanted.items() if name not in _NO_MATTER}
        pretraining["images"] = used.pretraining
    settings = ("decoder", "image_size", "freeze_epochs", "epochs", "batch_size", "labels", "split")
    fine_tuning = {name: getattr(own, name) for name in settings}
    fine_tuning |= {"classes": classes, "transfer": parsed.transfer, "seed": seed, "contents": used.contents}
    for name, value in asdict(protocol_of(parsed.init, parsed.transfer)).items():
        given = getattr(own, name)
        fine_tuning[name] = value if given is None else given
    if not fine_tuning["fitted_head"]:
        del fine_tuning["fitted_head"]  # as what is younger below
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
