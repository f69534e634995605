"""The command line: one subcommand for each task, its flags made from the task's configuration."""

from __future__ import annotations

import difflib
import io
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro

from segae.bench import benchmark, report
from segae.errors import SegaeError
from segae.tasks import compare, data, evaluate, plan, predict, pretrain, quickstart, segment

_TASKS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "data-pets": (data.DataPets, data.run_pets),
    "data-drawn": (data.DataDrawn, data.run_drawn),
    "pretrain": (pretrain.Pretrain, pretrain.run),
    "segment": (segment.Segment, segment.run),
    "evaluate": (evaluate.Evaluate, evaluate.run),
    "predict": (predict.Predict, predict.run),
    "compare": (compare.Compare, compare.run),
    "bench": (benchmark.Bench, benchmark.run),
    "report": (report.Report, report.run),
    "plan": (plan.Plan, plan.run),
    "quickstart": (quickstart.Quickstart, quickstart.run),
}

_DataCommand = Annotated[
    Annotated[data.DataPets, tyro.conf.subcommand("pets")] | Annotated[data.DataDrawn, tyro.conf.subcommand("drawn")],
    tyro.conf.subcommand("data", description="Get a data set: the real Oxford-IIIT Pets, or drawn ones."),
]
_Command = (
    _DataCommand
    | Annotated[pretrain.Pretrain, tyro.conf.subcommand("pretrain")]
    | Annotated[segment.Segment, tyro.conf.subcommand("segment")]
    | Annotated[evaluate.Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[predict.Predict, tyro.conf.subcommand("predict")]
    | Annotated[compare.Compare, tyro.conf.subcommand("compare")]
    | Annotated[benchmark.Bench, tyro.conf.subcommand("bench")]
    | Annotated[report.Report, tyro.conf.subcommand("report")]
    | Annotated[plan.Plan, tyro.conf.subcommand("plan")]
    | Annotated[quickstart.Quickstart, tyro.conf.subcommand("quickstart")]
)
_ABOUT = (
    "Pretrain a convolutional autoencoder on unlabelled images, segment with its encoder, measure the gain. "
    "Every command but data takes --config FILE: the config.json of an earlier run, as defaults."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Leaves the process with 0, or 2 (a mistake the user can mend), 1 (ours), 130 (interrupted) or 143 (terminated).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may be no text
    _show_log()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        config = tyro.cli(_Command, prog="segae", description=_ABOUT, args=_with_config_file(given))
        with warnings.catch_warnings():
            # from fastai's import, once in every command that trains, and nothing a user could mend
            warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
            for kind, run in _TASKS.values():
                if isinstance(config, kind):
                    _require_place(kind)
                    with _terminated_like_interrupted():
                        run(config)
    except SegaeError as error:
        print(f"segae{_process()}: {_words(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader has seen enough: segae --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes
        sys.exit(141)
    except KeyboardInterrupt as stop:
        print(f"\nsegae: interrupted. {_how_to_go_on(given)}", file=sys.stderr)
        sys.exit(143 if isinstance(stop, _Terminated) else 130)
    except Exception as error:
        if reason := _full_memory(error):
            print(f"segae{_process()}: the memory is full: {reason}", file=sys.stderr)
            sys.exit(2)
        print(f"segae{_process()}: unexpected {type(error).__name__}: {error}. {_keep_traceback()}", file=sys.stderr)
        sys.exit(1)


class _Terminated(KeyboardInterrupt):
    """Somebody asked the process to end: a cluster whose time is up, a container that is stopped."""


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C, so that what was finished is put together, and say how to go on.

    Not one of several processes: it may wait in a library for one that is gone, where Python's handler never runs.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours or _process():
        yield
        return

    here = os.getpid()

    def end(number: int, frame: Any) -> None:  # noqa: ARG001
        if os.getpid() == here:
            raise _Terminated
        signal.signal(number, signal.SIG_DFL)  # a child made by forking has nothing to put together
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _full_memory(error: Exception) -> str | None:
    """What filled the memory, if that is what happened; a place that knows what to type has said so itself."""
    if "torch" not in sys.modules:
        return None
    from segae.training.memory import full_memory

    return full_memory(error)


def _require_place(kind: type) -> None:
    """Refuse several processes for a command that would do its work once in each."""
    if _process() and kind not in (pretrain.Pretrain, segment.Segment):
        from segae.training.distributed import require_single_process

        require_single_process(next(name for name, (known, _) in _TASKS.items() if known is kind))


def _process() -> str:
    """Which of several processes this is, for messages; nothing where it is alone."""
    world = os.environ.get("WORLD_SIZE", "1")
    return "" if world == "1" else f" (process {os.environ.get('RANK', '?')} of {world})"


def _how_to_go_on(given: list[str]) -> str:
    if given[:1] in (["pretrain"], ["segment"]):
        instead = " in place of --overwrite" if "--overwrite" in given else ""
        return f"Repeat the command with --resume{instead} to go on after the last finished epoch."
    if given[:1] in (["evaluate"], ["predict"], ["report"], ["plan"]):
        return "Repeat the command; it begins again."
    return "Repeat the command; what is finished is not done again."


class _Print(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"segae: {record.getMessage()}")


def _show_log() -> None:
    """Print what the library has to say, such as how many listed files are missing."""
    logger = logging.getLogger("segae")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_Print())


def _keep_traceback() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="segae-", suffix=".log", delete=False) as file:
        file.write(traceback.format_exc())
    return f"This is a fault of segae, not yours; please report it with the file {file.name}."


def _words(error: SegaeError) -> str:
    """The message alone: torch puts the traceback of a loader's worker in front of it."""
    text = str(error)
    return text.rpartition("SegaeError: ")[2].strip() if text.startswith("Caught ") else text


def _with_config_file(arguments: list[str]) -> list[str]:
    """Replace ``--config FILE`` by the flags that FILE stands for; flags given beside it win.

    Raises:
        SegaeError: the file cannot be read, is of another command, or holds a key the command does not know.
    """
    arguments = [
        part for word in arguments for part in (word.split("=", 1) if word.startswith("--config=") else [word])
    ]
    if "--config" not in arguments:
        return arguments
    position = arguments.index("--config")
    if position == 0 or position + 1 == len(arguments):
        raise SegaeError("--config needs a command before it and a file after it: segae segment --config FILE.")
    command, path = arguments[0], Path(arguments[position + 1])
    rest = arguments[1:position] + arguments[position + 2 :]
    if command not in _TASKS:
        able = [name for name in _TASKS if not name.startswith("data-")]
        raise SegaeError(f"{command!r} takes no --config; the commands that do are {', '.join(able)}.")
    kind = _TASKS[command][0]
    content = _read_config(path, kind)
    flags_given = [word.partition("=")[0] for word in rest if word.startswith("--")]
    given = {flag.removeprefix("--").removeprefix("no-").replace("-", "_") for flag in flags_given}
    flags = [word for key, value in content.items() if key not in given for word in _as_flag(kind, key, value)]
    return [command, *flags, *rest]


def _read_config(path: Path, kind: type) -> dict[str, Any]:
    from segae.training.run import TYPED_IN

    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SegaeError(f"{path} is not a configuration: {error}. Give the config.json of a run folder.") from error
    if not isinstance(content, dict):
        raise SegaeError(f"{path} holds a {type(content).__name__}, wanted an object of settings.")
    task = content.pop("task", kind.__name__)
    content.pop(TYPED_IN, None)  # relative paths begin where this command is typed, as those of flags do
    if task != kind.__name__:
        raise SegaeError(f"{path} is the configuration of {task}, not of {kind.__name__}; use it with that command.")
    known = list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise SegaeError(f"{path} has the unknown key {key!r}. {hint}The keys are {', '.join(known)}.")
    return content


def _as_flag(kind: type, key: str, value: Any) -> list[str]:
    flag = f"--{key.replace('_', '-')}"
    may_be_none = kind.__dataclass_fields__[key].default is None  # type: ignore[attr-defined]
    if isinstance(value, bool) and not may_be_none:  # else tyro wants --flag True
        return [flag if value else f"--no-{key.replace('_', '-')}"]
    if isinstance(value, list):
        return [flag, *map(str, value)] if value else []
    return [flag, str(value)]


if __name__ == "__main__":  # torchrun -m segae.cli
    main()
