"""The command line: `segae COMMAND` with flags made from segae.config; code is imported when a command runs."""

import ast
import dataclasses
import difflib
import functools
import importlib.metadata
import inspect
import io
import itertools
import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
import yaml

from segae import config
from segae._io import print_messages
from segae._settings import Config, Size, is_required, make_config, nearest, nest
from segae.errors import OutOfMemoryError, SegaeError


class _Command(NamedTuple):
    config: type[Config]
    function: str  # of segae, called with the settings by name
    example: str
    settings: Mapping[str, Any] = {}

    @property
    def first(self) -> str:
        """The positional setting."""
        return next(iter(self.config.MAIN or self.config.TYPES))


_MODEL = "--model runs/finetune/model.safetensors"
_AUTOENCODER = "--model runs/pretrain/autoencoder.safetensors"
_DETECTOR = "--detector runs/anomaly-fit/detector.safetensors"
_QUICK = {"preset": "quick", "out": "runs/quickstart", "experiment": "quickstart"}
COMMANDS = {
    "pretrain": _Command(config.PretrainConfig, "pretrain", "photos --method spark"),
    "finetune": _Command(config.FinetuneConfig, "finetune", "pets --weights runs/pretrain/encoder.safetensors"),
    "evaluate": _Command(config.EvaluateConfig, "evaluate", f"pets {_MODEL}"),
    "predict": _Command(config.PredictConfig, "predict", f"cat.jpg {_MODEL}"),
    "serve": _Command(config.ServeConfig, "serve", "runs/finetune/model.safetensors"),
    "features": _Command(config.FeaturesConfig, "extract_features", "photos --encoder pets_pseudo_masks"),
    "suggest": _Command(config.SuggestConfig, "suggest", "photos --labeled pets --count 50"),
    "anomaly fit": _Command(config.AnomalyFitConfig, "fit_anomaly_detector", "good"),
    "anomaly score": _Command(config.AnomalyScoreConfig, "score_anomalies", f"new {_DETECTOR}"),
    "search": _Command(config.SearchConfig, "search_images", "cat.jpg --images photos"),
    "cluster": _Command(config.ClusterConfig, "cluster_images", "photos --k 10"),
    "map": _Command(config.MapConfig, "map_images", "photos --how pca"),
    "compress": _Command(config.CompressConfig, "compress_images", f"photos {_AUTOENCODER}"),
    "decompress": _Command(config.DecompressConfig, "decompress_files", f"runs/compress {_AUTOENCODER}"),
    "generate": _Command(config.GenerateConfig, "generate", "runs/pretrain/autoencoder.safetensors"),
    "describe": _Command(config.DescribeConfig, "describe", "runs/pretrain/autoencoder.safetensors"),
    "export": _Command(config.ExportConfig, "export", "runs/finetune/model.safetensors --to onnx"),
    "bench": _Command(config.BenchConfig, "benchmark", "pets --labels 0.1 1.0 --seeds 3"),
    "report": _Command(config.ReportConfig, "report", "runs/bench/bench.csv"),
    "data": _Command(config.DownloadConfig, "download", "pets"),
    "data check": _Command(config.CheckDataConfig, "check_data", "photos"),
    "doctor": _Command(config.DoctorConfig, "doctor", ""),
    "quickstart": _Command(config.BenchConfig, "benchmark", "", _QUICK),
}
_PLACES = {"data": "FOLDER", "files": "FILE", "model": "MODEL", "rows": "CSV", "name": "NAME"}
_PLACES |= {"images": "IMAGE", "query": "IMAGE"}
_IN_PARALLEL = ("pretrain", "finetune")
_FLAT = ("", "more", "trainer")  # sections whose settings are flags without a prefix
_ABOUT = {"quickstart": "See everything in minutes: a small benchmark on drawn pets, or on a data set of your own."}
_USAGE = "usage: segae COMMAND [SETTINGS]\n\nPretrain encoders on unlabeled images, fine-tune segmenters, compare.\n"
_MORE = """
segae COMMAND --help shows the settings; --config FILE takes them from a JSON or YAML file, such as config.json of a run
folder, and flags given beside it win. -v shows more, --version the version.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    The code is 0, 1 (a fault of segae, or data that were checked and that a training would refuse), 2 (what a user can
    mend), 130 (Ctrl-C), 141 (closed pipe) or 143 (SIGTERM).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may be no text
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    words = [word for word in given if word not in ("-v", "--verbose")]
    verbose = len(words) < len(given)
    words[:2] = [" ".join(words[:2])] if " ".join(words[:2]) in COMMANDS else words[:2]
    name = words.pop(0) if words else "--help"
    try:
        with _quiet(verbose=verbose), _terminate_like_interrupt():
            _run(name, words)
    except SegaeError as error:
        _fail(_explain(error, name, words), 2)
    except BrokenPipeError:  # the reader has seen enough: segae --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes
        sys.exit(141)
    except KeyboardInterrupt as stop:
        how = "with --resume (without --overwrite) to continue after the last finished epoch"
        repeat = f"Repeat the command{f' {how}' if name in _IN_PARALLEL else '; what is finished is kept'}."
        _fail(f"interrupted. {repeat}", 143 if isinstance(stop, _Terminated) else 130)
    except Exception as error:
        memory = sys.modules.get("segae.training.memory")
        if memory is not None and memory.is_out_of_memory(error):
            _fail(_explain(OutOfMemoryError(f"the memory is full: {str(error).splitlines()[0]}"), name, words), 2)
        with tempfile.NamedTemporaryFile("w", prefix="segae-", suffix=".log", delete=False) as file:
            file.write(traceback.format_exc())
        what = f"unexpected {type(error).__name__}: {error}"
        _fail(f"{what}. This is a fault of segae; please report it with the file {file.name}.", 1)


def _fail(message: str, code: int) -> None:
    world = os.environ.get("WORLD_SIZE", "1")
    process = "" if world == "1" else f" (process {os.environ.get('RANK', '?')} of {world})"
    print(f"segae{process}: {message}", file=sys.stderr)
    sys.exit(code)


def _run(name: str, words: list[str]) -> None:
    if name in ("-h", "--help", "help"):
        print(_USAGE)
        for one, about in COMMANDS.items():
            print(f"  {one:<13} {_ABOUT.get(one) or (about.config.__doc__ or '').splitlines()[0]}")
        print("", *(f"  segae {one} {COMMANDS[one].example}" for one in list(COMMANDS)[:4]), _MORE, sep="\n", end="")
    elif name == "--version":
        print(f"segae {importlib.metadata.version('segae')}")
    elif name not in COMMANDS:
        raise SegaeError(f"command must be one of {', '.join(COMMANDS)}, got {name}{nearest(name, COMMANDS)}")
    elif ("--loss", "help") in itertools.pairwise(words) or "--loss=help" in words:
        for loss, about in importlib.import_module("segae.training.losses").LOSSES.items():
            print(f"{loss}: {about}")
    elif ("--method", "help") in itertools.pairwise(words) or "--method=help" in words:
        for row in importlib.import_module("segae.methods").method_table():
            print(f"{row.name} ({row.family.replace('_', ' ')}): {row.summary}")
            for setting, default in row.settings.items():
                print(f"    --method-args.{setting.replace('_', '-')} (default: {default})")
    else:
        settings = _parse(name, words)
        make_config(COMMANDS[name].config, **settings)  # wrong numbers and paths are refused before torch is imported
        if os.environ.get("WORLD_SIZE", "1") != "1" and name not in _IN_PARALLEL:
            raise SegaeError(f"segae {name} must run in one process, got WORLD_SIZE {os.environ['WORLD_SIZE']}")
        verb = getattr(importlib.import_module("segae"), COMMANDS[name].function)
        if "device" in (where := settings.get("trainer", settings)):
            device = importlib.import_module("segae.training.device")
            device.prepare_device(device.choose_device(where["device"]))
        if getattr(verb(**settings), "accepted", True) is False:
            sys.exit(1)


# ---- flags and files -> settings ------------------------------------------------------------------------------------


def _parse(name: str, words: list[str]) -> dict[str, Any]:
    """The settings of a command: its own, those of --config FILE, then those of the flags."""
    words = [part for word in words for part in (word.split("=", 1) if re.match(r"--[\w.-]+=", word) else [word])]
    settings: dict[str, Any] = dict(COMMANDS[name].settings)
    method_args: dict[str, Any] = {}
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if word not in ("--config", "--preset") and not re.match(r"--method[-_]args\.", word):
            rest.append(word.replace("--trainer.", "--"))
        elif (value := next(left, None)) is None or value.startswith("--"):
            raise SegaeError(f"{word} must have a value after it")
        elif word == "--config":
            settings |= _read_settings(Path(value), name)
        elif word == "--preset":
            settings["preset"] = value
        else:
            _set_below(method_args, word.replace("_", "-").partition("args.")[2], value)
    if method_args:
        settings["method_args"] = {**settings.get("method_args", {}), **method_args}
    return _flags_to_settings(name, ["--help"] if {"--help", "-h"} & {*rest} else rest, settings)


def _set_below(settings: dict[str, Any], path: str, text: str) -> None:
    """Set a nested value by its dotted path; numbers, true, false and lists as in JSON, the rest is text."""
    *above, last = path.replace("-", "_").split(".")
    for part in above:
        settings = settings.setdefault(part, {})
    try:
        settings[last] = json.loads(text)
    except ValueError:
        settings[last] = text


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number; YAML 1.1 asks for 1.0e-3."""


_FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def _read_settings(path: Path, name: str) -> dict[str, Any]:
    """Settings from a JSON or YAML file, or from the config.json of a run folder."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SegaeError(f"config must be a JSON or YAML file, got {path}: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SegaeError(f"config must hold settings by name, got {type(content).__name__} in {path}")
    task, _, kind = str(content.pop("task", name)).partition(" ")  # such as "finetune classify"
    content |= {"task": kind} if kind else {}
    if task != name:
        raise SegaeError(f"config must be of segae {name}, got that of segae {task} in {path}")
    content.pop("run", None)
    try:
        nest(COMMANDS[name].config, content)
    except SegaeError as error:
        raise SegaeError(f"{path}: {error}") from error
    return content


def _flags_to_settings(name: str, words: list[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Parse flags with tyro; what they leave out is as in ``settings``, else the default."""
    command, kind = COMMANDS[name], COMMANDS[name].config
    known = {one.name: one for one in dataclasses.fields(kind)}
    absent = {one for one in known if is_required(known[one]) or (known[one].default is None and one == command.first)}
    absent -= set(settings)
    start = kind(**nest(kind, kind.expand({**dict.fromkeys(absent, "."), **settings})))
    plain = [one for one in known if not isinstance(getattr(start, one), Config | Mapping)]
    sections: dict[str, tuple[Config, Sequence[str]]] = {
        "": (start, kind.MAIN or plain),
        "more": (start, [one for one in plain if kind.MAIN and one not in kind.MAIN]),
        **{one: (below, list(vars(below))) for one in known if isinstance(below := getattr(start, one), Config)},
    }
    flags: dict[str, list[str]] = {}
    for title, (_, names) in sections.items():
        for one in (name.replace("_", "-") for name in names):
            flags.setdefault(one, []).append(f"--{one}" if title in _FLAT else f"--{title}.{one}")
    _require_spelling(name, words, flags)
    members: list[Any] = []
    for title, (below, names) in sections.items():
        made: list[Any] = []
        for one in names:
            place = _PLACES.get(one, "") if not title and one == command.first else ""
            place = f"[{place}]" if place and known[one].default is None else place
            value = getattr(below, one) if title or one not in absent else known[one].default
            value = "x".join(map(str, value)) if isinstance(value, tuple) and _is_size(below, one) else value
            value = str(value) if isinstance(value, int) and _is_size(below, one) else value
            flag = (one, _flag(below, one, place, flat=title in _FLAT))
            made.append(flag if value is dataclasses.MISSING else (*flag, value))
        struct: Any = dataclasses.make_dataclass(title or "Settings", made, frozen=True)
        members += [(title, struct, struct())] if title else made
    about = f"{_ABOUT.get(name) or inspect.getdoc(kind)}\n\nExample: segae {name} {command.example}"
    whole = dataclasses.make_dataclass("Settings", members, frozen=True)
    parsed = vars(tyro.cli(whole, prog=f"segae {name}", description=about, args=words))
    nested = {one: vars(value) if one in sections else value for one, value in parsed.items()}
    return {**nested.pop("more"), **nested, **{one: settings[one] for one in ("method_args",) if one in settings}}


