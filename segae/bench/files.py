"""The files of a benchmark: one for each finished cell, and the tables that are put together from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segae.bench.grid import Cell
from segae.bench.jobs import Outcome
from segae.data.near_duplicates import Duplicate
from segae.files import write_json
from segae.tasks.rows import (
    read_compressed,
    read_json,
    read_rows,
    require_result_rows,
    write_compressed,
    write_rows,
)

DETAILS = ("per_image", "confusion", "curves")
NEAR = "near_duplicates"


@dataclass(frozen=True)
class BenchFiles:
    """Where a benchmark keeps what it found.

    Attributes:
        cells: folder with a JSON file for each finished cell; nothing else is needed to go on after a kill.
        rows: the CSV file of result rows; per_image/, confusion/, curves/ and near_duplicates/ stand beside it.
        experiment: name of the study, in the rows and of the files beside them.
    """

    cells: Path
    rows: Path
    experiment: str

    def keep(self, cell: Cell, outcome: Outcome) -> None:
        """Write down what came of a cell."""
        write_json(self._file(cell), {"row": outcome.row, "details": outcome.details})

    def old_rows(self) -> list[dict[str, str]]:
        """What is in the table, of whatever study.

        Raises:
            SegaeError: the file is no table of result rows.
        """
        rows = read_rows(self.rows)
        require_result_rows(self.rows, rows)
        return rows

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells that have neither a file of their own nor a row in the table."""
        rows = {row["settings"] for row in self.old_rows() if row["experiment"] == self.experiment}
        return [cell for cell in cells if not self._file(cell).exists() and cell.settings not in rows]

    def assemble(self, cells: Sequence[Cell]) -> list[dict[str, str]]:
        """Put the tables together, in the order of the cells; what else was in them stays in front.

        Returns:
            The rows of these cells.
        """
        found = {cell.settings: read_json(self._file(cell)) for cell in cells if self._file(cell).exists()}
        with self._locked():
            old = self.old_rows()
            theirs = {row["settings"]: row for row in old if row["experiment"] == self.experiment}
            mine = {cell.settings for cell in cells}
            rows: list[dict[str, Any]] = [
                row for row in old if row["experiment"] != self.experiment or row["settings"] not in mine
            ]
            for cell in cells:
                if cell.settings in found:  # perhaps from another study of this folder
                    rows.append({**found[cell.settings]["row"], "experiment": self.experiment})
                elif cell.settings in theirs:
                    rows.append(theirs[cell.settings])
            write_rows(self.rows, rows)
            for name in DETAILS:
                self._assemble_details(name, {key: content["details"].get(name, []) for key, content in found.items()})
        return [row for row in read_rows(self.rows) if row["experiment"] == self.experiment and row["settings"] in mine]

    def note_near_duplicates(self, dataset: str, test_images: int, found: Sequence[Duplicate]) -> None:
        """Write down which test images look like images that are trained on, beside what earlier commands found."""
        target = self.rows.parent / NEAR / f"{self.experiment}.csv.gz"
        new = [(one.of.name, one.image.name) for one in found]
        with self._locked():
            lines: list[Mapping[str, Any]] = list(read_compressed(target))
            known = {(line["dataset"], line["test_image"], line["looks_like"]) for line in lines}
            fresh = [pair for pair in dict.fromkeys(new) if (dataset, *pair) not in known]
            if fresh:
                common = {"dataset": dataset, "test_images": test_images}
                lines += [{**common, "test_image": image, "looks_like": other} for image, other in fresh]
                write_compressed(target, lines)

    def _assemble_details(self, name: str, new: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        target = self.rows.parent / name / f"{self.experiment}.csv.gz"
        lines: list[Mapping[str, Any]] = [line for line in read_compressed(target) if line["settings"] not in new]
        lines += [line for key in new for line in new[key]]
        if lines:
            write_compressed(target, lines)

    def _file(self, cell: Cell) -> Path:
        return self.cells / f"{cell.settings}.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer of the tables at a time: two benchmarks may add to the same ones."""
        from filelock import FileLock

        from segae.data.fingerprint import default_cache_dir
        from segae.tasks.settings import digest

        folder = default_cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"rows-{digest(str(self.rows.resolve()))}.lock"):
            yield
