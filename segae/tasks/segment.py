"""Fine-tune a segmenter: freeze the encoder for one epoch, then train everything."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segae.errors import SegaeError

if TYPE_CHECKING:
    import torch

    from segae.models.encoder import EncoderDescription


@dataclass(frozen=True)
class Segment:
    """Fine-tune a segmenter with a per-pixel softmax head: freeze the encoder for one epoch, then train everything.

    Writes model.safetensors, log.csv, curves.png, sheet.png and metrics.json into the run folder. The test
    split is not read: `segae evaluate` does that, once.
    """

    data: Path
    """A data set: the official Oxford-IIIT Pets layout, or a folder with images/ and masks/."""
    out: Path = Path("runs/segment")
    """Run folder."""
    encoder: str = "tf_efficientnet_lite0"
    """Name of any convolutional network in timm."""
    init: str = "random"
    """Where the encoder starts: random, imagenet, the path of an encoder.safetensors, or a published encoder's name."""
    decoder: str = "unet"
    """Any decoder of segmentation-models-pytorch, or linear: a 1x1 convolution on the upsampled features."""
    transfer: Literal["encoder", "encoder+decoder"] = "encoder"
    """What a file in --init gives: its encoder, or also the decoder.safetensors that pretraining wrote beside it."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their mask values; not needed for Pets or when the folder has a classes.txt."""
    merge: tuple[str, ...] = ()
    """Classes to be taken as one, such as foreground=pet+border."""
    image_size: int | None = None
    """Side of the square input in pixels; none takes the encoder's own (the size of its pretraining)."""
    freeze_epochs: int = 1
    """Epochs with the encoder frozen."""
    epochs: int = 3
    """Epochs after that, with everything training."""
    epoch_images: int | None = None
    """Images per epoch, drawn with repetition where there are fewer; none takes each training image once."""
    batch_size: int = 16
    """Images per optimizer step, of all processes together."""
    micro_batch: int | None = None
    """Images at once, a divisor of the batch size; none takes all, or on CUDA as many as fit."""
    loss: Literal["cross_entropy", "dice"] = "cross_entropy"
    """Cross-entropy of each pixel, or one minus the Dice score of each class over a batch."""
    augment: bool = True
    """Change the training images a little each time: flip, zoom, move, rotate, brightness, contrast."""
    lr: float | None = None
    """Peak learning rate of the head in the frozen epochs; the full epochs peak at half of it. None takes, here and
    in the next five settings, what was best on validation images for the kind of init (docs/training.md)."""
    lr_ratio: float | None = None
    """Encoder over head learning rate in the full epochs."""
    bn_mode: Literal["strict", "eval", "train"] | None = None
    """Encoder BatchNorm: strict rests while frozen, eval never moves its statistics, train always trains."""
    warmup: float | None = None
    """Share of the full epochs, in (0, 1), in which the learning rate rises."""
    recalibrate: bool | None = None
    """Measure the encoder's BatchNorm statistics on clean training images before fine-tuning."""
    fitted_head: bool | None = None
    """Begin with a linear discriminant of the decoder's features on the training images as head, not a random one."""
    labels: int | None = None
    """Number of labelled training images to use, drawn by seed; none takes all."""
    val_fraction: float = 0.1
    """Share of the labelled training images kept apart for validation, in [0, 1)."""
    seed: int = 0
    """Seed of weights, order, augmentation and of the labelled subset."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads that compute; none takes OMP_NUM_THREADS, or one for each core."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of forward and loss; auto takes bfloat16 on CUDA."""
    workers: int | None = None
    """Processes that prepare images; none takes 0, or for images decoded live and a cache on CUDA one for each core,
    8 at most."""
    data_path: Literal["auto", "cache", "device", "live"] = "auto"
    """Images decoded once on the disk (cache) or held on the device, or decoded each time (live); auto takes the
    device where it is a GPU with room for them."""
    activation_checkpointing: bool = False
    """Keep little for the backward pass and compute it again: less memory, a third more time."""
    compile: bool = False
    """Compile the model with torch.compile; pays off in long runs on a GPU, if at all."""
    resume: bool = False
    """Go on after the last finished epoch in the run folder."""
    overwrite: bool = False
    """Throw away an earlier run in the run folder."""


def run(config: Segment) -> Path:
    """Fine-tune as configured.

    Returns:
        The path of model.safetensors.

    Raises:
        SegaeError: see the messages; nothing finished is lost.
    """
    from segae.training.distributed import joined, require_divisible, this_place
    from segae.training.threads import with_threads

    with with_threads(config.threads), joined(config.device) as device:
        require_divisible(config.batch_size, this_place())
        return _segment(config, device)


