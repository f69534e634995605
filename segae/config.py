"""Settings of every command as frozen dataclasses; ranges, choices and paths are checked before torch is imported.

A field's docstring is its help text on the command line, where the fields in ``MAIN`` stand first.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar, Literal

from segae._io import require_choice, require_name
from segae._settings import (
    Config,
    PathLike,
    Size,
    augmentation,
    checked,
    merge_settings,
    number,
    require_duration,
    require_file,
    require_images,
    require_labeled,
    require_shard,
    require_trainable,
    require_weights,
    sides,
)
from segae.errors import DataError

DEFAULT_ENCODER = "tf_efficientnet_lite0"
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "trackio")
"""Where a training can be logged; log.csv is always written."""


class TrainerConfig(Config):
    """How a training computes: device, precision, processes, memory, seed."""

    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of forward pass and loss; auto takes bfloat16 on CUDA, else float32."""
    workers: int | None = number(None, 0, 256)
    """Processes that read and augment images. Default: 0, or one per core (8 at most) to decode images."""
    threads: int | None = number(None, 1, 1024)
    """CPU threads of the computation. Default: OMP_NUM_THREADS, else one per core."""
    cache: Literal["auto", "disk", "gpu", "none"] = "auto"
    """Where decoded images are kept; none: decode them every epoch; auto: the GPU if it has room, else the disk."""
    accumulate: int | None = number(None, 1, 4096)
    """Gradient accumulation: parts of a batch. Default: 1, on CUDA as many as the memory requires."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the model with torch.compile."""
    seed: int = number(0, 0, 2**32 - 1)
    """Seed of initial weights, order of images, augmentation, corruption and subsets."""
    max_steps: int | None = number(None, 1, 10**9)
    """Stop after this many optimizer steps: a trial run that shows speed and memory."""
    log: tuple[str, ...] = ()
    """Where to log beside log.csv: tensorboard, wandb, mlflow, trackio, or several as tensorboard,wandb."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = dict.fromkeys(part.strip() for text in self.log for part in text.split(","))
        for name in names:
            require_choice("log", name, LOGGERS)
        object.__setattr__(self, "log", tuple(name for name in names if name != "csv"))


class _Labeled(Config):
    """What commands with a labeled data set share: how it is read."""

    classes: tuple[str, ...] = ()
    """Class names in the order of their mask values; not needed where the data set names them."""
    merge: tuple[str, ...] = ()
    """Classes to be merged into one, such as foreground=pet+border. Default in evaluate: as in the model's training."""
    ignore: tuple[str, ...] = ()
    """Classes or mask values that do not count, in training and scores, such as border or 255. Default: 255 where the
    masks have it beside the values of the classes (none counts that, too), in evaluate as in the model's training."""
    layout: Literal[
        "auto", "folder", "split_folders", "pets", "voc", "cityscapes", "coco", "yolo", "cvat", "label_studio",
        "huggingface", "shards",
    ] = "auto"  # fmt: skip
    """How the folder is read if it looks like several layouts; auto: like the only one that it looks like. shards, in
    finetune: do not write the rows of parquet files or of the Hub into the cache, stream them."""
    colors: tuple[str, ...] = ()
    """Colors of the classes in color masks, such as pet=255,0,0 sky=#0000ff. Default: those in classes.csv,
    classes.json or labelmap.txt, in evaluate also those of the model's training."""

    @property
    def reading(self) -> dict[str, Any]:
        """These settings by name, as `segae.data.open_dataset` takes them."""
        return {name: getattr(self, name) for name in _Labeled.TYPES}


class _Training(_Labeled):
    """What pretraining and fine-tuning share."""

    encoder: str | None = None
    """Any convolutional network of timm; or linear_64, dense_256_64, conv_16_8_4 and the like, for small images.
    Default: that of the weights file, else tf_efficientnet_lite0."""
    weights: PathLike = checked(require_weights, default="random")
    """Where the encoder starts: random, imagenet, an encoder.safetensors, or the name of a published encoder."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How to compute."""
    monitor: Literal["miou", "accuracy", "valid_loss", "probe_miou"] | None = None
    """By which validation metric an epoch is the best. Default: miou of a segmenter, accuracy of a classifier,
    valid_loss of a pretraining, which with --probe can also take probe_miou."""
    save_top_k: int = number(1, 0, 1000)
    """1 keeps the weights of the best epoch beside the last ones, 0 does not; with more the best ones are kept as
    top_EPOCH.safetensors, too. Needs validation images."""
    max_time: str | None = checked(require_duration, default=None)
    """End the training cleanly after this time, such as 30m, 2h, 90s or 1h30m; resume continues it."""
    resume: bool = False
    """Continue after the last finished epoch in the run folder, if there is one."""
    overwrite: bool = False
    """Replace an earlier run in the run folder."""


