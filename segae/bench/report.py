"""One self-contained HTML page from result rows: what came out, how sure it is, and what would invalidate it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segae.errors import SegaeError

if TYPE_CHECKING:
    import pandas as pd

    from segae.data.dataset import SegmentationData

_MOST_BYTES = 2_200_000  # of pictures in a page, which should stay below 3 MB


@dataclass(frozen=True)
class Report:
    """Make one self-contained HTML page from the rows of a comparison or benchmark.

    Beside the rows it reads, where they are, per_image/, curves/ and confusion/<experiment>.csv.gz, and for the
    pictures of images the data sets and the run folders. A section without its file says what is missing.
    """

    rows: Path
    """CSV file of result rows, such as runs/bench/bench.csv."""
    out: Path | None = None
    """The HTML file; none writes <rows>.html beside the rows."""
    experiment: str | None = None
    """Which study of the file; none takes the only one."""
    data: tuple[Path, ...] = ()
    """The data sets with the scored images, for pictures: folders whose names the rows give as dataset."""
    classes: tuple[str, ...] = ()
    """Class names as they were given to the benchmark; not needed for Pets or with a classes.txt."""
    merge: tuple[str, ...] = ()
    """Classes taken as one, as they were given to the benchmark."""
    runs: Path | None = None
    """Folder that holds the run folders, for pictures of what the models predict."""
    figures: Path | None = None
    """Folder that gets every figure as SVG and PDF; none writes none."""


def run(config: Report) -> Path:
    """Write the page as configured and return its path.

    Raises:
        SegaeError: there are no rows, several studies, rows that cannot be compared, or a file cannot be written.
    """
    path = write_report(
        config.rows,
        config.out or config.rows.with_suffix(".html"),
        experiment=config.experiment,
        data=config.data,
        classes=config.classes,
        merge=config.merge,
        runs=config.runs,
        figures=config.figures,
    )
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return path


def write_report(
    rows_csv: Path,
    out: Path,
    *,
    experiment: str | None = None,
    settings: Collection[str] | None = None,
    data: Path | Sequence[Path] | None = None,
    classes: Sequence[str] = (),
    merge: Sequence[str] = (),
    runs: Path | None = None,
    figures: Path | None = None,
) -> Path:
    """Write the page of an experiment.

    Args:
        rows_csv: the rows; further files are looked for beside it.
        out: the HTML file.
        experiment: which study of the file; None takes the only one.
        settings: digests of the runs that the page is about; None takes all of the study.
        data: folders of the data sets with the scored images.
        classes: their class names, where the folders do not say them.
        merge: classes that were taken as one, such as ``foreground=pet+border``.
        runs: folder that holds the run folders.
        figures: folder that gets each figure as SVG and PDF.

    Raises:
        SegaeError: there are no rows, several studies, rows that cannot be compared, or a file cannot be written.
    """
    from segae.bench.report_arms import sections_of
    from segae.bench.report_numbers import numbers_of
    from segae.bench.report_page import SectionPage, render
    from segae.bench.report_style import export
    from segae.data.open import open_dataset
    from segae.files import write_atomically

    rows, name = _rows(rows_csv, experiment)
    rows = [row for row in rows if settings is None or row["settings"] in settings]
    opened = [open_dataset(folder, classes, merge) for folder in ([data] if isinstance(data, Path) else data or ())]
    files = Files.beside(rows_csv, name, opened, runs)
    pages, used = [], 0
    for index, section in enumerate(sections_of(rows), start=1):
        page = SectionPage(numbers_of(section, files.per_image), files, index, _MOST_BYTES - used)
        pages.append(page)
        used += page.picture_bytes
    if figures is not None:
        export([one for page in pages for one in page.all_figures()], figures)
    html = render(pages, name=name, source=rows_csv.name, files=files)
    write_atomically(out, lambda file: file.write(html.encode()))
    return out


@dataclass(frozen=True)
class Files:
    """What lies beside the rows; None or empty where it is missing.

    Attributes:
        per_image: scores of single images; may not exist.
        curves: logs of the runs.
        confusion: pixel counts of the runs.
        data: data sets by name.
        runs: run folders by the digest of their settings.
        missing: for each missing thing, what it is and the command that makes it.
        near_duplicates: test images that look like images that were trained on, as the benchmark found them.
    """

    per_image: Path
    curves: pd.DataFrame | None
    confusion: pd.DataFrame | None
    data: Mapping[str, SegmentationData]
    runs: Mapping[str, Path]
    missing: Mapping[str, str] = field(default_factory=dict)
    near_duplicates: Sequence[Mapping[str, str]] = ()

    @classmethod
    def beside(cls, rows_csv: Path, name: str, data: Sequence[SegmentationData], runs: Path | None) -> Files:
        """Look for the files of an experiment beside its rows.

        Raises:
            SegaeError: there is no folder of runs, or a file cannot be read.
        """
        from segae.bench.files import NEAR
        from segae.bench.pictures import run_folders
        from segae.tasks.rows import read_compressed

        if runs is not None and not runs.is_dir():
            raise SegaeError(f"There is no folder {runs}. Wanted the folder that holds the run folders: --runs.")
        paths = {kind: rows_csv.parent / kind / f"{name}.csv.gz" for kind in ("per_image", "curves", "confusion")}
        missing = {
            kind: f"There is no {kind}/{path.name} beside {rows_csv.name}: `segae bench` writes it with the rows."
            for kind, path in paths.items()
            if not path.exists()
        }
        asked = (("--data with the data set", data), ("--runs with the run folders", runs))
        if wanted := [flag for flag, given in asked if not given]:
            missing["galleries"] = (
                f"No pictures: they need {' and '.join(wanted)}, as in "
                f"segae report --rows {rows_csv.name} --data FOLDER --runs FOLDER."
            )
        return cls(
            per_image=paths["per_image"],
            curves=_table(paths["curves"], ("settings", "epoch", "train_loss")),
            confusion=_table(paths["confusion"], ("settings", "truth", "prediction", "pixels")),
            data={one.name: one for one in data},
            runs=run_folders(runs) if runs is not None else {},
            missing=missing,
            near_duplicates=read_compressed(rows_csv.parent / NEAR / f"{name}.csv.gz"),
        )


def _rows(path: Path, experiment: str | None) -> tuple[list[dict[str, str]], str]:
    from segae.tasks.rows import read_rows

    rows = read_rows(path)
    if not rows:
        raise SegaeError(f"{path} has no result rows. Wanted the CSV file of a benchmark: segae report --rows FILE.")
    if absent := [name for name in ("experiment", "init", "seed", "miou", "labels", "settings") if name not in rows[0]]:
        raise SegaeError(
            f"{path} lacks the columns {', '.join(absent)}: these are no rows of segmentations. Wanted a file that "
            f"segae bench or segae compare wrote."
        )
    names = sorted({row["experiment"] for row in rows})
    if experiment is None and len(names) > 1:
        raise SegaeError(f"{path} holds the studies {', '.join(names)}: choose one with --experiment {names[0]}.")
    if experiment is not None and experiment not in names:
        raise SegaeError(f"{path} has no study {experiment!r}; it holds {', '.join(names)}.")
    name = experiment or names[0]
    return [row for row in rows if row["experiment"] == name], name


def _table(path: Path, columns: Sequence[str]) -> Any:
    """A gzipped CSV file, names as text; None if it is not there."""
    import pandas as pd

    if not path.exists():
        return None
    texts = {"settings": str, "truth": str, "prediction": str, "phase": str}  # a digest may look like a number
    empty = {"train_loss": [""], "valid_loss": [""], "miou": [""]}  # and a class may be called NA
    try:
        table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=empty)
    except (OSError, ValueError, EOFError) as error:
        raise SegaeError(
            f"{path} cannot be read ({error}). Delete it, and run the benchmark's command again."
        ) from error
    if absent := set(columns) - set(table.columns):
        raise SegaeError(f"{path} lacks the columns {', '.join(sorted(absent))}. Run the benchmark's command again.")
    return table