def _require_spelling(command: str, words: Sequence[str], flags: Mapping[str, Sequence[str]]) -> None:
    """Refuse a flag that lacks its section, perhaps misspelled, such as --image-sze for --pretrain.image-size.

    tyro, which finds what the others mean, compares with the whole ``--pretrain.image-size``.
    """
    for word in (word.partition("=")[0] for word in words if word.startswith("--")):
        given = word[2:].replace("_", "-")
        if "." in given:  # it names a section
            continue
        meant = next(iter(difflib.get_close_matches(given, flags, n=1, cutoff=0.8)), given)
        if meant != given and all("." in flag for flag in flags[meant]):
            raise SegaeError(f"{word} is not a flag of segae {command}; did you mean {' or '.join(flags[meant])}?")


def _is_size(start: Config, name: str) -> bool:
    return Size in start.TYPES[name].kinds


def _flag(start: Config, name: str, place: str, *, flat: bool) -> Any:
    """The annotation from which tyro makes a flag: type, help text, placeholder."""
    accepted = start.TYPES[name]
    numbers = {frozenset([int]): int, frozenset([float]): float, frozenset([int, float]): int | float}
    bases = {**numbers, frozenset([bool]): bool}
    base: Any = Literal[accepted.choices] if accepted.choices else bases.get(accepted.kinds, str)
    shown = {int: "INT", float: "FLOAT", int | float: "NUMBER"}.get(base, "TEXT")
    shown = "SIZE" if _is_size(start, name) else shown
    shown = place or ("PATH" if os.PathLike in accepted.kinds else shown)
    shown = f"{shown} ..." if accepted.many else shown
    about = tyro.conf.arg(
        help=next(_docs()[key] for one in type(start).__mro__ if (key := (one.__name__, name)) in _docs()),
        metavar=None if accepted.choices or (base is bool and not place) else shown,
        prefix_name=False if flat else None,
        help_behavior_hint="" if place or getattr(start, name) in (None, ()) else None,
    )
    hint = tuple[base, ...] if accepted.many else base
    return Annotated[(hint | None if accepted.optional else hint, about, *([tyro.conf.Positional] if place else []))]


