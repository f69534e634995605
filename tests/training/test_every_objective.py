"""Every objective through the training loop, on a ResNet, a ConvNeXt and an EfficientNet-Lite."""

from __future__ import annotations

import pytest
import torch

from segae.models.encoder import build_encoder, create_encoder
from segae.models.pretrainer import create_pretrainer
from segae.models.weights import load_strictly
from segae.objectives.presets import OBJECTIVES, make_objective
from segae.training.fit import fit
from segae.training.learner import pretraining_learner
from segae.training.loaders import make_loaders
from segae.training.run import seed_everything
from segae.training.schedule import make_pretraining_phases

FAMILIES = ("test_resnet", "test_convnext", "tf_efficientnet_lite0")


def pictures(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    return list(torch.nn.functional.interpolate(coarse, size=64, mode="bilinear"))


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_trains_and_leaves_a_plain_encoder(name, architecture):
    seed_everything(0)
    objective = make_objective(name)
    encoder, _ = create_encoder(architecture)
    model = create_pretrainer(
        encoder,
        architecture,
        out_channels=objective.reconstruction.out_channels(3),
        masking=objective.masking,
        decoder=objective.decoder,
    )
    if objective.prepare is not None:
        objective.prepare(encoder, [torch.stack(pictures(12))])
    before, kind = state_of(model.encoder), type(encoder)
    loaders = make_loaders(pictures(12), pictures(4), batch_size=4, device=torch.device("cpu"))
    learner = pretraining_learner(loaders, model, objective)
    log = fit(learner, make_pretraining_phases(3, 2e-3, frozen_encoder=objective.frozen_encoder))
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    assert 1.2 < log[-1]["feature_rank"] <= 4  # of four images

    after = state_of(model.encoder)
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert moved == set() if objective.frozen_encoder else len(moved) > 0.9 * len(after)
    fresh = build_encoder(architecture)
    load_strictly(fresh, after, "the trained encoder")
    assert type(model.encoder) is kind
    hooks = [module for module in model.encoder.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert hooks == []
    fresh.to(memory_format=torch.channels_last)  # as the trained one: other layouts add up in another order
    image_bchw = torch.stack(pictures(2))
    for mine, theirs in zip(model.encoder.eval()(image_bchw), fresh.eval()(image_bchw), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PLACES = [("cpu", "test_resnet"), ("cpu", "test_convnext")]
PLACES += [pytest.param("cuda", family, marks=[pytest.mark.gpu, GPU]) for family in FAMILIES]


@pytest.mark.parametrize(("device", "architecture"), PLACES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_trains_in_bfloat16_with_hard_masks(name, device, architecture):
    """What a GPU does by default; masks that follow the loss where there are masks. It is float32 but for rounding."""
    objective = make_objective(name)
    channels = objective.reconstruction.out_channels(3)
    share = 0.5 if "mask" in name or name in ("a2mim", "mixture") else 0.0
    losses = {}
    for precision in ("float32", "bfloat16"):
        seed_everything(0)
        encoder, _ = create_encoder(architecture)
        model = create_pretrainer(
            encoder, architecture, out_channels=channels, masking=objective.masking, decoder=objective.decoder
        )
        loaders = make_loaders(pictures(8), pictures(4), batch_size=4, device=torch.device(device))
        learner = pretraining_learner(loaders, model, objective, precision=precision, hard_mask_share=share)
        log = fit(learner, make_pretraining_phases(3, 2e-3, frozen_encoder=objective.frozen_encoder))
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        losses[precision] = [row["train_loss"] for row in log]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"][0] == pytest.approx(losses["float32"][0], rel=0.01)
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.06)  # another patch may become the hardest
