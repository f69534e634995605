"""What each process gets of a batch, put together again, is what a single process gets."""

from __future__ import annotations

import pytest
import torch

from segae.errors import SegaeError
from segae.objectives.catalogue import OBJECTIVES
from segae.objectives.corruption import GaussianNoise, Hardness, PatchMask
from segae.objectives.presets import make_objective
from segae.training.distributed import Place
from segae.training.sharing import EpochBatches, EpochSampler, Part, shared_draws, turns


@pytest.mark.parametrize(
    ("images", "batch_size", "world"), [(11, 4, 2), (10, 8, 4), (17, 8, 4), (5, 8, 8), (64, 16, 4), (3, 1, 1)]
)
def test_the_parts_of_every_batch_make_the_batch(images, batch_size, world):
    indices = [7 * index for index in range(images)]
    alone = EpochSampler(indices, 5, batch_size, drop_single=True)
    for epoch in (0, 3):
        alone.set_epoch(epoch)
        order = list(alone)
        assert len(order) == len(alone) == images - (batch_size > 1 and images % batch_size == 1)
        joined, batches = [], set()
        samplers = [EpochSampler(indices, 5, batch_size, Place(rank, world), True) for rank in range(world)]
        given = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            given.append(list(sampler))
            assert len(given[-1]) == len(sampler)
            batches.add(-(-len(sampler) // (batch_size // world)))  # what a DataLoader makes of it
        assert len(batches) == 1, "they would wait for each other"
        for batch in range(batches.pop()):
            start = batch * batch_size // world
            for sampler, own in zip(samplers, given, strict=True):
                part = sampler.part(batch)
                took = own[start : start + batch_size // world]
                joined += took[: part.count]
                assert len(took) == max(part.count, 1)
                assert took[0] == order[part.before + part.first]
        assert joined == order
    assert sorted(order) != order


def test_without_a_seed_the_order_stays():
    assert list(EpochSampler(range(5), None, 4, Place(0, 2))) == [0, 1, 4]
    assert list(EpochSampler(range(5), None, 4, Place(1, 2))) == [2, 3, 4]
    assert EpochSampler(range(5), None, 4, Place(1, 2)).part(1).count == 0
    assert len(EpochSampler([], None, 4, Place(1, 2))) == 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_image_is_corrupted_as_it_is_in_the_whole_batch(name):
    corruption = make_objective(name, patch=32 if name in ("sparse_mask", "a2mim") else 16).corruption
    image_bchw = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    whole, own = (torch.Generator().manual_seed(2) for _ in range(2))
    for first, count in ((0, 2), (2, 2), (4, 1)):
        generator = torch.Generator().manual_seed(2)
        expected = corruption(image_bchw, whole)
        with shared_draws(generator, Part(0, first, count, 5)):
            found = corruption(image_bchw[first : first + count], generator)
        for part in ("image_bchw", "hidden_b1hw", "target_bchw"):
            one, other = getattr(found, part), getattr(expected, part)
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other[first : first + count], atol=1e-6)
        if name != "reconstruct":
            assert torch.equal(
                torch.rand(9, generator=generator), torch.rand(9, generator=own.set_state(whole.get_state()))
            )
        whole.manual_seed(2)


def test_masks_that_follow_the_loss_are_those_of_the_whole_batch_too():
    image_bchw, loss_brc = torch.randn(4, 3, 64, 64), torch.rand(4, 4, 4)
    expected = PatchMask(16, 0.5)(image_bchw, torch.Generator().manual_seed(2), Hardness(loss_brc, 0.5))
    generator = torch.Generator().manual_seed(2)
    with shared_draws(generator, Part(0, 2, 2, 4)):
        found = PatchMask(16, 0.5)(image_bchw[2:], generator, Hardness(loss_brc[2:], 0.5))
    assert torch.equal(found.hidden_b1hw, expected.hidden_b1hw[2:])


def test_other_random_numbers_are_left_alone_and_other_ways_of_drawing_are_refused():
    generator, other = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    with shared_draws(generator, Part(0, 1, 2, 4)):
        assert torch.rand(2, generator=other).shape == (2,)
        assert torch.equal(torch.rand(2, generator=generator), torch.rand(4, generator=other.manual_seed(2))[1:3])
        assert torch.randint(2, 5, size=(2, 3), generator=generator).shape == (2, 3)
        assert torch.randn(7, generator=generator).shape == (7,)
        with pytest.raises(SegaeError, match=r"draws by normal_, .* torch.randn"):
            torch.zeros(2).normal_(generator=generator)
    with shared_draws(generator, Part(0, 0, 4, 4)):  # all of the batch: nothing to share
        torch.zeros(2).normal_(generator=generator)
    assert GaussianNoise(1.0)(torch.zeros(2, 3, 4, 4), generator).image_bchw.std() > 0


@pytest.mark.parametrize("images", [3, 7, 20, 21, 29])
def test_an_epoch_of_so_many_images_takes_all_almost_equally_often(images):
    sampler, once = EpochSampler(range(7), 5, 4, images=images), EpochSampler(range(7), 5, 4)
    for epoch in (0, 3):
        sampler.set_epoch(epoch)
        once.set_epoch(epoch)
        items = list(sampler)
        assert len(items) == len(sampler) == images
        assert len(set(items)) == images, "an image would be augmented twice in the same way"
        counts = [sum(item % 7 == image for item in items) for image in range(7)]
        assert max(counts) - min(counts) <= 1
        assert items[:7] == list(once)[:images]
        assert [item // 7 for item in items] == sorted(item // 7 for item in items)
    assert items[7:14] != [item + 7 for item in items[:7]] or images < 14
    assert 7 * turns(images, 7) > max(items)


@pytest.mark.parametrize(("images", "batch_size", "world"), [(29, 4, 2), (17, 8, 4), (5, 4, 4)])
def test_several_processes_share_an_epoch_with_repetition(images, batch_size, world):
    alone = EpochSampler(range(6), 5, batch_size, drop_single=True, images=images)
    alone.set_epoch(2)
    order, joined = list(alone), {}
    assert len(order) == images - (images % batch_size == 1)
    for rank in range(world):
        sampler = EpochSampler(range(6), 5, batch_size, Place(rank, world), True, images)
        sampler.set_epoch(2)
        own = iter(sampler)
        for batch in range(-(-len(order) // batch_size)):
            part = sampler.part(batch)
            took = [next(own) for _ in range(max(part.count, 1))]
            joined |= {part.before + part.first + place: item for place, item in enumerate(took[: part.count])}
        assert next(own, None) is None
    assert [joined[place] for place in range(len(order))] == order


def test_fewer_images_than_there_are_change_from_epoch_to_epoch():
    sampler, seen = EpochSampler(range(9), 1, images=3), set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        seen |= set(sampler)
    assert seen == set(range(9))


@pytest.mark.parametrize(("images", "distinct"), [(0, 5), (-3, 5), (4, 0)])
def test_an_epoch_without_images_is_refused(images, distinct):
    with pytest.raises(SegaeError, match=f"an epoch of {images} images.* out of {distinct};.*--epoch-images"):
        turns(images, distinct)


@pytest.mark.parametrize(
    ("images", "batch_size", "step", "sizes"),
    [
        (41, 8, 32, [8, 8, 8, 8, 7, 2]),  # at 32 there is no single image, so there is none at 8
        (33, 8, 32, [8, 8, 8, 8]),  # a step of its own at any size
        (9, 8, 32, [7, 2]),
        (10, 3, 12, [3, 3, 2, 2]),
        (11, 2, 4, [2, 2, 2, 2, 2]),  # none to spare
        (6, 1, 4, [1] * 6),  # nobody minds single images
        (1, 8, 32, [1]),
    ],
)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_single_image_at_the_end_of_a_step_gets_a_second_one(images, batch_size, step, sizes, world):
    if batch_size % world:
        pytest.skip("cannot be shared")
    samplers = [
        EpochSampler(range(images), 5, batch_size, Place(rank, world), True, step=step) for rank in range(world)
    ]
    batches = [list(EpochBatches(sampler)) for sampler in samplers]
    order = samplers[0]._order()
    seen: list[int] = []
    for batch in range(len(sizes)):
        parts = [sampler.part(batch) for sampler in samplers]
        assert {part.total for part in parts} == {sizes[batch]} == {sum(part.count for part in parts)}
        assert {part.before for part in parts} == {sum(sizes[:batch])}
        for part, own in zip(parts, batches, strict=True):
            assert len(own[batch]) == max(part.count, 1)
            seen += own[batch][: part.count]
    assert seen == order[: sum(sizes)]
    assert {len(own) for own in batches} == {len(sizes)}
    assert [len(sampler) for sampler in samplers] == [sum(map(len, own)) for own in batches]