class PretrainSettings(Config):
    """Settings of a pretraining that do not depend on data, encoder or method."""

    image_size: Size = sides(128, 8, 4096)
    """Side of the square input in pixels, or HEIGHTxWIDTH; multiples of the encoder's stride (usually 32)."""
    resize: Literal["squash", "letterbox", "crop"] = "squash"
    """How images are fitted to it: squash changes the aspect ratio, letterbox pads, crop cuts at random (in the middle
    to validate) and needs cache none."""
    in_channels: int | None = number(None, 1, 16)
    """Channels of an image; the first convolution of weights for RGB is adapted. Default: those of the images for
    random and ImageNet weights, else those of the weights."""
    epochs: int = number(20, 1, 100_000)
    """Epochs; training can be resumed after each one."""
    batch_size: int = number(32, 1, 65_536)
    """Images per optimizer step, over all processes."""
    lr: float | None = number(None, 0, 10, open_low=True)
    """Peak learning rate of AdamW. Default: the method's own (0.002 for pseudo_masks, 0.001 for the others)."""
    decoder: str | None = None
    """plain, linear, hierarchical, unet_with_input (to restore images), or one of segmentation_models_pytorch, which a
    segmenter can take over. Default: the method's own."""
    repeats: int = number(1, 1, 10_000)
    """Times that each image is seen per epoch; more than 1 makes epochs longer where there are few images."""
    warmup: float = number(0.1, 0, 1, open_low=True, open_high=True)
    """Share of the steps, in (0, 1), in which the learning rate rises."""
    weight_decay: float = number(0.05, 0, 10)
    """Weight decay of AdamW (not applied to norms and biases)."""
    freeze_epochs: int | None = number(None, 0, 100_000)
    """Epochs before the others in which only the decoder trains. Default: 1 from ImageNet weights, else 0."""
    encoder_lr_ratio: float | None = number(None, 0, 100, open_low=True)
    """Learning rate of the encoder over that of the decoder. Default: 0.1 from ImageNet weights, else 1."""
    bn_mode: Literal["train", "eval"] = "train"
    """Encoder BatchNorm: train uses statistics of the corrupted images, eval keeps those of the start weights."""
    distance_penalty: float = number(0.0, 0, 1e6)
    """Weight of the squared distance between the encoder and its start weights (L2-SP, arXiv 1802.01483)."""
    hard_mask_fraction: float = number(0.0, 0, 1)
    """Share of the hidden patches, at the end of training, that are chosen where the loss is high."""
    skip_dropout: float = number(0.0, 0, 1)
    """Share of the images whose skip connections are cut while training."""
    augment: Any = augmentation()
    """none, light (mirror images), default (also random crops), strong (smaller crops, and colors), or a JSON or YAML
    file of albumentations; in Python also one of its transforms."""
    upsampling: Literal["nearest", "transposed"] = "nearest"
    """Upsampling of the plain decoder: nearest neighbor and convolution, or transposed convolution."""
    output_activation: Literal["none", "sigmoid", "tanh"] = "none"
    """Last function of the decoder; sigmoid and tanh keep a reconstruction within the range of pixels."""
    bottleneck: int | None = number(None, 1, 65_536)
    """Channels of the plain decoder's bottleneck. Default: those of the encoder's last map."""
    domain_decoders: bool = False
    """A plain decoder for each folder of data, behind one encoder."""
    val_fraction: float = number(0.05, 0, 1, open_high=True)
    """Share of the images kept apart for the validation loss and the pictures, in [0, 1)."""
    patience: int | None = number(None, 1, 100_000)
    """Stop when the validation loss, or what monitor names, has not improved for this many epochs. Default: train to
    the end."""