def _segment(config: Segment, device: torch.device) -> Path:
    from segae.data.open import open_dataset
    from segae.data.quarantine import Quarantine
    from segae.models.decoder import decoder_file, load_decoder_into
    from segae.models.encoder import create_encoder, output_stride, require_size
    from segae.models.segmenter import create_segmenter, require_decoder_size
    from segae.tasks.arms import require_transferable
    from segae.tasks.beforehand import fit_head_to, recalibrate
    from segae.tasks.compute import as_computed, segmentation_of_items, set_up
    from segae.tasks.finish import finish_segmentation
    from segae.tasks.labelled import load_labelled
    from segae.tasks.pictures import draw_curves, print_and_draw
    from segae.tasks.prepare import list_failures, open_run
    from segae.training.cost import energy_logged, measured
    from segae.training.distributed import this_place
    from segae.training.fit import fit
    from segae.training.run import RESUME_FILE, seed_everything
    from segae.training.schedule import check_batchnorm_mode, make_phases

    data = open_dataset(config.data, config.classes, config.merge)
    seed_everything(config.seed)
    encoder, description = create_encoder(config.encoder, config.init)
    config = resolve(config, description)
    size = config.image_size or description.image_size
    require_size(size, output_stride(encoder))
    require_decoder_size(config.decoder, size)
    phases = make_phases(config.freeze_epochs, config.epochs, **rates_of(config))
    check_batchnorm_mode(str(config.bn_mode))
    seed_everything(config.seed)  # the decoder's start must not depend on where the encoder's weights came from
    model = create_segmenter(encoder, config.encoder, config.decoder, len(data.classes)).to(device)
    if config.transfer == "encoder+decoder":
        require_transferable(config.transfer, config.decoder)
        load_decoder_into(decoder_file(config.init), model, config.encoder, config.decoder)
    set_up(model, config)

    quarantine = Quarantine()
    images = load_labelled(config, data, description, device, quarantine)
    learner = segmentation_of_items(config, (images.train, images.valid), model, len(data.classes), size, device)
    resume, source = open_run(config, device, [pair.name for pair in images.pairs], quarantine, images.data_path)
    print(f"encoder {config.encoder}, init {config.init}: {description.source}")
    print(f"{_amount(config, len(images.pairs))}, {config.freeze_epochs} + {config.epochs} epochs on {device}")
    if config.recalibrate and not resume:
        recalibrate(config, model, images.sample, description, device)
    if config.fitted_head and not resume:
        fit_head_to(config, model, images.sample, description, len(data.classes), device)
    with measured(device) as cost, energy_logged(learner, device):
        log = fit(
            learner,
            phases,
            log_csv=config.out / "log.csv",
            resume_file=config.out / RESUME_FILE,
            resume=resume,
            report=print_and_draw(partial(draw_curves, config.out)),
        )
    list_failures(quarantine, images.failures(), config.out)
    if not this_place().first:
        return config.out / "model.safetensors"
    done = as_computed(config, learner, images.data_path)
    return finish_segmentation(done, model, description, data, images, log, cost, source, device)


def resolve(config: Segment, description: EncoderDescription) -> Segment:
    """The configuration with every setting that was left open filled in for this init.

    Raises:
        SegaeError: an epoch without images, or images without pixels.
    """
    from dataclasses import asdict, replace

    from segae.training.schedule import protocol_of

    if config.epoch_images is not None and config.epoch_images < 1:
        raise SegaeError(f"epoch_images is {config.epoch_images}; 1 or more is wanted, for example --epoch-images 300.")
    if config.image_size is not None and config.image_size < 1:
        raise SegaeError(f"image_size is {config.image_size}; 32 or more is wanted, for example --image-size 128.")
    if config.transfer == "encoder" and description.init.endswith("ae:decoder_denoise"):
        raise SegaeError(
            f"{config.init} comes from decoder_denoise, which trains the decoder and leaves the encoder as it was: "
            "alone it is no pretraining. Add --transfer encoder+decoder, or give the --init that it began with: "
            f"{description.init.rpartition('ae:')[0].rstrip('+') or 'random'}."
        )
    defaults = asdict(protocol_of(description.init, config.transfer)) | {"image_size": description.image_size}
    return replace(
        config,
        **{name: value for name, value in defaults.items() if getattr(config, name) is None},
    )


def _amount(config: Segment, images: int) -> str:
    amount = f"{images} training images"
    return amount if config.epoch_images is None else f"{amount}, {config.epoch_images} to an epoch"


def rates_of(config: Segment) -> dict[str, float]:
    """What a configuration says of the learning rate, for ``make_phases``; what it leaves out has a default there."""
    values = {"lr": config.lr, "lr_ratio": config.lr_ratio, "warmup": config.warmup}
    return {name: value for name, value in values.items() if value is not None}
