"""Pretrain a convolutional autoencoder on unlabelled images; out comes an encoder file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

    from segae.models.encoder import EncoderDescription
    from segae.objectives.presets import Objective
    from segae.training.schedule import Phase


@dataclass(frozen=True)
class Pretrain:
    """Pretrain a convolutional autoencoder on unlabelled images, without looking at a label.

    Writes encoder.safetensors, log.csv, curves.png and reconstructions.png into the run folder, and
    decoder.safetensors where the decoder is one that can segment.
    """

    data: tuple[Path, ...]
    """Folders of images, searched recursively. Of a data set with masks only the training images are taken. Or a
    stream: tar shards, a folder of parquet files, or 'hf://owner/name?split=train&column=image'."""
    out: Path = Path("runs/pretrain")
    """Run folder."""
    encoder: str = "tf_efficientnet_lite0"
    """Name of any convolutional network in timm."""
    init: str = "random"
    """Where the encoder starts: random, imagenet, the path of an encoder.safetensors, or a published encoder's name."""
    objective: str = "layers"
    """What the autoencoder is asked to do: reconstruct, denoise, mask, sparse_mask, a2mim, mixture, layers,
    feature_layers, otsu or decoder_denoise (docs/pretraining.md)."""
    target: Literal["pixels", "patch-normalised", "gradients", "frequency"] | None = None
    """What the output is compared with; none takes the objective's own."""
    decoder: str | None = None
    """plain (no skips), linear, hierarchical (skips, light), or a decoder of segmentation-models-pytorch, which can be
    transferred to the segmenter; none takes the objective's own."""
    image_size: int = 128
    """Side of the square input in pixels, a multiple of the encoder's stride (usually 32)."""
    epochs: int = 20
    """Epochs; after each one the run can be resumed."""
    repeats: int = 1
    """Passes over the images in an epoch; more than one where a few thousand images meet a fast device."""
    batch_size: int = 32
    """Images per optimizer step, of all processes together."""
    micro_batch: int | None = None
    """Images at once, a divisor of the batch size; none takes all, or on CUDA as many as fit."""
    lr: float | None = None
    """Peak learning rate of AdamW; none takes the objective's own: 0.002 for layers, feature_layers and otsu, else
    0.001."""
    warmup: float = 0.1
    """Share of the steps, in (0, 1), in which the learning rate rises."""
    weight_decay: float = 0.05
    """AdamW's."""
    freeze_epochs: int | None = None
    """Epochs before the others in which only the decoder trains; none takes 1 from ImageNet weights, else 0."""
    encoder_lr_ratio: float | None = None
    """Encoder over decoder learning rate; none takes 0.1 from ImageNet weights, else 1."""
    bn_mode: Literal["train", "eval"] = "train"
    """Encoder BatchNorm: train measures the corrupted images' statistics, eval keeps those it came with."""
    distance_penalty: float = 0.0
    """Weight of the squared distance between the encoder and its start: keeps what ImageNet taught (L2-SP)."""
    noise_sigma: float | None = None
    """denoise, mixture, decoder_denoise: standard deviation of the noise, in units of normalised pixels (0.5: 64 grey
    levels for tf_efficientnet_lite0, 29 for an encoder with ImageNet's deviation)."""
    patch: int | None = None
    """mask, sparse_mask, a2mim, mixture: side of a hidden patch in pixels."""
    mask_ratio: float | None = None
    """mask, sparse_mask, a2mim, mixture: share of the patches that is hidden, above 0 and below 1."""
    boundary: float | None = None
    """layers, feature_layers, otsu: how far the layer of the object's boundary reaches to either side, as a share of
    the image's side in [0, 0.5); 0 asks for object and ground alone."""
    hard_mask_share: float = 0.0
    """Share of the hidden patches, at the end of training, that are chosen where the loss is high, in [0, 1]."""
    skip_dropout: float | None = None
    """Share of the images, in [0, 1], whose skip connections are cut while training, so that the encoder's deepest map
    has to say what the decoder needs; none takes what suits the decoder."""
    upsampling: Literal["nearest", "transposed"] = "nearest"
    """How the plain decoder grows: nearest neighbour + convolution, or transposed convolution."""
    output_activation: Literal["none", "sigmoid", "tanh"] = "none"
    """Last function of the decoder; sigmoid and tanh bound a reconstruction of pixels to image values."""
    code_channels: int | None = None
    """Width of the plain decoder's bottleneck; none keeps the encoder's own."""
    val_fraction: float = 0.05
    """Share of the images kept apart for the validation loss and the panels, in [0, 1)."""
    patience: int | None = None
    """Stop when the validation loss has not improved for so many epochs; none trains to the end."""
    probe: Path | None = None
    """A data set with masks: log how well a linear probe of the frozen encoder segments a fifth of its training images.
    Its test split stays closed."""
    probe_every: int = 1
    """Epochs between two probes."""
    classes: tuple[str, ...] = ()
    """Class names of the probe's masks; not needed for Pets or when the folder has a classes.txt."""
    seed: int = 0
    """Seed of weights, order, augmentation and corruption."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads that compute; none takes OMP_NUM_THREADS, or one for each core."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of forward and loss; auto takes bfloat16 on CUDA."""
    workers: int | None = None
    """Processes that prepare images; none takes 0, or for images decoded live, shards and a cache on CUDA one for each
    core, 8 at most."""
    data_path: Literal["auto", "cache", "device", "live"] = "auto"
    """Images decoded once on the disk (cache) or held on the device, or decoded each time (live); auto takes the
    device where it is a GPU with room for them. Shards in --data are streamed."""
    epoch_images: int | None = None
    """Shards: images in an epoch; none counts those in local ones."""
    activation_checkpointing: bool = False
    """Keep little for the backward pass and compute it again: less memory, a third more time."""
    compile: bool = False
    """Compile the model with torch.compile; pays off in long runs on a GPU, if at all."""
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
    from segae.training.distributed import joined, require_divisible, this_place
    from segae.training.threads import with_threads

    with with_threads(config.threads), joined(config.device) as device:
        require_divisible(config.batch_size, this_place())
        return _pretrain(config, device)


