"""What a report is about: sections of one data set, encoder, decoder and schedule, and the arms compared in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from segae.bench.tables import seeds_of_one_thing
from segae.errors import SegaeError
from segae.tasks.arms import LONGER
from segae.tasks.page import name_of

Row = Mapping[str, str]

REFERENCES = ("random", "imagenet")
_PLACE = ("dataset", "split", "encoder", "image_size")
_PROTOCOL = ("batch_size", "lr", "lr_ratio", "bn_mode", "warmup", "recalibrate", "fitted_head")
_PRETRAINING = ("dataset", "epochs", "image_size", "batch_size", "lr", "decoder", "target", "settings")
_ORDER = ("random", "imagenet", "ae:", "imagenet+ae:")
_VARIANTS = ("", "frozen", "linear", "longer")


@dataclass(frozen=True)
class Arm:
    """The seeds of one arm at one label budget.

    Attributes:
        name: as a person says it, the same at every budget.
        init: as the rows name it.
        transfer: `encoder` or `encoder+decoder`.
        variant: empty, `frozen` (encoder at rest in all epochs), `linear` (a linear head on a resting encoder) or
            `longer` (four times the full epochs).
        labels: labelled training images.
        rows: one for each seed, in the order of the seeds.
    """

    name: str
    init: str
    transfer: str
    variant: str
    labels: int
    rows: tuple[Row, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(int(row["seed"]) for row in self.rows)

    @property
    def is_reference(self) -> bool:
        """Whether other arms are compared with this one."""
        return self.init in REFERENCES and not self.variant

    def mean(self, column: str) -> float:
        """Mean of a column over the seeds; NaN where no row has it."""
        values = [float(row[column]) for row in self.rows if row.get(column)]
        return sum(values) / len(values) if values else float("nan")


@dataclass(frozen=True)
class Section:
    """Arms that can be compared: one data set, split, encoder, decoder, image size and schedule."""

    dataset: str
    split: str
    encoder: str
    decoder: str
    image_size: int
    freeze_epochs: int
    epochs: int
    arms: tuple[Arm, ...]

    @property
    def budgets(self) -> tuple[int, ...]:
        """The label budgets, ascending."""
        return tuple(sorted({arm.labels for arm in self.arms}))

    @property
    def schedule(self) -> str:
        """Frozen and full epochs, such as `1 + 3`."""
        return f"{self.freeze_epochs} + {self.epochs}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the rows' columns."""
        names = (name for arm in self.arms for row in arm.rows for name in row if name.startswith("iou_") and row[name])
        return tuple(dict.fromkeys(name.removeprefix("iou_") for name in names))

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows of the section."""
        return tuple(row for arm in self.arms for row in arm.rows)

    def at(self, labels: int) -> tuple[Arm, ...]:
        """The arms at one label budget."""
        return tuple(arm for arm in self.arms if arm.labels == labels)


def sections_of(rows: Sequence[Row]) -> tuple[Section, ...]:
    """Sort the rows of one experiment into sections and arms; the sections of one data set stand together.

    A frozen encoder, a linear head on one, and a schedule four times as long that only a single arm has, are
    variants: they stand beside the arms whose schedule they vary.

    Raises:
        SegaeError: two rows of one arm share a seed, or there is more than one arm of random or of ImageNet
            weights to compare with.
    """
    resampled = {row["dataset"] for row in rows if row.get("epoch_images")}
    places: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        # with all labels an epoch is the labelled images once, which an empty cell says
        epoch = row.get("epoch_images") or row["labels"] if row["dataset"] in resampled else ""
        place = (*(row[name] for name in _PLACE), epoch, row.get("loss") or "cross_entropy")
        places.setdefault(place, []).append(row)
    found = []
    for members in places.values():
        try:
            groups = seeds_of_one_thing(members)
        except ValueError as error:
            raise SegaeError(
                f"{error}. Wanted one row for each seed: leave the wrong row out of the file, or choose one study "
                f"with --experiment."
            ) from error
        found += _sections_of_one_place(groups)
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    return tuple(sorted(found, key=lambda section: datasets.index(section.dataset)))


def _sections_of_one_place(groups: Sequence[Sequence[Row]]) -> list[Section]:
    kinds: dict[tuple[str, int, int], set[tuple[str, str]]] = {}
    for group in groups:
        kinds.setdefault(_kind(group[0]), set()).add((group[0]["init"], group[0]["transfer"]))
    varied = {kind: [base for base in kinds if _variant(kind, base)] for kind in kinds}
    own = [kind for kind in kinds if not varied[kind] or (_longer(kind, kinds) and len(kinds[kind]) > 1)]
    members: dict[tuple[str, int, int], list[tuple[str, Sequence[Row]]]] = {kind: [] for kind in own}
    for group in groups:
        kind = _kind(group[0])
        if kind in own:
            members[kind].append(("", group))
        # the scratch arm with a longer schedule is a baseline, even where all arms have that schedule too
        if kind not in own or group[0]["init"] == "random":
            for base in varied[kind]:
                if base in own:
                    members[base].append((_variant(kind, base), group))
    return [_section(kind, found) for kind, found in members.items()]


def _kind(row: Row) -> tuple[str, int, int]:
    return row["decoder"], int(row["freeze_epochs"]), int(row["epochs"])


def _variant(kind: tuple[str, int, int], base: tuple[str, int, int]) -> str:
    """What a decoder and schedule is of another one; empty where it is no variant of it."""
    decoder, frozen, full = kind
    if base[2] == 0 or kind == base:
        return ""
    if full == 0 and frozen == base[1] + base[2]:
        return "linear" if decoder == "linear" != base[0] else "frozen" if decoder == base[0] else ""
    return "longer" if kind == (base[0], base[1], LONGER * base[2]) else ""


def _longer(kind: tuple[str, int, int], kinds: Iterable[tuple[str, int, int]]) -> bool:
    return any(_variant(kind, base) == "longer" for base in kinds)


def _section(kind: tuple[str, int, int], members: Sequence[tuple[str, Sequence[Row]]]) -> Section:
    first = members[0][1][0]
    suffixes = _differences(members)
    arms = [
        Arm(
            name=_name(group[0], variant) + suffix,
            init=group[0]["init"],
            transfer=group[0]["transfer"],
            variant=variant,
            labels=int(group[0]["labels"]),
            rows=tuple(sorted(group, key=lambda row: int(row["seed"]))),
        )
        for (variant, group), suffix in zip(members, suffixes, strict=True)
    ]
    for arm in arms:
        if (
            arm.is_reference
            and sum((one.init, one.labels) == (arm.init, arm.labels) for one in arms if not one.variant) > 1
        ):
            raise SegaeError(
                f"there is more than one arm of {arm.init} weights with {arm.labels} labels, with other settings "
                f"({'; '.join(one.name for one in arms if one.init == arm.init)}); a report wants one to compare "
                f"with. Choose one study with --experiment, or leave one of them out of the file."
            )
    arms.sort(key=lambda arm: (arm.labels, _VARIANTS.index(arm.variant), _rank(arm.init), arm.name))
    place = {name: first[name] for name in ("dataset", "split", "encoder")}
    section = Section(
        **place, decoder=kind[0], image_size=int(first["image_size"]), freeze_epochs=kind[1], epochs=kind[2], arms=()
    )
    return replace(section, arms=tuple(arms))


def _rank(init: str) -> int:
    return _ORDER.index(init.rpartition("ae:")[0] + "ae:" if "ae:" in init else init)


def _name(row: Row, variant: str) -> str:
    told = {
        "": "",
        "frozen": " with a frozen encoder",
        "linear": " with a linear head",
        "longer": f" for {row['freeze_epochs']} + {row['epochs']} epochs",
    }
    too = " with its decoder" if row["transfer"] == "encoder+decoder" else ""
    return name_of(row["init"]) + too + told[variant]


def _differences(members: Sequence[tuple[str, Sequence[Row]]]) -> list[str]:
    """For each group what tells it from others of its name: nothing where the name does."""
    alike: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for variant, group in members:
        alike.setdefault((variant, group[0]["init"], group[0]["transfer"]), []).append(_settings(group[0]))
    suffixes = []
    for variant, group in members:
        others, mine = alike[variant, group[0]["init"], group[0]["transfer"]], _settings(group[0])
        differing = [name for name in mine if len({other.get(name, "") for other in others}) > 1]
        told = ", ".join(f"{name.replace('_', ' ')} {mine[name] or 'none'}" for name in differing[:3])
        suffixes.append(f" [{told}]" if told else "")
    return suffixes


def _settings(row: Row) -> dict[str, str]:
    settings = {name: row.get(name) or "" for name in _PROTOCOL}
    settings["fitted_head"] = settings["fitted_head"] or "0"  # of rows without this column
    settings |= {f"pretraining {name}": row.get(f"pretrain_{name}") or "" for name in _PRETRAINING}
    parts = settings.pop("pretraining settings").split("; ")
    return settings | dict(f"pretraining {part}".rpartition(" ")[::2] for part in parts if part)