class PretrainConfig(_Training, PretrainSettings):
    """Pretrain an encoder on unlabeled images.

    Writes encoder.safetensors, log.csv, curves.png and reconstructions.png into the run folder, and decoder.safetensors
    if a segmenter can take the decoder over.
    """

    MAIN = ("data", "out", "method", "encoder", "weights", "image_size", "epochs", "batch_size", "lr", "resume")

    data: PathLike | Sequence[PathLike] = checked(require_images, kw_only=False)
    """Folders of images, searched recursively; test images of data sets in them are left out. Or a stream: tar shards,
    a folder of parquet files, 'hf://owner/name?split=train&column=image'."""
    out: PathLike = "runs/pretrain"
    """Run folder."""
    method: Any = "pseudo_masks"
    """Pretraining method; --method help lists them, --method-args.NAME VALUE sets one of its settings."""
    method_args: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method, such as sigma or mask_ratio."""
    epoch_images: int | None = number(None, 1, 10**12)
    """Images per epoch of a stream. Default: all, if the shards say how many they hold."""
    near_duplicates: bool = True
    """Also leave out images that look like a test image (resized, mirrored), not only equal files."""
    probe: PathLike | None = checked(require_labeled, default=None)
    """A labeled data set: log the mIoU of a linear probe on a fifth of its training images."""
    probe_every: int = number(1, 1, 100_000)
    """Epochs between two probes."""

    @property
    def roots(self) -> tuple[str, ...]:
        """``data`` as texts."""
        return tuple(map(os.fspath, self.data))  # type: ignore[arg-type]


class FinetuneSettings(Config):
    """Settings of a fine-tuning that do not depend on data, encoder, decoder or length."""

    image_size: Size | None = sides(None, 8, 4096)
    """Side of the square input in pixels, or HEIGHTxWIDTH. Default: the encoder's own (the size of its pretraining)."""
    resize: Literal["squash", "letterbox", "crop"] | None = None
    """How images are fitted to it: squash changes the aspect ratio, letterbox pads (padding counts nowhere), crop cuts
    at random to train, in the middle to validate, and needs cache none. Default: as the encoder was pretrained."""
    batch_size: int = number(16, 1, 65_536)
    """Images per optimizer step, over all processes."""
    lr: float | None = number(None, 0, 10, open_low=True)
    """Peak learning rate of the head in the frozen epochs; the full ones peak at half. Default, here and for lr_ratio,
    bn_mode, warmup, recalibrate and lpft_head: what was best on validation images for this kind of weights."""
    lr_ratio: float | None = number(None, 0, 100, open_low=True)
    """Learning rate of the encoder over that of the head in the full epochs."""
    bn_mode: Literal["strict", "eval", "train"] | None = None
    """Encoder BatchNorm: strict is frozen with the encoder, eval never moves its statistics, train always does."""
    warmup: float | None = number(None, 0, 1, open_low=True, open_high=True)
    """Share of the full epochs, in (0, 1), in which the learning rate rises."""
    recalibrate: bool | None = None
    """Measure the encoder's BatchNorm statistics on clean training images before fine-tuning."""
    lpft_head: bool | None = None
    """Start with a head fitted to the frozen features (LP-FT, arXiv 2202.10054) instead of a random one."""
    epoch_images: int | None = number(None, 1, 10**9)
    """Images per epoch, drawn with repetition if there are fewer. Default: each training image once."""
    reconstruction_weight: float = number(0.0, 0, 1e6)
    """Multi-task training: also reconstruct the images, with this weight of the mean squared error in the loss."""
    loss: Any = "cross_entropy"
    """cross_entropy, dice, jaccard, focal, lovasz, or a sum of them such as cross_entropy+0.5*dice, which --loss help
    describes; in Python also a function of logits and class indices."""
    class_weights: tuple[float, ...] | None = number(None, 0, 1e6)
    """Weight of each class in the cross-entropy, in the order of the classes. Default: all the same."""
    balance_classes: bool = False
    """Take as class weights the inverse of each class's share of the training pixels."""
    label_smoothing: float = number(0.0, 0, 1, open_high=True)
    """Share of the target, in [0, 1), that the cross-entropy spreads over all classes."""
    augment: Any = augmentation()
    """none, light (mirror images), default (also zoom, shift, rotation, brightness, contrast), strong (more of these,
    and color, blur, holes), or a JSON or YAML file of albumentations; in Python also one of its transforms."""
    weight_decay: float = number(0.01, 0, 10)
    """Weight decay of AdamW (not applied to norms and biases)."""


