"""Write the notebooks of recipes in jupytext's percent format: python -m tools.notebooks.

As `jupytext --to ipynb` does, without outputs; the same cells give the same bytes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[1] / "recipes"


def cells(script: str) -> list[dict[str, Any]]:
    """Split a script into the cells of a notebook; markdown cells lose the number signs."""
    found = []
    for place, part in enumerate(re.split(r"^# %%", script, flags=re.MULTILINE)[1:]):
        head, _, body = part.partition("\n")
        tags = re.search(r"tags=(\[.*?\])", head)
        cell = {"cell_type": "code", "id": f"cell-{place}", "metadata": {"tags": json.loads(tags[1])} if tags else {}}
        if "[markdown]" in head:
            cell["cell_type"], body = "markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        else:
            cell |= {"execution_count": None, "outputs": []}
        found.append({**cell, "source": body.strip("\n").splitlines(keepends=True)})
    return found


def notebook(script: str) -> str:
    """Return the notebook of a script as JSON text."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells(script), "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for path in sorted(RECIPES.glob("*.py")):
        if "\n# %%" in (script := "\n" + path.read_text()):
            path.with_suffix(".ipynb").write_text(notebook(script))
