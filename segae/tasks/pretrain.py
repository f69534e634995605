"""Pretrain a convolutional autoencoder on unlabelled images; out comes an encoder file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from segae.models.autoencoder import Autoencoder
    from segae.models.encoder import EncoderDescription
    from segae.objectives.presets import Objective


@dataclass(frozen=True)
class Pretrain:
    """Pretrain a convolutional autoencoder on unlabelled images, without looking at a label.

    Writes encoder.safetensors, log.csv, curves.png and reconstructions.png into the run folder.
    """

    data: tuple[Path, ...]
    """Folders of images, searched recursively. Of a data set with masks only the training images are taken."""
    out: Path = Path("runs/pretrain")
    """Run folder."""
    encoder: str = "tf_efficientnet_lite0"
    """Name of any convolutional network in timm."""
    init: str = "random"
    """Where the encoder starts: random, imagenet, or the path of an encoder.safetensors."""
    objective: str = "mask"
    """What the autoencoder is asked to do: reconstruct (copy its input), denoise, or mask (fill hidden patches)."""
    image_size: int = 128
    """Side of the square input in pixels, a multiple of the encoder's stride (usually 32)."""
    epochs: int = 20
    """Passes over the images."""
    batch_size: int = 32
    """Images per optimizer step."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    noise_sigma: float = 0.5
    """denoise: standard deviation of the noise, in units of normalised pixels."""
    patch: int = 16
    """mask: side of a hidden patch in pixels."""
    mask_ratio: float = 0.6
    """mask: share of the patches that is hidden, in [0, 1)."""
    upsampling: Literal["nearest", "transposed"] = "nearest"
    """How the decoder grows: nearest neighbour + convolution, or transposed convolution."""
    output_activation: Literal["none", "sigmoid", "tanh"] = "none"
    """Last function of the decoder."""
    code_channels: int | None = None
    """Width of the bottleneck; none keeps the encoder's own."""
    val_fraction: float = 0.05
    """Share of the images kept apart for the validation loss and the panels, in [0, 1)."""
    seed: int = 0
    """Seed of weights, order, augmentation and corruption."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of forward and loss; auto takes bfloat16 on CUDA."""
    workers: int = 0
    """Processes that prepare images; 0 is right for the cached images of this task."""
    resume: bool = False
    """Go on after the last finished epoch in the run folder."""
    overwrite: bool = False
    """Throw away an earlier run in the run folder."""


def run(config: Pretrain) -> Path:
    """Pretrain as configured.

    Returns:
        The path of encoder.safetensors.

    Raises:
        SegaeError: see the messages; nothing finished is lost.
    """
    import torch
    from torch.utils.data import DataLoader, Subset

    from segae.data.batches import UnlabelledImages
    from segae.data.dataset import split_hash
    from segae.data.images import Quarantine
    from segae.data.transforms import eval_transform, pretrain_transform
    from segae.models.autoencoder import Autoencoder
    from segae.models.encoder import create_encoder, output_stride, require_size
    from segae.objectives.presets import make_objective
    from segae.training.batchnorm import recalibrate_batchnorm
    from segae.training.device import choose_device
    from segae.training.fit import fit, print_epoch
    from segae.training.learner import make_loaders, pretraining_learner
    from segae.training.run import RESUME_FILE, open_run_folder, seed_everything, start_provenance
    from segae.training.schedule import make_pretraining_phase

    device = choose_device(config.device)
    objective = make_objective(
        config.objective, noise_sigma=config.noise_sigma, patch=config.patch, mask_ratio=config.mask_ratio
    )
    phases = make_pretraining_phase(config.epochs, config.lr)
    seed_everything(config.seed)
    encoder, description = create_encoder(config.encoder, config.init)
    require_size(config.image_size, output_stride(encoder))
    probe = torch.zeros(1, description.in_channels, config.image_size, config.image_size)
    objective.corruption(probe, torch.Generator())  # refuses a patch that hides nothing, before anything is written
    seed_everything(config.seed)  # the decoder's start must not depend on where the encoder's weights came from
    autoencoder = Autoencoder(
        encoder,
        description.mean,
        description.std,
        upsampling=config.upsampling,
        output_activation=config.output_activation,
        code_channels=config.code_channels,
    ).to(device)
    quarantine = Quarantine()
    images, train, valid, paths = cache_unlabelled(
        config.data, config.image_size, config.val_fraction, config.seed, quarantine
    )
    normalisation = (config.image_size, description.mean, description.std)
    clean = UnlabelledImages(images, eval_transform(*normalisation), config.seed)
    loaders = make_loaders(
        UnlabelledImages(images, pretrain_transform(*normalisation), config.seed),
        Subset(clean, valid.tolist()),
        batch_size=config.batch_size,
        device=device,
        workers=config.workers,
        seed=config.seed,
        train_indices=train.tolist(),
    )
    learner = pretraining_learner(loaders, autoencoder, objective, precision=config.precision, seed=config.seed)
    resume = open_run_folder(config.out, config, resume=config.resume, overwrite=config.overwrite)
    source = start_provenance(config.out, device, split_hash(path.name for path in paths), resume=resume)
    quarantine.report()
    quarantine.write(config.out)
    print(f"encoder {config.encoder}, init {config.init}: {description.source}")
    print(f"{len(train)} training and {len(valid)} validation images, {config.epochs} epochs on {device}")
    log = fit(
        learner,
        phases,
        log_csv=config.out / "log.csv",
        resume_file=config.out / RESUME_FILE,
        resume=resume,
        report=print_epoch,
    )
    several = len(train) > config.batch_size  # a last batch of one image has no variance to measure
    batches = DataLoader(Subset(clean, train.tolist()), config.batch_size, drop_last=several)
    recalibrate_batchnorm(autoencoder.encoder, batches, device)
    panel_images = images[(valid if len(valid) else train)[:5]]
    return _finish(config, autoencoder, description, objective, panel_images, paths, log, source)


