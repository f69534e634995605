"""Several classes taken as one: what the masks hold then, and what cannot be merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segae.data.cache import cache_pairs
from segae.data.live import LivePairs
from segae.data.merge import merge_classes, read_merge, same_merge
from segae.data.open import open_dataset
from segae.data.quarantine import Quarantine
from segae.data.resize import to_class_indices
from segae.data.transforms import eval_transform
from segae.errors import SegaeError

VALUES = (0, 7, 3, 250)
NAMES = ("sky", "cat", "fur", "dog")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    generator = np.random.default_rng(0)
    for index in range(5):
        mask = generator.choice(np.array(VALUES, np.uint8), (16, 16))
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(root / "images" / f"{index}.png")
    return root


def raw(pair) -> np.ndarray:
    return np.asarray(Image.open(pair.mask))


def test_masks_hold_the_merged_classes_by_the_cache_and_live(root, tmp_path):
    """The names stand for the folder's values in ascending order: 0, 3, 7, 250."""
    data = open_dataset(root, NAMES, ("animal=cat+dog",))
    assert data.classes == ("sky", "animal", "fur")
    whole = open_dataset(root, NAMES)
    assert data.palette == (whole.palette[0], whole.palette[1], whole.palette[2])
    assert data.mask_values == (0, (3, 250), 7)
    assert data.splits == whole.splits
    pairs = data.splits["train"]
    cached = cache_pairs(pairs, 16, data.mask_values, Quarantine(), tmp_path / "cache", progress=False)
    apart = cache_pairs(pairs, 16, whole.mask_values, Quarantine(), tmp_path / "cache", progress=False)
    live = LivePairs(pairs, 16, data.mask_values, eval_transform(16, (0.5,) * 3, (0.5,) * 3), 0)
    for index, pair in enumerate(pairs):
        expected = np.select([np.isin(raw(pair), (3, 250)), raw(pair) == 7], [1, 2], 0)
        assert (cached.masks[index] == expected).all()
        assert (live[index][1].numpy() == expected).all()
        assert set(np.unique(apart.masks[index])) == {0, 1, 2, 3}


def test_a_value_of_no_class_is_still_found(tmp_path):
    assert to_class_indices(np.array([[5, 1, 9]]), ((9, 1), 5), tmp_path).tolist() == [[1, 0, 0]]
    with pytest.raises(SegaeError, match="holds the value 4, 6, which is no class. Wanted only 9, 1, 5"):
        to_class_indices(np.array([[5, 4, 6]]), ((9, 1), 5), tmp_path)


def test_nothing_to_merge_is_the_data_set_itself(root):
    data = open_dataset(root, NAMES)
    assert merge_classes(data, ()) is data
    renamed = merge_classes(data, ("all cats=cat",))
    assert renamed.classes == ("sky", "all cats", "fur", "dog")
    assert renamed.mask_values == data.mask_values
    again = merge_classes(merge_classes(data, ("animal=cat+dog",)), ("thing=animal+fur",))
    assert (again.classes, again.mask_values) == (("sky", "thing"), (0, (3, 250, 7)))


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (
            ("animal=cat+dgo",),
            "no class dgo that could be merged. Did you mean dog[?] Its classes are sky, cat, fur, dog",
        ),
        (("animal",), "'animal' merges nothing"),
        (("=cat+dog",), "merges nothing"),
        (("animal=cat+",), "merges nothing"),
        (("a=cat", "a=dog"), "the name a is given to two"),
        (("a=cat+dog", "b=dog"), "the class dog is merged twice"),
        (("sky=cat+dog",), "sky is a class of .* already and stays one"),
        (("all=sky+cat+fur+dog",), "leaves one class, and two or more are wanted"),
    ],
)
def test_what_cannot_be_merged_is_refused(root, merge, message):
    with pytest.raises(SegaeError, match=message):
        open_dataset(root, NAMES, merge)


def test_a_merge_may_be_called_as_one_of_its_members_and_typed_in_any_order(root):
    assert open_dataset(root, NAMES, ("cat=cat+dog",)).classes == ("sky", "cat", "fur")
    one, other = read_merge(["a=x+y", "b=z"]), read_merge(["b = z", "a = y + x"])
    assert same_merge(one, other)
    assert not same_merge(one, read_merge(["a=x+z", "b=y"]))
