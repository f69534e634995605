"""Tiny learners that are the same at every call: test_resnet on random images of 32 or 64 px."""

from typing import Any

import torch
from fastai.callback.core import Callback
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from segae.data import make_loaders
from segae.methods import create_autoencoder, create_method
from segae.models import create_segmenter
from segae.training import Phase, pretraining_learner, seed_everything, segmentation_learner

CPU = torch.device("cpu")


class Items(Dataset):
    """A list as a data set; it notes which items were asked for."""

    def __init__(self, items: list) -> None:
        self.items, self.asked = items, []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return self.items[index]


class Tiny(nn.Module):
    """A segmenter without BatchNorm, which sees other images in smaller batches."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(images).relu())


def images(count: int, size: int = 64) -> list[torch.Tensor]:
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return list(functional.interpolate(coarse, size=size, mode="bilinear"))


def pairs(count: int, size: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images whose mask can be read off the first channel, so that there is something to learn."""
    return [(image, (image[0] > 0).long()) for image in images(count, size)]


def segmentation(model: Any = None, *, train: int = 18, valid: int = 4, batch: int = 8, size: int = 32, **more) -> Any:
    """A learner for a U-Net, or for an instance of a class of models."""
    seed_everything(0)
    made = (
        model()
        if model
        else create_segmenter(more.pop("architecture", "test_resnet"), num_classes=2, decoder="linknet")
    )
    loaders = make_loaders(Items(pairs(train, size)), Items(pairs(valid, size)), batch_size=batch, device=CPU)
    return segmentation_learner(loaders, made, num_classes=2, **more)


def pretraining(method: str = "inpaint", model: Any = None, *, train: int = 18, valid: int = 4, **more) -> Any:
    """A learner for a pretraining method."""
    seed_everything(0)
    seed, size, chosen = more.get("seed", 0), more.pop("size", 64), create_method(method)
    decoder = more.pop("decoder", None)
    model = model or create_autoencoder("test_resnet", method=chosen, decoder=decoder)
    items = [Items([(image,) for image in images(count, size)]) for count in (train, valid)]
    return pretraining_learner(make_loaders(*items, batch_size=8, device=CPU, seed=seed), model, chosen, **more)


def phase(epochs: int, lr: float = 1e-3, *, ratio: float = 1.0, frozen: bool = False) -> Phase:
    return Phase("decoder" if frozen else "pretrain", epochs, lr * ratio, lr, 0.1, 25.0, train_encoder=not frozen)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(now: nn.Module | dict[str, torch.Tensor], before: dict[str, torch.Tensor], part: str = "") -> set[str]:
    """Names of the parameters and buffers that are not what they were."""
    after = now.state_dict() if isinstance(now, nn.Module) else now
    return {name for name, value in after.items() if name.startswith(part) and not torch.equal(value, before[name])}


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def without_times(log: Any) -> list[dict]:
    return log.drop(columns=[name for name in log if "second" in name or "memory" in name]).to_dict("records")


class KillAfter(Callback):
    """Ends the process, as far as a test can, right after an epoch was saved."""

    order = 76

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def after_epoch(self) -> None:
        if len(self.learn.epoch_clock.log) == self.epochs:
            raise KeyboardInterrupt