class FinetuneConfig(_Training, FinetuneSettings):
    """Fine-tune a segmenter or a classifier on labeled images: one epoch with the encoder frozen, then everything.

    Writes model.safetensors, log.csv, curves.png, sheet.png and metrics.json into the run folder. The test split is not
    scored: `segae evaluate` does that.
    """

    MAIN = (
        *("data", "task", "weights", "out", "encoder", "decoder", "labels"),
        *("image_size", "freeze_epochs", "epochs", "batch_size", "lr", "resume"),
    )

    data: PathLike = checked(require_trainable, kw_only=False)
    """A labeled data set: a folder with images/ and masks/, or of another layout of docs/data.md, or hf://owner/name;
    to classify, a folder for each class, or train/ (and val/, test/) with such folders. Or labeled shards:
    'shards/*.tar', and with --layout shards a folder of parquet files or 'hf://owner/name?column=image&mask=mask'."""
    task: Literal["segment", "classify"] = "segment"
    """What is predicted: a class for each pixel, or one for each image."""
    out: PathLike = "runs/finetune"
    """Run folder."""
    decoder: str = "unet"
    """A decoder of segmentation_models_pytorch, or linear: a 1x1 convolution on upsampled features."""
    transfer: Literal["encoder", "encoder+decoder"] = "encoder"
    """What the weights file gives: the encoder, or also the decoder.safetensors beside it."""
    labels: int | float | None = number(None, 0, 10**9, open_low=True)
    """Labeled training images to use: a number (30), or a share of all (0.1). Default: all."""
    freeze_epochs: int = number(1, 0, 100_000)
    """Epochs with the encoder frozen."""
    epochs: int = number(3, 0, 100_000)
    """Epochs after that, with everything training."""
    in_channels: int | None = number(None, 1, 16)
    """Channels of an image; the first convolution of weights for RGB is adapted. Default: those of the images for
    random and ImageNet weights, else those of the weights."""
    val_fraction: float = number(0.1, 0, 1, open_high=True)
    """Share of the training images used for validation, in [0, 1), if the data set has no val split."""
    val_shards: PathLike | None = checked(require_images, default=None)
    """Where data are shards: labeled shards for validation, 2,048 images of them at most. Default: no validation."""
    patience: int | None = number(None, 1, 100_000)
    """End the full epochs when the metric of monitor has not improved for this many of them. Default: train to the
    end."""


class _Inference(Config):
    """What the uses of a trained model share."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    threads: int | None = number(None, 1, 1024)
    """CPU threads of the computation. Default: OMP_NUM_THREADS, else one per core."""
    overwrite: bool = False
    """Replace results of another model, or of other images under the same names, in the folder."""


class EvaluateConfig(_Labeled, _Inference):
    """Score a trained segmenter or classifier on a split of a labeled data set.

    Writes metrics.json, per_image.csv, confusion.csv, confusion.png and, of masks, sheet.png.
    """

    MAIN = ("data", "model", "split", "out", "resolution", "batch_size", "device", "overwrite")

    model: Any = checked(require_file, kw_only=False)
    """The model.safetensors that segae finetune wrote, or in predict an exported model.onnx."""
    data: PathLike = checked(require_labeled, kw_only=False)
    """A labeled data set: a folder with images/ and masks/, or of another layout of docs/data.md, or hf://owner/name."""
    split: str = "test"
    """test, train, or val if the data set has one."""
    out: PathLike | None = None
    """Folder for the results. Default: evaluate-<split> beside the model."""
    resolution: Literal["model", "original"] = "model"
    """Where masks are compared: at the model's input size, or at each mask's own size."""
    batch_size: int = number(16, 1, 65_536)
    """Images per forward pass; no score depends on it."""


class PredictConfig(_Inference):
    """Segment images: one mask per image, an index PNG at the image's own size; predictions.csv describes them.

    Subfolders are kept. Images that cannot be read are skipped and listed in skipped.csv. Of a classifier there is
    predictions.csv alone, with the class and its probability.
    """

    MAIN = ("images", "model", "out", "tile", "tta", "overlay", "probabilities", "batch_size", "device", "overwrite")

    model: Any = checked(require_file, kw_only=False)
    """The model.safetensors that segae finetune wrote, or in predict an exported model.onnx."""
    images: PathLike | Sequence[PathLike] = checked(require_images, kw_only=False)
    """Images, folders that are searched recursively, or videos, whose frames get a mask each."""
    out: PathLike = "runs/predict"
    """Folder for the masks, outside the folders of images."""
    overlay: bool = True
    """Also write <name>_overlay.jpg: the image with its mask laid over."""
    probabilities: bool = False
    """Also write <name>_probabilities.npz: softmax as float16, (classes, height, width)."""
    confidence: bool = False
    """Also write <name>_confidence.png: the largest probability of each pixel, 255 is 1."""
    coco: Literal["none", "rle", "polygons"] = "none"
    """Also write coco.json: the regions of all classes, run-length encoded, or as outlines, which have no holes."""
    geotiff: bool = False
    """Also write <name>.tif for each GeoTIFF: the mask with the georeference of its image."""
    tile: int | None = number(None, 32, 100_000)
    """Cut large images into overlapping squares of this side in pixels; the model's image size is native resolution.
    Default: resize each image as a whole."""
    overlap: float = number(0.25, 0, 0.9)
    """Overlap of neighboring tiles, as a share of their side."""
    tta: bool = False
    """Test-time augmentation: average the image and its mirror image at three scales; takes six times as long."""
    batch_size: int = number(8, 1, 65_536)
    """Images that are read and segmented together."""
    max_pixels: int = number(100_000_000, 1, 10**10)
    """Images with more pixels are skipped: they would fill the memory."""


