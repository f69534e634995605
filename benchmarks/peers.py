"""What others offer for the same work, each as its own users would write it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from layout import FOLDER
from peer_loop import MEAN, STD, Absent, Loop, Peer, Work, autocast, make_loader
from torch import nn

from segae.training.ceiling import measure_ceiling
from segae.training.pace import synchronise


def plain_loop(work: Work) -> Peer:
    """PyTorch and smp as a competent user writes them: torchvision's Pets, v2 transforms, workers, autocast, AdamW."""
    import segmentation_models_pytorch as smp
    from torchvision.datasets import OxfordIIITPet

    images = OxfordIIITPet(str(work.root), "trainval", "segmentation", transforms=Augment(work.size))
    loader = make_loader(images, work)
    model = smp.Unet(f"tu-{work.encoder}", encoder_weights=None, classes=3)
    return Peer("plain-loop", "images_per_second", "live", Loop(work, model, loader, _cross_entropy).epoch)


class Augment:
    """Picture and trimap in step: resize, flip, mild affine change, light; class indices from 0."""

    def __init__(self, size: int) -> None:
        from torchvision.transforms import v2

        self.steps = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize((size, size), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.RandomAffine(10, (0.06, 0.06), (0.9, 1.1))], 0.5),
                v2.RandomApply([v2.ColorJitter(0.2, 0.2)], 0.5),
            ]
        )
        self.finish = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def __call__(self, image: Any, trimap: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment a PIL pair: float32 (3, S, S), normalised, and int64 (S, S)."""
        from torchvision import tv_tensors
        from torchvision.transforms.v2.functional import pil_to_tensor

        image, mask = self.steps(image, tv_tensors.Mask(pil_to_tensor(trimap)))
        # what an affine move uncovers is 0 in the trimap, and background here
        mask_hw = torch.where(mask[0] == 0, 1, mask[0].long() - 1)
        return self.finish(image.as_subclass(torch.Tensor)), mask_hw.as_subclass(torch.Tensor)


def masked_autoencoder(work: Work) -> Peer:
    """A masked autoencoder on smp's encoder as a competent user writes it; patches and decoder are as large as ours."""
    import segmentation_models_pytorch as smp
    from torchvision.datasets import OxfordIIITPet
    from torchvision.transforms import v2

    encoder = smp.encoders.get_encoder(f"tu-{work.encoder}", weights=None)
    layers: list[nn.Module] = []
    for inside, outside in pairwise((encoder.out_channels[-1], 128, 64, 32, 16, 16)):
        conv = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        layers += [nn.Upsample(scale_factor=2), conv, nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
    decoder = nn.Sequential(*layers, nn.Conv2d(16, 3, 3, padding=1))

    def loss(model: nn.ModuleList, batch: Any, place: Callable) -> torch.Tensor:
        image_bchw = place(batch[0])
        hidden_b1hw = random_patches(image_bchw, patch=16, ratio=0.6)
        prediction_bchw = model[1](model[0](image_bchw * (1 - hidden_b1hw))[-1])
        squared_bchw = (prediction_bchw.float() - image_bchw).square()
        return (squared_bchw * hidden_b1hw).sum() / (hidden_b1hw.sum() * image_bchw.shape[1])

    steps = [v2.ToImage(), v2.RandomResizedCrop(work.size, scale=(0.5, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    images = OxfordIIITPet(str(work.root), "trainval", transform=transform)
    loop = Loop(work, nn.ModuleList([encoder, decoder]), make_loader(images, work), loss)
    return Peer("plain-loop", "images_per_second", "live", loop.epoch)


def random_patches(image_bchw: torch.Tensor, patch: int, ratio: float) -> torch.Tensor:
    """Hide so large a share of each image's patches: (B, 1, H, W), 1 = hidden."""
    rows, columns = (side // patch for side in image_bchw.shape[-2:])
    order_bn = torch.rand(len(image_bchw), rows * columns, device=image_bchw.device).argsort(1)
    hidden_bn = (order_bn < round(ratio * rows * columns)).to(image_bchw.dtype)
    grid_b1hw = hidden_bn.view(-1, 1, rows, columns)
    return grid_b1hw.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def fastai_stock(work: Work) -> Peer:
    """fastai's ``unet_learner`` with the DataBlock of its own documentation, nothing tuned."""
    if work.encoder not in ("resnet18", "resnet34", "resnet50"):
        raise Absent(f"fastai's unet_learner takes torchvision's resnets, not {work.encoder}")
    from fastai.vision import all as vision

    folder = work.root / FOLDER
    block = vision.DataBlock(
        blocks=(vision.ImageBlock, vision.MaskBlock(["none", "pet", "background", "border"])),
        get_items=vision.get_image_files,
        get_y=lambda path: folder / "annotations" / "trimaps" / f"{path.stem}.png",
        splitter=vision.RandomSplitter(0.0),
        item_tfms=vision.Resize(work.size),
        batch_tfms=[*vision.aug_transforms(), vision.Normalize.from_stats(*vision.imagenet_stats)],
    )
    loaders = block.dataloaders(folder / "images", bs=work.batch_size, device=work.device)
    learner = vision.unet_learner(loaders, getattr(vision, work.encoder), pretrained=False)
    images = len(loaders.train) * work.batch_size

    def rate() -> float:
        started = time.perf_counter()
        with learner.no_bar(), learner.no_logging():
            learner.fit_one_cycle(1, 1e-3)
        synchronise(work.device)
        return images / (time.perf_counter() - started)

    return Peer("fastai-unet_learner", "images_per_second", "live", rate)


def timm_step(work: Work) -> Peer:
    """timm's classifier on one batch that stays on the device: what the encoder alone would allow."""
    import timm
    from timm.optim import create_optimizer_v2

    layout = torch.channels_last
    model = timm.create_model(work.encoder, num_classes=37).to(work.device, memory_format=layout).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    image_bchw = torch.randn(work.batch_size, 3, work.size, work.size).to(work.device, memory_format=layout)
    label_b = torch.randint(37, (work.batch_size,)).to(work.device)

    def step() -> None:
        with autocast(work.device):
            loss = nn.functional.cross_entropy(model(image_bchw), label_b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def rate() -> float:
        return measure_ceiling(step, work.batch_size, work.device, warm_up=2, steps=work.steps, repeats=1)

    return Peer("timm-classifier", "ceiling", "one batch", rate)


def lightly_simsiam(work: Work) -> Peer:
    """lightly's SimSiam, two views of each image: it has no masked autoencoder for convolutional encoders."""
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")  # else its import asks a server
    try:
        from lightly.data import LightlyDataset
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
        from lightly.transforms import SimSiamTransform
    except ImportError as error:
        raise Absent(f"lightly is not installed ({error}); type: pip install 'segae[benchmarks]'") from error
    import timm

    class SimSiam(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model(work.encoder, num_classes=0)
            width = self.backbone(torch.zeros(2, 3, work.size, work.size)).shape[1]
            self.project, self.predict = SimSiamProjectionHead(width, 512, 128), SimSiamPredictionHead(128, 64, 128)

        def forward(self, view_bchw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            projected = self.project(self.backbone(view_bchw))
            return projected.detach(), self.predict(projected)

    distance = NegativeCosineSimilarity()

    def loss(model: nn.Module, batch: Any, place: Callable) -> torch.Tensor:
        (first, one), (second, other) = (model(place(view)) for view in batch[0])
        return 0.5 * (distance(one, second) + distance(other, first))

    images = LightlyDataset(str(work.root / FOLDER / "images"), transform=SimSiamTransform(input_size=work.size))
    return Peer(
        "lightly-simsiam", "images_per_second", "live", Loop(work, SimSiam(), make_loader(images, work), loss).epoch
    )


PEERS: dict[str, dict[str, Callable[[Work], Peer]]] = {
    "segment": {"plain-loop": plain_loop, "fastai": fastai_stock, "timm": timm_step},
    "pretrain": {"plain-loop": masked_autoencoder, "timm": timm_step, "lightly": lightly_simsiam},
}
"""What each task is compared with."""


def _cross_entropy(model: nn.Module, batch: Any, place: Callable) -> torch.Tensor:
    return nn.functional.cross_entropy(model(place(batch[0])), place(batch[1]))
