"""The 37 breeds of the Oxford-IIIT Pet set, each with the few traits that a drawing needs.

Order, spelling and capitals are the official ones: class ids count the breeds alphabetically from 1, cats are
capitalised, dogs are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FUR = {
    "black": (38, 35, 36),
    "charcoal": (74, 72, 75),
    "blue": (122, 127, 137),
    "silver": (178, 175, 170),
    "white": (238, 234, 226),
    "cream": (226, 203, 166),
    "fawn": (192, 156, 116),
    "gold": (205, 152, 88),
    "orange": (198, 116, 50),
    "red": (150, 82, 44),
    "brown": (108, 73, 48),
    "chocolate": (68, 47, 37),
    "skin": (214, 170, 152),
}


@dataclass(frozen=True)
class Breed:
    """What tells one drawn breed from another.

    Attributes:
        name: Official spelling.
        coats: Main colors that occur, as keys of ``FUR``.
        marking: Color of the marking, as a key of ``FUR``.
        pattern: "solid", "tabby", "spots", "patches", "points", "saddle" or "brindle".
        ears: "pricked", "floppy" or "button" (folded at the tip).
        muzzle: Length of the muzzle in head radii.
        hair: 0 bare to 1 very long.
        legs: Length of the legs in torso lengths.
        bulk: Thickness of the body, 1 is average.
        tail: "long", "plume", "curled" or "stub".
    """

    name: str
    coats: tuple[str, ...]
    marking: str
    pattern: str
    ears: str
    muzzle: float
    hair: float
    legs: float
    bulk: float
    tail: str

    @property
    def is_cat(self) -> bool:
        """Whether the breed is a cat: the official names say so by a capital."""
        return self.name[0].isupper()


def _breed(line: str) -> Breed:
    name, coats, marking, pattern, ears, tail, *numbers = line.split()
    muzzle, hair, legs, bulk = map(float, numbers)
    return Breed(name, tuple(coats.split(",")), marking, pattern, ears, muzzle, hair, legs, bulk, tail)


# name, main colors, marking, pattern, ears, tail, muzzle, hair, legs, bulk
_TABLE = """
Abyssinian red,orange,fawn brown tabby pricked long .45 .15 .60 .85
american_bulldog white,white,fawn brown patches button long .75 .05 .55 1.25
american_pit_bull_terrier blue,red,fawn white patches button long .85 .05 .60 1.10
basset_hound white,cream red saddle floppy long 1.10 .10 .25 1.15
beagle white,cream brown saddle floppy long .95 .10 .50 1.00
Bengal gold,orange,fawn chocolate spots pricked long .48 .10 .55 .95
Birman cream,white chocolate points pricked plume .38 .60 .50 1.05
Bombay black,black,charcoal black solid pricked long .42 .10 .55 .95
boxer gold,red black brindle button stub .60 .05 .65 1.10
British_Shorthair blue,blue,silver charcoal solid pricked long .34 .30 .45 1.20
chihuahua fawn,cream,black white patches pricked long .60 .10 .50 .85
Egyptian_Mau silver,fawn charcoal spots pricked long .44 .12 .58 .90
english_cocker_spaniel gold,black,brown white patches floppy stub .90 .60 .45 1.00
english_setter white,white charcoal spots floppy plume 1.15 .50 .65 .95
german_shorthaired brown,silver,white chocolate spots floppy stub 1.10 .08 .68 .95
great_pyrenees white,cream cream solid floppy plume .95 .80 .55 1.25
havanese white,cream,brown fawn patches floppy plume .60 .85 .38 1.05
japanese_chin white,white black patches floppy plume .40 .70 .42 .95
keeshond silver,charcoal black saddle pricked curled .75 .90 .50 1.15
leonberger gold,orange black saddle floppy plume .95 .75 .55 1.25
Maine_Coon brown,silver,orange black tabby pricked plume .50 .85 .55 1.15
miniature_pinscher red,black,brown chocolate solid pricked stub .85 .05 .65 .80
newfoundland black,black,chocolate black solid floppy plume .90 .80 .50 1.35
Persian white,cream,silver,orange fawn solid pricked plume .25 .95 .38 1.20
pomeranian orange,gold,cream cream solid pricked curled .60 1.0 .40 1.20
pug fawn,cream,fawn black points button curled .40 .05 .42 1.20
Ragdoll cream,white brown points pricked plume .40 .65 .48 1.10
Russian_Blue blue,silver charcoal solid pricked long .45 .15 .58 .88
saint_bernard white,white red patches floppy plume .85 .55 .55 1.35
samoyed white,white cream solid pricked curled .80 .95 .55 1.15
scottish_terrier black,charcoal,fawn charcoal solid pricked long .95 .70 .28 1.10
shiba_inu orange,gold,cream white points pricked curled .78 .35 .52 1.05
Siamese cream,cream,white chocolate points pricked long .50 .08 .60 .82
Sphynx skin,skin,cream charcoal solid pricked long .45 .00 .58 .82
staffordshire_bull_terrier charcoal,red,blue chocolate brindle button long .75 .05 .50 1.15
wheaten_terrier cream,gold fawn solid button long .85 .80 .55 1.00
yorkshire_terrier gold,fawn charcoal saddle pricked long .60 .75 .35 .90
"""

BREEDS: tuple[Breed, ...] = tuple(_breed(line) for line in _TABLE.strip().splitlines())


def fur_color(name: str) -> np.ndarray:
    """A named fur color as float32 RGB, 0 to 1, shape (3,)."""
    return np.asarray(FUR[name], np.float32) / 255


def official_line(name: str, breed_index: int) -> str:
    """One line of the official lists: name, class id 1..37, species (1 cat, 2 dog), id within the species.

    Example:
        ``official_line("Bengal_9", 5) == "Bengal_9 6 1 2"``
    """
    species_of = [breed.is_cat for breed in BREEDS]
    rank = species_of[: breed_index + 1].count(species_of[breed_index])
    return f"{name} {breed_index + 1} {1 if species_of[breed_index] else 2} {rank}"