class DecompressConfig(_Inference):
    """Turn files of segae compress into PNGs again, with the same autoencoder."""

    MAIN: ClassVar[tuple[str, ...]] = ("files", "model", "out", "device", "overwrite")

    files: PathLike | Sequence[PathLike] = checked(require_images, kw_only=False)
    """Files, or folders that are searched recursively."""
    model: Any = checked(require_file)
    """The autoencoder.safetensors that segae pretrain wrote."""
    out: PathLike = "runs/codes"
    """Folder for the results."""


class CompressConfig(DecompressConfig):
    """Compress images with an autoencoder: a .sgac file each, and compression.csv with sizes and PSNR."""

    MAIN = ("files", "model", "out", "psnr", "bpp", "step", "device", "overwrite")

    psnr: float | None = number(None, 0, 100, open_low=True)
    """Smallest peak signal-to-noise ratio in dB. Default: half a decibel below what the model reaches."""
    bpp: float | None = number(None, 0, 100, open_low=True)
    """Largest number of bits per pixel, instead."""
    step: float | None = number(None, 0, 1e9, open_low=True)
    """Step of the quantization in units of the code, instead."""


class GenerateConfig(_Inference):
    """Generate images from random codes of an autoencoder: a PNG each, sheet.png, and samples.csv."""

    MAIN = ("model", "count", "seed", "images", "interpolate", "out", "device", "overwrite")

    model: Any = checked(require_file, kw_only=False)
    """The autoencoder.safetensors that segae pretrain wrote."""
    count: int = number(16, 1, 10_000)
    """How many images."""
    seed: int = number(0, 0, 2**32 - 1)
    """Seed of the random codes."""
    images: PathLike | Sequence[PathLike] = checked(require_images, default=())
    """Training images: the nearest of each sample is shown, and random codes of an autoencoder that is not variational
    get the mean and covariance of their codes, of 4,096 of them at most."""
    interpolate: tuple[PathLike, ...] = checked(require_images, default=())
    """Two images: interpolation.png leads from one to the other."""
    out: PathLike = "runs/generate"
    """Folder for the results."""


class DescribeConfig(Config):
    """Show the layers, shapes and parameter counts of a model, and what its file says about it."""

    model: Any = field(kw_only=False)
    """A model file of segae, a published name, or the name of an encoder, such as conv_16_8_4."""


class ServeConfig(Config):
    """Serve a page on this machine where an image is dropped and segmented, and JSON at /predict."""

    MAIN = ("model", "autoencoder", "host", "port", "device")

    model: Any = checked(require_file, kw_only=False)
    """The model.safetensors that segae finetune wrote."""
    autoencoder: PathLike | None = checked(require_file, default=None)
    """An autoencoder.safetensors that segae pretrain wrote: also show its reconstruction."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is reached from this machine only; there is no password."""
    port: int = number(7860, 1, 65_535)
    """Port to listen on."""
    max_pixels: int = number(40_000_000, 1, 10**10)
    """Images with more pixels are refused."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""


class _Images(_Inference):
    """What commands share that look at images."""

    images: PathLike | Sequence[PathLike] = checked(require_images, kw_only=False)
    """Images, or folders that are searched recursively."""
    batch_size: int = number(64, 1, 65_536)
    """Images per forward pass."""
    out: PathLike | None = None
    """Folder for the results. Default: runs/ and the name of the command."""


class _Frozen(_Images):
    """What commands share that compute features with a frozen encoder."""

    encoder: Any = "imagenet"
    """What makes the features: a model file of segae, a published name, imagenet, or timm:NAME."""
    image_size: Size | None = sides(None, 8, 8192)
    """Side in pixels, or HEIGHTxWIDTH, to which images are resized. Default: the encoder's own."""


