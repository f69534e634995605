"""Story 4: with my images and this many labels, which start is better, and by how much?

    python recipes/4_benchmark.py [DATA]

The same as `segae bench`, in the open: a grid of arms, label budgets and seeds, rows with their provenance, and a
page. Without DATA it draws pets and takes minutes on two CPU cores. Interrupt it as you like; it goes on.
"""

import sys
from pathlib import Path

from segae.cli import main

if __name__ != "__main__":
    raise ImportError("recipes are run or copied, not imported; use the command segae bench instead")

out = Path("runs/benchmark-recipe")
where = ["--data", sys.argv[1]] if len(sys.argv) > 1 else ["--preset", "quick"]

# 1. Where the encoder may start. An arm with @frozen behind it keeps its features as they are: what is learnt about
#    masks is then learnt by the decoder alone.
arms = ["random", "imagenet", "ae:layers+decoder", "imagenet@frozen"]

# 2. How many of the training masks each arm may see. The images of a smaller budget are part of those of a larger one,
#    all arms get the same ones, and every budget gets the same number of steps.
budgets = ["25%", "100%"]

# 3. Two seeds are enough to see it work; three or more for numbers that others should believe.
seeds = ["0", "1"]

# 4. Run what has no row yet, then rows, tables and the page. The test images are read once by each run, at its end.
main(["bench", *where, "--out", str(out), "--arms", *arms, "--budgets", *budgets, "--seeds", *seeds])

# 5. The page again, from the rows and the run folders, with its figures as SVG and PDF.
pictures = ["--data", sys.argv[1] if len(sys.argv) > 1 else str(out / "drawn-pets"), "--runs", str(out)]
page = ["--out", str(out / "again.html"), "--figures", str(out / "figures")]
main(["report", "--rows", str(out / "bench.csv"), *pictures, *page])