def cache_unlabelled(
    roots: Sequence[Path], size: int, val_fraction: float, seed: int, quarantine: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[Path, ...]]:
    """The images below ``roots``, decoded once to ``size`` pixels: (images, training and validation indices, paths).

    Raises:
        SegaeError: a folder is missing or empty, no image can be read, or ``val_fraction`` is out of range.
    """
    import numpy as np

    from segae.data.cache import cache_images
    from segae.data.dataset import choose_by_hash
    from segae.data.pretraining import find_pretraining_images

    cached = cache_images(find_pretraining_images(roots), size, quarantine)
    names = sorted({f"{path.parent.name}/{path.name}" for path in cached.paths})
    held_out = choose_by_hash(names, val_fraction, seed, "validation")
    valid = np.array([f"{path.parent.name}/{path.name}" in held_out for path in cached.paths])
    return cached.images, np.flatnonzero(~valid), np.flatnonzero(valid), cached.paths


def _finish(
    config: Pretrain,
    autoencoder: Autoencoder,
    description: EncoderDescription,
    objective: Objective,
    panel_images: np.ndarray,
    paths: Sequence[Path],
    log: list[dict[str, Any]],
    source: dict[str, str],
) -> Path:
    """Measure BatchNorm on clean images, write the encoder file, the pictures and the metrics."""
    from dataclasses import replace

    from segae.data.dataset import split_hash
    from segae.files import write_json
    from segae.models.encoder import save_encoder
    from segae.training.figures import training_curves
    from segae.training.panels import reconstruction_sheet
    from segae.training.run import DONE_FILE

    last = log[-1]
    final_loss = last.get("valid_loss", last["train_loss"])
    previous = "" if description.init == "random" else f"{description.init}+"
    described = replace(
        description,
        image_size=config.image_size,
        init=f"{previous}ae:{config.objective}",
        source=f"segae pretrain --objective {config.objective} from {description.source}",
        pretraining={
            "objective": config.objective,
            "dataset": "+".join(root.name or str(root.resolve().name) for root in config.data),
            "images": len(paths),
            "epochs": config.epochs,
            "images_seen": sum(row["images"] for row in log),
            "seed": config.seed,
            "split_hash": split_hash(path.name for path in paths),
            "commit": source["commit"],
            "versions": source["versions"],
            "final_loss": final_loss,
        },
    )
    target = config.out / "encoder.safetensors"
    save_encoder(target, autoencoder.encoder, described)
    reconstruction_sheet(
        autoencoder, objective, panel_images, described.mean, described.std, config.out / "reconstructions.png"
    )
    training_curves(config.out / "log.csv", config.out / "curves.png")
    write_json(
        config.out / DONE_FILE,
        {"final_loss": final_loss, "seconds": sum(r["seconds"] for r in log), **source},
    )
    print(f"wrote {target}")
    return target
