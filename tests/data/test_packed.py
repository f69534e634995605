"""Packed lists are lists in all but memory."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segae.data.cache import cache_pairs
from segae.data.dataset import SegmentationData, split_off_validation, take_labels
from segae.data.fingerprint import content_hashes
from segae.data.open import open_dataset
from segae.data.packed import PackedNames, PackedPairs, PackedPaths, Pair
from segae.data.quarantine import Quarantine

FILES = st.text("aü漢/. ", min_size=1, max_size=12).map(Path)
NAMES = st.text(max_size=12) | st.just("\ud800")  # half a character, as a broken list of names may have
PAIRS = st.lists(st.builds(Pair, NAMES, FILES, FILES), max_size=8)


@given(st.lists(FILES, max_size=8), st.data())
def test_paths_are_those_that_went_in_whichever_way_they_are_asked_for(paths, data):
    packed = PackedPaths(paths)
    assert packed == paths
    assert tuple(paths) == packed
    assert [packed[place] for place in range(-len(paths), len(paths))] == paths * 2
    cut = data.draw(st.slices(len(paths)))
    assert packed[cut] == paths[cut]
    assert isinstance(packed[cut], PackedPaths), "a part does not become objects"
    if paths:
        assert packed != [*paths[:-1], paths[-1] / "other"]
        assert paths[-1] in packed
    assert packed != [*paths, Path("more")]
    with pytest.raises(IndexError):
        packed[len(paths)]


@given(PAIRS, st.randoms(use_true_random=False))
def test_pairs_are_those_that_went_in_also_in_another_process(pairs, random):
    packed = PackedPairs(iter(pairs))
    assert packed == pairs
    assert pickle.loads(pickle.dumps(packed)) == pairs
    assert packed.names == [pair.name for pair in pairs]
    assert packed.images == [pair.image for pair in pairs]
    assert packed.masks == [pair.mask for pair in pairs]
    places = random.sample(range(len(pairs)), len(pairs))
    assert packed.take(places) == [pairs[place] for place in places]
    assert PackedPairs.of(packed) is packed
    assert packed[1:] == pairs[1:]


def test_names_are_no_text_and_say_what_they_are():
    packed = PackedNames(["a", "b", "c", "d"])
    assert packed != "abcd"
    assert packed == ("a", "b", "c", "d")
    assert repr(packed) == "PackedNames(['a', 'b', 'c', ...], 4 items)"
    with pytest.raises(TypeError):
        hash(packed)
    with pytest.raises(TypeError):
        packed["a"]


def traced(make) -> tuple[object, int, int]:
    """What it gives, the memory that this holds, and the most that there was meanwhile."""
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return made, held, most


COUNT = 20_000


def test_a_data_set_and_what_is_chosen_from_it_hold_little_for_each_image():
    def make() -> tuple[object, ...]:
        root = Path("/data/some/folder")
        pairs = (
            Pair(f"{n:06d}", root / "images" / f"{n:06d}.jpg", root / "masks" / f"{n:06d}.png") for n in range(COUNT)
        )
        data = SegmentationData("x", root, ("a", "b"), ((0, 0, 0), (1, 1, 1)), (0, 1), {"train": PackedPairs(pairs)})
        chosen = take_labels(data.splits["train"], None, 0)
        return data, chosen, split_off_validation(chosen, 0.2, 0)

    made, held, _ = traced(make)
    each = 6 + 2 * len("/data/some/folder/images/000000.jpg") + 3 * 8
    assert held < 1.1 * 3 * each * COUNT, "all, chosen, and split in two; objects take 1100 bytes an image"
    assert len(made[1]) == COUNT


def test_facts_about_many_files_are_computed_folder_by_folder(tmp_path):
    folders = [tmp_path / f"{n}" for n in range(20)]
    files = []
    for folder in folders:
        folder.mkdir()
        (folder / "0").write_bytes(folder.name.encode())
        files += [folder / "0"] * 1000
    hashes, held, most = traced(lambda: content_hashes(PackedPaths(files), tmp_path / "cache"))
    assert len(set(hashes)) == len(folders)
    assert hashes == [hashes[1000 * n] for n in range(20) for _ in range(1000)]
    assert most < held + 300 * COUNT, "besides the hashes; a stamp, a path and a line of the index for each took 1000"
    assert content_hashes(files[::-1], tmp_path / "cache") == hashes[::-1], "remembered, whatever the order"


def test_what_a_data_set_gives_can_be_read_from_the_cache(tmp_path):
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / kind).mkdir()
        for number in range(6):
            pixels = np.full((8, 8, 3) if mode == "RGB" else (8, 8), number % 2, np.uint8)
            Image.fromarray(pixels, mode).save(tmp_path / kind / f"{number}.png")
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    (tmp_path / "trainval.txt").write_text("\n".join("01235"))
    data, quarantine = open_dataset(tmp_path), Quarantine()
    assert [pair.name for pair in data.splits["train"]] == ["0", "1", "2", "3", "5"]
    assert [pair.name for pair in data.splits["test"]] == ["4"]
    cached = cache_pairs(data.splits["train"], 8, data.mask_values, quarantine, tmp_path / "cache", progress=False)
    assert [pair.name for pair in cached.pairs] == ["0", "1", "2", "5"]
    assert [int(mask[0, 0]) for mask in cached.masks] == [0, 1, 0, 1]
    assert [path.name for path, _ in quarantine.items] == ["3.png"]
