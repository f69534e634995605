"""Galleries of a report: the same images with the truth and what each arm makes of them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segae.bench.report_arms import Arm
from segae.errors import SegaeError
from segae.tasks.rows import read_rows

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from segae.data.dataset import Pair, SegmentationData

    Predict = Callable[[str, str], NDArray[np.uint8]]

SHOWN = 4  # images of each gallery
_SIDE = 160  # pixels: no picture in a page is larger
_WRONG = (213, 94, 0)  # vermillion of the Okabe-Ito colours


@dataclass(frozen=True)
class Tile:
    """One picture, uint8 (H, W, 3), what stands above it, and a text for those who cannot see it."""

    pixels: NDArray[np.uint8]
    label: str
    alt: str
    photograph: bool = False

    @property
    def uri(self) -> str:
        """The picture as a data URI: a photograph as JPEG, a mask as PNG."""
        from PIL import Image

        picture = Image.fromarray(self.pixels)
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS if self.photograph else Image.Resampling.NEAREST)
        content = BytesIO()
        if self.photograph:
            picture.save(content, "JPEG", quality=85)
        else:
            picture.quantize(256, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
        kind = "jpeg" if self.photograph else "png"
        return f"data:image/{kind};base64,{b64encode(content.getvalue()).decode()}"


@dataclass(frozen=True)
class Gallery:
    """A title, a sentence on what was chosen, rows (a caption with pictures side by side), and what colours mean."""

    title: str
    note: str
    rows: tuple[tuple[str, tuple[Tile, ...]], ...]
    legend: tuple[tuple[str, str], ...]


def galleries(arms: Sequence[Arm], data: SegmentationData, runs: Mapping[str, Path]) -> list[Gallery]:
    """Worst and best images, those on which the arms differ most, and the failures of each arm.

    Args:
        arms: of one label budget; each shows the model of its first seed.
        data: the data set with the scored images.
        runs: run folder with model.safetensors and test/per_image.csv of each run, by its ``settings``.

    Raises:
        SegaeError: a run folder is missing, or its scores are of other images.
    """
    import numpy as np

    folders = {arm.name: _folder(arm, runs) for arm in arms}
    scores = {name: _scores(folder) for name, folder in folders.items()}
    names = [name for name in next(iter(scores.values())) if all(name in one for one in scores.values())]
    pairs = {pair.name: pair for pair in data.splits.get(arms[0].rows[0]["split"], ())}
    if not names or (unknown := [name for name in names if name not in pairs]):
        raise SegaeError(
            f"the scored images of {arms[0].rows[0]['dataset']} are not those of {data.root}"
            f"{f', which has no {unknown[0]}' if names else ''}; give the data set the runs were made with as --data."
        )
    table = np.array([[scores[name][image] for image in names] for name in scores])  # (arms, images)
    mean, spread = table.mean(axis=0), table.max(axis=0) - table.min(axis=0)
    chosen = {
        "Worst images": ("The lowest mean over the arms.", np.argsort(mean, kind="stable")[:SHOWN]),
        "Best images": ("The highest mean over the arms.", np.argsort(-mean, kind="stable")[:SHOWN]),
        "Where the arms differ": (
            "The largest distance between the best arm and the worst.",
            np.argsort(-spread, kind="stable")[: SHOWN if len(arms) > 1 else 0],
        ),
    }
    each = 2 if len(arms) < 4 else 1
    failures = [
        (name, names[int(index)])
        for name, row in zip(scores, table, strict=True)
        for index in np.argsort(row, kind="stable")[:each]
    ]
    wanted = {names[int(index)] for _, order in chosen.values() for index in order} | {image for _, image in failures}
    drawn = _Drawn([pairs[name] for name in names if name in wanted], folders, scores)
    made = [
        Gallery(
            title,
            note,
            tuple((names[int(index)], drawn.side_by_side(names[int(index)])) for index in order),
            drawn.legend,
        )
        for title, (note, order) in chosen.items()
        if len(order)
    ]
    lines = tuple((f"{arm}: {image}", drawn.failure(arm, image)) for arm, image in failures)
    note = "Each arm's own worst images; wrong pixels are orange, and the most frequent mistake is named."
    return [*made, Gallery("Failures of each arm", note, lines, drawn.legend)]


def run_folders(runs: Path) -> dict[str, Path]:
    """The folders below ``runs`` that hold a trained segmenter, by the digest at the end of their names."""
    return {path.parent.name.rpartition("-")[2]: path.parent for path in sorted(runs.rglob("model.safetensors"))}


def gallery_figure(gallery: Gallery) -> Figure:
    """The gallery as a figure, for SVG and PDF files."""
    from matplotlib.figure import Figure

    from segae.bench.report_style import plain, shortened

    across, down = max(len(tiles) for _, tiles in gallery.rows), len(gallery.rows)
    figure = Figure(figsize=(1.6 * across, 1.9 * down), facecolor="white")
    # places are known beforehand; a constrained layout of so many panels takes seconds
    place = {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 1 - 0.14 / down, "wspace": 0.06, "hspace": 0.18}
    panels = figure.subplots(down, across, squeeze=False, gridspec_kw=place)
    for axes_row, (_, tiles) in zip(panels, gallery.rows, strict=True):
        for axes in axes_row:
            axes.set_axis_off()
        for axes, tile in zip(axes_row, tiles, strict=False):
            axes.imshow(tile.pixels)
            axes.set_title(plain(shortened(tile.label, 30)), fontsize=7)
    return figure


def _folder(arm: Arm, runs: Mapping[str, Path]) -> Path:
    folder = runs.get(arm.rows[0]["settings"])
    if folder is None or not (folder / "test" / "per_image.csv").exists():
        raise SegaeError(
            f"no run folder of {arm.name}, {arm.labels} labels, seed {arm.rows[0]['seed']} (its name ends with "
            f"{arm.rows[0]['settings']}) has model.safetensors and test/per_image.csv; give the folder of the runs "
            f"as --runs."
        )
    return folder


def _scores(folder: Path) -> dict[str, float]:
    return {row["name"]: float(row["miou"]) for row in read_rows(folder / "test" / "per_image.csv")}


class _Drawn:
    """Images, truths and predictions of the chosen images, as tiles."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        folders: Mapping[str, Path],
        scores: Mapping[str, Mapping[str, float]],
    ) -> None:
        from segae.data.cache import cache_pairs
        from segae.data.quarantine import Quarantine
        from segae.models.segmenter import load_segmenter
        from segae.training.evaluation import predict_masks

        self.scores = scores
        self.predicted: dict[str, dict[str, Any]] = {}
        for arm, folder in folders.items():
            model, about = load_segmenter(folder / "model.safetensors")
            cached = cache_pairs(pairs, about.image_size, about.mask_values, Quarantine(), progress=False)
            if len(cached.pairs) < len(pairs):
                lost = sorted({pair.name for pair in pairs} - {pair.name for pair in cached.pairs})
                raise SegaeError(f"{lost[0]} was scored and cannot be read any more; fetch the data set again.")
            names = [pair.name for pair in cached.pairs]
            self.images = dict(zip(names, cached.images, strict=True))
            self.truths = dict(zip(names, cached.masks, strict=True))
            self.classes, self.palette = about.classes, about.palette
            masks = predict_masks(model, cached.images, about.mean, about.std)
            self.predicted[arm] = dict(zip(names, masks, strict=True))

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """Name and CSS colour of each class."""
        return tuple((name, f"rgb{tuple(colour)}") for name, colour in zip(self.classes, self.palette, strict=True))

    def side_by_side(self, image: str) -> tuple[Tile, ...]:
        """Image, truth, and the prediction of each arm."""
        arms = [
            Tile(
                self._coloured(masks[image]),
                f"{arm} {self.scores[arm][image]:.2f}",
                f"Prediction of {arm} for {image}, mean IoU {self.scores[arm][image]:.2f}",
            )
            for arm, masks in self.predicted.items()
        ]
        return (*self._given(image), *arms)

    def failure(self, arm: str, image: str) -> tuple[Tile, ...]:
        """Image, truth, prediction, and where it is wrong, with the most frequent mistake."""
        import numpy as np

        truth, mask = self.truths[image], self.predicted[arm][image]
        wrong = truth != mask
        grey = np.repeat(np.asarray(self.images[image]).mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
        grey[wrong] = _WRONG
        mistake = self._mistake(truth, mask)
        score = self.scores[arm][image]
        return (
            *self._given(image),
            Tile(self._coloured(mask), f"prediction {score:.2f}", f"Prediction of {arm}, mean IoU {score:.2f}"),
            Tile(grey, mistake, f"Wrong pixels of {arm} in {image}: {mistake}", photograph=True),
        )

    def _given(self, image: str) -> tuple[Tile, Tile]:
        import numpy as np

        photograph = Tile(np.asarray(self.images[image]), "image", f"Image {image}", photograph=True)
        return photograph, Tile(self._coloured(self.truths[image]), "truth", f"True mask of {image}")

    def _coloured(self, mask: Any) -> Any:
        from segae.training.colour import colour_mask

        return colour_mask(mask, self.palette)

    def _mistake(self, truth: Any, mask: Any) -> str:
        import numpy as np

        count = len(self.classes)
        pixels = np.bincount(truth.astype(int).ravel() * count + mask.ravel(), minlength=count**2).reshape(count, count)
        np.fill_diagonal(pixels, 0)
        true, taken = np.unravel_index(int(pixels.argmax()), pixels.shape)
        if not pixels[true, taken]:
            return "nothing is wrong"
        share = 100 * pixels[true, taken] / truth.size
        return f"{self.classes[true]} taken for {self.classes[taken]}: {share:.0f} % of the image"
