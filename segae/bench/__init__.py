"""Benchmarks of start weights: a grid of runs, result rows, statistics, and a report.

The runner is loaded when it is first used: reading rows and making a report need no torch.
"""

import lazy_loader

from segae.bench.comparison import Section, Variant, compare_rows
from segae.bench.report import report, verdict, write_report
from segae.bench.results import COLUMNS, details_path, read_details, read_rows, run_id

__getattr__, _, _ = lazy_loader.attach(__name__, submod_attrs={"runner": ["BenchResult", "benchmark"]})

__all__ = [
    "COLUMNS", "BenchResult", "Section", "Variant", "benchmark", "compare_rows", "details_path", "read_details",
    "read_rows", "report", "run_id", "verdict", "write_report",
]  # fmt: skip
