"""Rows of results/applications.csv: one per measured application; a repeated measurement replaces its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from segae.training import provenance

FILE = Path(__file__).parent.parent / "results" / "applications.csv"
KEY = ["study", "dataset", "model", "metric"]
COLUMNS = [*KEY[:3], "baseline", "metric", "value", "low", "high", "n", "seeds", "seconds", "commit", "date", "note"]


def write_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows, in place of older ones of the same study, data set, model and metric; ``value`` is needed too."""
    about = {name: text for name, text in provenance(torch.device("cpu")).items() if name in COLUMNS}
    new = pd.DataFrame([{"baseline": False, **about, **row} for row in rows])
    for name in ("value", "low", "high", "seconds"):
        if name in new:
            new[name] = [None if pd.isna(number) else f"{number:.6g}" for number in new[name]]
    if FILE.exists():
        old = pd.read_csv(FILE, keep_default_na=False, dtype=str)
        kept = old[~old[KEY].apply(tuple, axis=1).isin(set(new[KEY].apply(tuple, axis=1)))]
        new = pd.concat([kept, new])
    new.reindex(columns=COLUMNS).to_csv(FILE, index=False, lineterminator="\n")
