"""The plain masked autoencoder that segae's pretraining is compared with is one, and of the same size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import segae

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("layout", "peer_loop", "peers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import peers

    return peers


def test_it_trains_as_many_weights_as_ours_and_every_one_moves(peers, tmp_path):
    from layout import lay_out

    lay_out(8, tmp_path, size=64)
    peer = peers.PEERS["pretrain"]["plain-loop"](peers.Work(tmp_path, "test_resnet", 64, 4, CPU, workers=0, steps=1))
    assert (peer.system, peer.metric, peer.data_path) == ("plain-loop", "images_per_second", "live")
    model = peer.rate.__self__.model
    objective = segae.make_objective("mask")
    encoder, _ = segae.create_encoder("test_resnet")
    ours = segae.create_pretrainer(encoder, "test_resnet", masking=objective.masking, decoder=objective.decoder)
    assert sum(one.numel() for one in model.parameters()) == sum(one.numel() for one in ours.parameters())
    before = [one.detach().clone() for one in model.parameters()]
    assert peer.rate() > 0
    assert all((one != old).any() for one, old in zip(model.parameters(), before, strict=True))


def test_so_many_whole_patches_of_every_image_are_hidden(peers):
    hidden_b1hw = peers.random_patches(torch.zeros(3, 3, 64, 96), patch=16, ratio=0.6)
    assert hidden_b1hw.shape == (3, 1, 64, 96)
    share_b = hidden_b1hw.mean((1, 2, 3))
    assert share_b.tolist() == pytest.approx([14 / 24] * 3)  # 0.6 of 24 patches
    corners_brc = hidden_b1hw[:, 0, ::16, ::16]
    assert torch.equal(hidden_b1hw[:, 0], corners_brc.repeat_interleave(16, 1).repeat_interleave(16, 2))
    assert len({tuple(one.flatten().tolist()) for one in corners_brc}) == 3  # another mask for each image


def test_the_loss_is_that_of_hidden_pixels_alone(peers, tmp_path):
    from layout import lay_out

    lay_out(8, tmp_path, size=64)
    peer = peers.PEERS["pretrain"]["plain-loop"](peers.Work(tmp_path, "test_resnet", 64, 4, CPU, workers=0, steps=1))
    loop = peer.rate.__self__
    shown = []

    def add_to_visible(_module, _inputs, output_bchw):
        return torch.where(shown[-1] == 0, output_bchw, output_bchw + 9)

    loop.model[0].register_forward_pre_hook(lambda _module, inputs: shown.append(inputs[0]))
    handle = loop.model[1].register_forward_hook(add_to_visible)
    image_bchw = torch.rand(4, 3, 64, 64) + 1  # no pixel is 0 but where it is hidden
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(loop.loss(loop.model.eval(), (image_bchw,), lambda part: part).item())
        handle.remove()
    assert losses[0] == pytest.approx(losses[1])
    assert (shown[0] == 0).float().mean() == pytest.approx(10 / 16, abs=0.001)  # 0.6 of 16 patches, rounded
