"""Segment images: masks out, at the resolution of each image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segae.errors import SegaeError


@dataclass(frozen=True)
class Predict:
    """Segment an image, or a folder of images, with a trained model.

    For each image writes <name>.png, an index PNG with palette whose pixel values are class indices, at the
    image's own resolution and upright. Sub-folders are kept.
    """

    model: Path
    """The model.safetensors that segae segment wrote."""
    input: Path
    """An image, or a folder that is searched recursively."""
    out: Path = Path("runs/predict")
    """Folder for the results; not inside the input folder."""
    overlay: bool = True
    """Also write <name>_overlay.jpg: the image with its mask laid over."""
    probabilities: bool = False
    """Also write <name>_probabilities.npz: softmax values as float16, classes x height x width."""
    batch_size: int = 8
    """Images read and segmented together."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads that compute; none takes OMP_NUM_THREADS, or one for each core."""
    overwrite: bool = False
    """Write into a folder that holds the prediction of another input or model."""


def run(config: Predict) -> tuple[Path, ...]:
    """Segment as configured.

    Returns:
        The paths of the masks.

    Raises:
        SegaeError: nothing to read, no readable image, a result would overwrite an image or what is not a
            prediction of this input by this model, or a bad model file.
    """
    from segae.training.threads import with_threads

    with with_threads(config.threads):
        return _predict(config)


def _predict(config: Predict) -> tuple[Path, ...]:
    from tqdm import tqdm

    from segae.data.folder import find_images
    from segae.data.quarantine import Quarantine
    from segae.models.segmenter import load_segmenter
    from segae.training import prediction
    from segae.training.background import in_background
    from segae.training.device import choose_device, prepare_device
    from segae.training.run import open_result_folder

    if not config.input.exists():
        raise SegaeError(
            f"There is no {config.input}. An image or a folder of images is wanted: correct --input, for example "
            "--input photo.jpg."
        )
    device = choose_device(config.device)
    prepare_device(device)
    model, description = load_segmenter(config.model)
    paths = find_images([config.input])
    root = config.input if config.input.is_dir() else config.input.parent
    targets = {
        path: prediction.output_files(config.out / stem, config.overlay, config.probabilities)
        for path, stem in prediction.output_stems(paths, root).items()
    }
    prediction.require_apart(config.input, config.out, targets)
    written = [file for files in targets.values() for file in files.values()]
    open_result_folder(config.out, config, ("model", "input"), written, overwrite=config.overwrite)
    quarantine = Quarantine()
    predicted = prediction.predict_files(
        model,
        paths,
        image_size=description.image_size,
        mean=description.mean,
        std=description.std,
        quarantine=quarantine,
        batch_size=config.batch_size,
        device=device,
    )
    masks = []
    bar = tqdm(total=len(paths), desc="predict", unit="image", leave=False, disable=None)
    with bar, in_background(prediction.AT_ONCE) as submit:
        for path, image, logits_khw in predicted:
            files = targets[path]
            prediction.write_prediction(files, image, logits_khw, description.classes, description.palette, submit)
            masks.append(files["mask"])
            bar.update(len(masks) + len(quarantine) - bar.n)
    quarantine.report()
    quarantine.write(config.out, anew=True)
    if not masks:
        raise SegaeError(
            f"None of the {len(paths)} image{'' if len(paths) == 1 else 's'} in {config.input} can be read, at least 1 "
            f"is wanted: {config.out / 'quarantine.csv'} gives each reason. Mend them, or choose another --input."
        )
    print(f"wrote {len(masks)} mask{'' if len(masks) == 1 else 's'} to {config.out}")
    return tuple(masks)