class FeaturesConfig(_Frozen):
    """Compute features of images with a frozen encoder: a vector or a dense map per image, with the file names.

    Images that cannot be read are reported and have no row. The same command continues after an interruption.
    """

    MAIN = ("images", "encoder", "out", "layer", "pool", "image_size", "batch_size", "device", "overwrite")

    encoder: Any = "imagenet"
    """A model file of segae, a published name, imagenet, timm:NAME for its ImageNet weights, or an exported .onnx."""
    out: PathLike = "runs/features.npz"
    """A .npz, .parquet, .safetensors or .npy file; the last is a memory map, with the names beside it."""
    layer: int = number(-1, -5, 5)
    """Which feature map: 1 (stride 2) to 5 (stride 32), or -1 for the deepest."""
    pool: Literal["auto", "avg", "max", "gem", "flatten", "none"] = "auto"
    """What is taken over all positions: mean, maximum, generalized mean, or all values; none keeps the dense map; auto
    is flatten for small networks and maps of under 32 channels, else avg."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the values."""


class SuggestConfig(_Frozen):
    """Choose the images of a pool to label next: they cover the pool in feature space, beside what is labeled.

    Writes suggestions.csv, files.txt, label_studio.json for import, and a contact sheet.
    """

    MAIN = ("images", "labeled", "count", "model", "encoder", "out", "overwrite")

    images: PathLike | Sequence[PathLike] = checked(require_images, kw_only=False)
    """The pool: images, or folders that are searched recursively. Labeled images among them are left out."""
    labeled: PathLike | Sequence[PathLike] = checked(require_images, default=())
    """Images that are labeled already: a labeled data set, or folders of images."""
    count: int = number(50, 1, 10_000)
    """How many images to choose."""
    model: Any = None
    """A segmenter: images that it is uncertain about count more. Its encoder makes the features unless one is given."""
    encoder: Any = None
    """What makes the features, as in segae features. Default: that of the model, else imagenet."""
    out: PathLike = "runs/suggest"
    """Folder for the lists and the sheet."""
    image_size: Size | None = sides(None, 8, 8192)
    """Side in pixels, or HEIGHTxWIDTH, to which images are resized for the features. Default: the model's, else the
    encoder's."""
    seed: int = number(0, 0, 2**32 - 1)
    """Of the draw of 4,096 images that are to be covered, where there are more."""


class AnomalyFitConfig(_Frozen):
    """Learn from normal images alone which images are anomalies; writes detector.safetensors."""

    MAIN = ("images", "model", "encoder", "false_alarm_rate", "held_out", "out", "overwrite")

    model: Any = checked(require_file, default=None)
    """An autoencoder.safetensors, not trained on these images, to score by its reconstruction error. Default: score by
    the distance of the encoder's features."""
    false_alarm_rate: float = number(0.01, 0, 1, open_low=True, open_high=True)
    """Share of normal images that may be called anomalies, in (0, 1)."""
    held_out: float = number(0.2, 0, 1, open_high=True)
    """Share of the images that is not learned from and sets the threshold; with a model all of them set it."""


class AnomalyScoreConfig(_Images):
    """Rank images by how anomalous they are; writes scores.csv, heatmaps/ of the first ones and a contact sheet."""

    MAIN = ("images", "detector", "out", "device", "overwrite")

    detector: Any = checked(require_file)
    """The detector.safetensors that segae anomaly fit wrote."""


class SearchConfig(_Frozen):
    """Find the images most like each query image; writes hits.csv and a contact sheet."""

    MAIN = ("query", "images", "index", "encoder", "k", "out", "overwrite")

    query: PathLike | Sequence[PathLike] = checked(require_images, kw_only=False)
    """Images, or folders that are searched recursively."""
    images: PathLike | Sequence[PathLike] = checked(require_images, default=())
    """Images to search in, or folders of them."""
    index: Any = checked(require_file, default=None)
    """In place of images: the file that segae features wrote with the same encoder."""
    k: int = number(10, 1, 10_000)
    """Images to find for each query."""


class ClusterConfig(_Frozen):
    """Group images by their features; writes clusters.csv and a contact sheet for each cluster."""

    MAIN = ("images", "encoder", "k", "out", "overwrite")

    k: int | None = number(None, 1, 10_000)
    """Number of clusters. Default: HDBSCAN finds it, and leaves images out that are in none."""


