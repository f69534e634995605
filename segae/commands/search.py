"""Find the images most like a query image."""

from typing import Any

import pandas as pd

from segae._io import logger
from segae._settings import takes_settings_of
from segae.applications import ImageIndex
from segae.commands._data import open_results, read_pictures, write_result
from segae.config import SearchConfig
from segae.errors import SegaeError
from segae.evaluation import contact_sheet

_WIDE = 8  # queries, and images of each, on the sheet


@takes_settings_of(SearchConfig)
def search_images(config: SearchConfig) -> pd.DataFrame:
    """Find the nearest images of each query: ``search_images("cat.jpg", images="photos")``; see ``SearchConfig``."""
    if bool(config.images) == bool(config.index):
        raise SegaeError(f"images must be given, or index in their place, got {config.images} and {config.index}")
    with open_results(config, "search", "hits.csv", "sheet.png") as (out, how):
        make: Any = ImageIndex.load if config.index else ImageIndex.build
        rows = make(config.index or config.images, config.encoder, **how).search(config.query, config.k)
        write_result(out / "hits.csv", rows)
        shown = rows[rows["rank"] <= _WIDE].pivot(index="query", columns="rank", values="image")[:_WIDE].reset_index()
        contact_sheet({str(title): read_pictures(names) for title, names in shown.items()}, out / "sheet.png")
        logger.info("the nearest images are in %s", out)
        return rows