@functools.cache
def _docs() -> dict[tuple[str, str], str]:
    """The docstring of each field by class and field, from the source of segae.config."""
    return {
        (node.name, field.target.id): " ".join(str(text.value.value).split())
        for node in ast.parse(inspect.getsource(config)).body
        if isinstance(node, ast.ClassDef)
        for field, text in itertools.pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


# ---- errors -> what to type next -------------------------------------------------------------------------------------


def _explain(error: SegaeError, name: str, words: Sequence[str]) -> str:
    """The message of an error with the flag of the argument that it names, and what to type next."""
    text = str(error).rstrip(".?")
    if text.startswith("Caught "):  # from a loader's worker, behind its traceback
        text = text.rpartition("Error: ")[2].strip()
    if name not in COMMANDS:
        return f"{text}."
    flags = _flag_names(COMMANDS[name])
    text = re.sub(r"\b([a-z_]+)=True\b", lambda found: flags.get(found[1], found[0]), text)
    found = re.match(r"(?:\S+: )?(\w+) (?:must|is not)\b", text)
    argument = found[1] if found else ""
    flag = flags.get(argument, f"--method-args.{argument.replace('_', '-')}")
    if isinstance(error, OutOfMemoryError):
        text += f". The flags are {', '.join(flags[one] for one in ('batch_size', 'image_size') if one in flags)}"
    elif argument in flags or any(word.partition("=")[0].replace("_", "-") == flag for word in words):
        text += f". Change {flag}; segae {name} --help describes it"
    return f"{text}."


def _flag_names(command: _Command) -> dict[str, str]:
    """The flag of each argument that a message may name."""
    names = {"config": "--config"}
    for one in dataclasses.fields(command.config):
        below: Any = one.default_factory
        for inner in below().TYPES if below not in (dataclasses.MISSING, dict) else ():
            names.setdefault(inner, f"--{'' if one.name == 'trainer' else f'{one.name}.'}{inner.replace('_', '-')}")
    names |= {one: f"--{one.replace('_', '-')}" for one in command.config.TYPES}
    return names | {one: place for one, place in _PLACES.items() if one == command.first}


# ---- the process -----------------------------------------------------------------------------------------------------


class _Terminated(KeyboardInterrupt):
    """SIGTERM: a cluster whose time is up, a container that is stopped."""


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Within, handle SIGTERM as Ctrl-C, so that what is finished is kept and the message says how to continue.

    Not in one of several processes: it may wait in a library for one that is gone, where Python's handler never runs.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours or os.environ.get("WORLD_SIZE", "1") != "1":
        yield
        return
    here = os.getpid()

    def end(number: int, frame: Any) -> None:  # noqa: ARG001
        if os.getpid() == here:
            raise _Terminated
        signal.signal(number, signal.SIG_DFL)  # a forked child has nothing to keep
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _quiet(*, verbose: bool) -> Iterator[None]:
    """Within, print the messages of segae, and show those of other libraries only if verbose."""
    before = logging.lastResort
    with warnings.catch_warnings(), print_messages(logging.DEBUG if verbose else logging.INFO):
        if not verbose:
            logging.lastResort = logging.NullHandler()  # None would say that there is none
            os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of processes that this one starts
            warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.lastResort = before


if __name__ == "__main__":  # torchrun -m segae.cli
    main()