class MapConfig(_Frozen):
    """Draw images as points where similar ones are near; the folder of an image is its class.

    Writes map.html, one file that needs no network, with about 3 kB for each image, and map.csv.
    """

    MAIN = ("images", "encoder", "how", "out", "overwrite")

    how: Literal["pca", "tsne", "umap"] = "tsne"
    """Reduction to two numbers; umap needs segae[map]."""


class ExportConfig(Config):
    """Write a model for another library: a folder that it loads by its name, or ONNX; README.md there says how."""

    model: Any = field(kw_only=False)
    """A model file of segae or a published name. Where a library takes encoders, that of a segmenter is written."""
    to: Literal["timm", "smp", "torchgeo", "anomalib", "fastai", "onnx", "hub"] = "timm"
    """The library; smp and hub (the Hugging Face Hub) also take whole segmenters, as onnx does."""
    out: PathLike = "runs/export"
    """Folder for the files, new or empty."""
    images: tuple[PathLike, ...] = checked(require_images, default=())
    """Images on which ONNX Runtime is compared with PyTorch, the first 64 of them. Default: drawn pets."""
    license: str | None = None
    """License for the model card, by its name on the Hub, such as apache-2.0."""
    overwrite: bool = False
    """Replace an earlier export in the folder."""


class BenchConfig(_Labeled):
    """Compare start weights over label budgets, encoders, decoders, schedules and seeds; make a report.

    Finished runs are not repeated: the same command continues after an interruption.
    """

    MAIN = ("data", "preset", "weights", "labels", "seeds", "unlabeled", "encoders", "out", "jobs", "devices")
    data: PathLike | None = checked(require_labeled, default=None, kw_only=False)
    """A labeled data set: images/ and masks/, or another layout of docs/data.md. The preset quick brings its own."""
    preset: Literal["own", "quick", "sample", "full", "smp"] = "own"
    """quick: drawn pets, minutes on a CPU. sample: a few hundred images, hours on a CPU. full: all Oxford-IIIT Pets, a
    day on a GPU. smp: a published protocol of segmentation_models_pytorch."""
    weights: tuple[str, ...] = (
        *("random", "imagenet", "random+pseudo_masks+decoder", "imagenet+pseudo_masks:features+decoder"),
    )
    """random, imagenet, a file or name; +METHOD pretrains from there, +decoder transfers the decoder too; @frozen,
    @linear (one layer on frozen features) or @long (four times the full epochs) changes the fine-tuning."""
    labels: tuple[int | float, ...] = number((0.1, 0.3, 1.0), 0, 10**9, open_low=True)
    """Labeled training images: numbers (30) or shares (0.1). Each budget gets the same number of steps."""
    seeds: int = number(3, 1, 1000)
    """Seeds per variant: seed, seed + 1, ..."""
    encoders: tuple[str, ...] = (DEFAULT_ENCODER,)
    """Convolutional networks of timm."""
    decoders: tuple[str, ...] = ("unet",)
    """Decoders of segmentation_models_pytorch, or linear."""
    schedules: tuple[str, ...] = ("1+3",)
    """Frozen + full epochs."""
    unlabeled: tuple[PathLike, ...] = checked(require_images, default=())
    """Further folders of images for pretraining."""
    out: PathLike = "runs/bench"
    """Folder for the runs, the rows and the report."""
    experiment: str = checked(require_name, default="bench")
    """Name of the study in the rows."""
    rows: PathLike | None = None
    """CSV file for the rows. Default: <experiment>.csv in the folder of the runs."""
    split: Literal["test", "val"] = "test"
    """Split that is scored; val keeps a fifth of the training images apart."""
    tune: tuple[str, ...] = ()
    """Settings to choose on validation images for each variant: lr=0.002,0.004 lr_ratio=0.1,1."""
    tune_seeds: int = number(1, 1, 1000)
    """Seeds per candidate of the search."""
    method_args: Mapping[str, Any] = field(default_factory=dict)
    """Settings by method: --method-args.inpaint.mask-ratio 0.75."""
    pretrain_seed: int | None = number(None, 0, 2**32 - 1)
    """Pretrain once, with this seed, for all seeds. Default: once per seed."""
    allow_near_duplicates: bool = False
    """Continue if more than 2 % of the test images look like training images; equal images are always refused."""
    engine: Literal["local", "ray"] = "local"
    """local: processes of this machine. ray: a Ray cluster whose machines see the same folders."""
    jobs: int | None = number(None, 1, 1000)
    """Runs at the same time. Default: one per device."""
    devices: tuple[str, ...] = ()
    """Devices of the jobs, in turn, such as cuda:0 cuda:1. Default: the one device of the trainer."""
    address: str | None = None
    """Address of a running Ray cluster. Default: start one on this machine."""
    shard: str | None = checked(require_shard, default=None)
    """Run only part i of n of the grid, such as 1/4, for job arrays."""
    report: bool = True
    """Write the report at the end."""
    pretrain: PretrainSettings = field(default_factory=lambda: PretrainSettings(image_size=96, epochs=10))
    """Settings of every pretraining."""
    finetune: FinetuneSettings = field(default_factory=lambda: FinetuneSettings(image_size=128))
    """Settings of every fine-tuning."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How to compute."""

    @classmethod
    def expand(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Put the settings of the preset below those that are given."""
        preset = settings.get("preset", "own")
        if settings.get("data") is None and preset in ("own", "sample"):
            raise DataError(f"data must be a labeled data set where the preset is {preset}, got none")
        return merge_settings(PRESETS.get(preset, {}) if isinstance(preset, str) else {}, settings)


class ReportConfig(Config):
    """Make one self-contained HTML report from result rows."""

    rows: PathLike = checked(require_file, kw_only=False)
    """CSV file of result rows, such as runs/bench/bench.csv."""
    out: PathLike | None = None
    """The HTML file. Default: beside the rows, such as runs/bench/bench.html."""
    experiment: str | None = None
    """Which study of the file. Default: the only one."""
    runs: PathLike | None = None
    """Folder of the runs, for pictures of images and predictions."""
    figures: PathLike | None = None
    """Folder that gets every figure as SVG and PDF."""


class DownloadConfig(Config):
    """Download a data set: pets is Oxford-IIIT Pets, 7,349 images with masks, about 800 MB; fashion_mnist 70,000 small
    images, 30 MB.

    Verifies checksums. Archives that arrived whole are kept, so that a repeated command goes on with the next one.
    """

    name: Literal["pets", "fashion_mnist"] = field(default="pets", kw_only=False)
    """Which data set."""
    root: PathLike | None = None
    """Folder for it. Default: data/<name>."""


class CheckDataConfig(_Labeled):
    """Look at a folder before training: classes, sizes, duplicates, what is wrong, and the command to type next.

    Takes a labeled data set or a folder of unlabeled images. Exits with 1 if a training would refuse the folder.
    """

    MAIN = ("data", "out", "classes", "merge", "ignore", "layout", "colors")

    data: PathLike = checked(require_images, kw_only=False)
    """A labeled data set, or a folder of images."""
    out: PathLike | None = None
    """Folder for report.json and sheet.png, a picture of some images and masks. Default: write nothing."""


class DoctorConfig(Config):
    """Say what this machine has and what is missing: versions, devices, data, weights, and commands that mend it."""

    online: bool = False
    """Also ask whether the model hub can be reached."""


_SMP = {  # lr: the full epochs peak at half of it; warmup: one or two steps, then a cosine from its top
    **{"image_size": 256, "batch_size": 64, "loss": "dice", "augment": "none", "lr": 4e-4, "lr_ratio": 1.0},
    **{"bn_mode": "train", "warmup": 0.002, "recalibrate": False},
}
PRESETS: dict[str, dict[str, Any]] = {
    "own": {},
    "quick": {
        "weights": ("random", "imagenet", "random+pseudo_masks+decoder", "pets_pseudo_masks+decoder"),
        **{"labels": (0.5,), "pretrain_seed": 0, "pretrain": {"image_size": 64, "epochs": 3, "batch_size": 16}},
        "finetune": {"image_size": 64, "batch_size": 8, "epoch_images": 120},
    },
    "sample": {"labels": (0.05, 0.1, 0.25, 0.5, 1.0)},
    "full": {
        "labels": (0.01, 0.05, 0.1, 0.25, 0.5, 1.0),
        # as many images as recipes/pretrain_pets.yaml sees
        "pretrain": {"image_size": 224, "epochs": 1600, "batch_size": 256, "lr": 2e-3},
    },
    "smp": {
        **{"weights": ("imagenet",), "encoders": ("resnet34",), "decoders": ("fpn",), "labels": (1.0,)},
        **{"schedules": ("0+10",), "merge": ("foreground=pet+border",), "finetune": _SMP},
    },
}
"""What each preset of a benchmark changes."""
