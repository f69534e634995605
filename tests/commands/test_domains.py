"""One encoder with a decoder for each folder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import segae
from tests.fabricate import save


def make_domains(root: Path, count: int = 24) -> list[Path]:
    """Bright squares, and dark disks."""
    generator = np.random.default_rng(0)
    for name in ("squares", "disks"):
        (root / name).mkdir()
        for place in range(count):
            x, y = (int(value) for value in generator.integers(6, 16, 2))
            pixels = np.full((24, 24, 3), 20 if name == "squares" else 230, np.uint8)
            if name == "squares":
                cv2.rectangle(pixels, (x - 4, y - 4), (x + 4, y + 4), (240, 240, 240), -1)
            else:
                cv2.circle(pixels, (x, y), 4, (10, 10, 10), -1)
            save(pixels, root / name / f"{place}.png")
    return [root / "squares", root / "disks"]


TINY = {"encoder": "conv_16_8_4", "image_size": 24, "method": "reconstruct", "device": "cpu", "threads": 1}


def test_each_decoder_learns_its_own_domain(tmp_path: Path) -> None:
    folders = make_domains(tmp_path)
    result = segae.pretrain(
        folders, domain_decoders=True, out=tmp_path / "run", epochs=25, batch_size=8, lr=1e-2, augment=False, **TINY
    )
    model = segae.load(tmp_path / "run" / "autoencoder.safetensors")
    assert model.info.domains == ("squares", "disks")
    for own, folder in enumerate(folders):
        read = np.stack([cv2.imread(str(path)) for path in sorted(folder.iterdir())])
        images = torch.from_numpy(read).permute(0, 3, 1, 2).float() / 255
        errors = [float((model.reconstruct(images, domain) - images).square().mean()) for domain in (0, 1)]
        assert errors[own] < errors[1 - own] / 2, errors
        mixed = torch.tensor([own, 1 - own] * (len(images) // 2))
        chosen = model.reconstruct(images, mixed)
        assert torch.allclose(chosen[1], model.reconstruct(images, 1 - own)[1], atol=1e-5)
        assert torch.allclose(chosen[2], model.reconstruct(images, own)[2], atol=1e-5)
    assert result.log["train_loss"].iloc[-1] < result.log["train_loss"].iloc[0] / 2
    with pytest.raises(segae.SegaeError, match="domain must be .* got 2"):
        model.reconstruct(images, domain=2)


def test_domains_with_batchnorm_and_a_variational_code(tmp_path: Path) -> None:
    folders = make_domains(tmp_path, 6)
    more = {"encoder": "test_resnet", "image_size": 32, "method": "variational", "bottleneck": 4, "repeats": 2}
    segae.pretrain(folders, domain_decoders=True, out=tmp_path / "run", epochs=1, batch_size=4, **{**TINY, **more})
    model = segae.load(tmp_path / "run" / "autoencoder.safetensors")
    images = torch.rand(2, 3, 32, 32)
    assert not torch.equal(model.reconstruct(images), model.reconstruct(images, 1))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"data": 1}, "data must be two folders"),
        ({"cache": "none"}, "cache must be disk"),
        ({"cache": "gpu"}, "cache must be disk"),
        ({"decoder": "unet", "encoder": "test_resnet", "image_size": 32}, "domains must be"),
        ({"data": ["squares-0.tar", "disks-0.tar"]}, "data must be"),
    ],
)
def test_what_domains_do_not_go_with(tmp_path: Path, wrong: dict, words: str) -> None:
    folders = make_domains(tmp_path, 2)
    data = folders[0] if wrong.get("data") == 1 else wrong.get("data", folders)
    with pytest.raises(segae.SegaeError, match=words):
        segae.pretrain(**{"domain_decoders": True, "out": tmp_path / "run", **TINY, **wrong, "data": data})