def _pretrain(config: Pretrain, device: torch.device) -> Path:
    from segae.data.quarantine import Quarantine
    from segae.tasks.compute import as_computed, as_recorded, pretraining_of_items
    from segae.tasks.finish import finish_pretraining, measure_clean, measure_untrained, prepare_objective
    from segae.tasks.loading import load_unlabelled
    from segae.tasks.pictures import draw_curves, draw_panels, print_and_draw
    from segae.tasks.prepare import list_failures, make_probe, open_run, require_start
    from segae.training.cost import energy_logged
    from segae.training.distributed import this_place
    from segae.training.fit import fit
    from segae.training.run import RESUME_FILE

    config, model, description, objective, phases = begin(config, device)
    require_start(objective, description)
    probe = make_probe(config, description, objective, device)
    quarantine = Quarantine()
    data = load_unlabelled(config, description, device, quarantine)
    learner = pretraining_of_items(
        config, (data.train, data.valid), model, objective, device, train_indices=data.train_indices, probe=probe
    )
    resume, source = open_run(as_recorded(config, learner), device, data.names, quarantine, data.data_path)
    print(f"encoder {config.encoder}, init {config.init}: {description.source}")
    length = " + ".join(f"{phase.epochs} ({phase.name})" for phase in phases)
    print(f"{data.count} training and {data.held_out} validation images, epochs: {length}, on {device}")
    if not resume:
        measure_untrained(config, model, objective, description.init, data.measured, device)
    prepare_objective(config, model, objective, data.measured)  # before a resumed encoder takes the place of its start
    panels = partial(draw_panels, config.out, model, objective, data.shown, description)
    with energy_logged(learner, device):
        log = fit(
            learner,
            phases,
            log_csv=config.out / "log.csv",
            resume_file=config.out / RESUME_FILE,
            resume=resume,
            report=print_and_draw(partial(draw_curves, config.out), panels),
        )
    list_failures(quarantine, data.failures(), config.out)
    if not this_place().first:
        return config.out / "encoder.safetensors"
    panels()  # before BatchNorm is measured on clean images: corrupted ones are what the model was trained on
    measure_clean(config, model, objective, data.measured, device)
    done = as_computed(config, learner, data.data_path)
    return finish_pretraining(done, model, description, data.paths, data.count + data.held_out, log, source)


def begin(
    config: Pretrain, device: torch.device
) -> tuple[Pretrain, nn.Module, EncoderDescription, Objective, tuple[Phase, ...]]:
    """What a pretraining has before it has images: the resolved configuration, and what it asks for."""
    from segae.models.encoder import create_encoder
    from segae.tasks.compute import set_up
    from segae.tasks.prepare import build_pretrainer, objective_of, resolve
    from segae.training.run import seed_everything

    seed_everything(config.seed)
    encoder, description = create_encoder(config.encoder, config.init)
    config = resolve(config, description.init)
    objective, phases = objective_of(config), make_phases(config)
    model = build_pretrainer(config, encoder, description, objective).to(device)
    set_up(model, config, dense=objective.masking == "dense")
    return config, model, description, objective, phases


def make_phases(config: Pretrain) -> tuple[Phase, ...]:
    """The phases of a configuration."""
    from segae.objectives.catalogue import learning_rate
    from segae.tasks.prepare import objective_of
    from segae.training.schedule import make_pretraining_phases

    return make_pretraining_phases(
        config.epochs,
        learning_rate(config.objective) if config.lr is None else config.lr,
        config.warmup,
        freeze_epochs=config.freeze_epochs or 0,
        encoder_lr_ratio=1.0 if config.encoder_lr_ratio is None else config.encoder_lr_ratio,
        frozen_encoder=objective_of(config).frozen_encoder,
    )
