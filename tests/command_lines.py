"""Read a printed command as segae's own command line does, up to its checked settings; nothing runs."""

import shlex
from typing import Any

import pytest

from segae import cli, config
from segae._settings import Config, make_config
from segae.bench.grid import parse_variant, read_schedule
from segae.bench.tuning import read_candidates
from segae.methods import create_method


def parse_command(line: str) -> Config | None:
    """The settings of a command, whose files and folders are not looked for; None of one that only prints.

    A wrong command, flag or value fails the test.
    """
    found: list[Config] = []

    def parse_only(kind: Any, **settings: Any) -> None:
        given = make_config(kind, **settings)
        if isinstance(given, config.BenchConfig):
            _ = [parse_variant(text) for text in given.weights], [read_schedule(text) for text in given.schedules]
            read_candidates(given.tune)
        elif isinstance(given, config.PretrainConfig) and given.method != "NAME":
            create_method(given.method, **given.method_args)
        found.append(given)
        raise SystemExit(0)

    program, *arguments = shlex.split(line, comments=True)
    assert program == "segae", line
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, "check_inputs", lambda self: None)
        patch.setattr(cli, "make_config", parse_only)
        patch.delenv("WORLD_SIZE", raising=False)
        try:
            cli.main(arguments)
        except SystemExit as stop:
            code = stop.code
    assert not code, f"{line}: the message is on stderr"
    return found[0] if found else None
