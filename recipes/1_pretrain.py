"""Story 1: pretrain a convolutional autoencoder on unlabelled images.

    python recipes/1_pretrain.py FOLDER [encoder.safetensors]

The steps of `segae pretrain` in the open: read them, copy them, change them.
"""

import sys
from dataclasses import replace
from pathlib import Path

from torch.utils.data import DataLoader

import segae

if __name__ != "__main__":
    raise ImportError("recipes are run or copied, not imported; import segae instead")

folder = Path(sys.argv[1])
target = Path(sys.argv[2] if len(sys.argv) > 2 else "encoder.safetensors")
architecture, image_size, epochs, batch_size, seed = "tf_efficientnet_lite0", 96, 5, 32, 0

# 1. The encoder: any convolutional network of timm. Its description says how images are normalised.
segae.seed_everything(seed)
device = segae.choose_device("auto")
encoder, description = segae.create_encoder(architecture, "random")

# 2. The autoencoder: encoder, then a decoder without skips, so that the code has to carry the image.
autoencoder = segae.Autoencoder(encoder, description.mean, description.std, upsampling="nearest").to(device)

# 3. What it is asked to do: 60 % of the 16 px patches are hidden, and it is judged where they were.
objective = segae.make_objective("mask", noise_sigma=0.5, patch=16, mask_ratio=0.6)

# 4. The images, decoded once; files that cannot be read are named and left out. No test image gets in.
quarantine = segae.Quarantine()
cached = segae.cache_images(segae.find_pretraining_images([folder]), image_size, quarantine)
quarantine.report()
normalisation = (image_size, description.mean, description.std)
images = segae.UnlabelledImages(cached.images, segae.pretrain_transform(*normalisation), seed)
loaders = segae.make_loaders(images, None, batch_size=batch_size, device=device, seed=seed)

# 5. Train: a fastai Learner through one cycle of the learning rate.
learner = segae.pretraining_learner(loaders, autoencoder, objective, seed=seed)
log = segae.fit(learner, segae.make_pretraining_phases(epochs, lr=1e-3), report=segae.print_epoch)

# 6. BatchNorm has seen corrupted images only: measure its statistics again on clean ones.
clean = segae.UnlabelledImages(cached.images, segae.eval_transform(*normalisation), seed)
segae.recalibrate_batchnorm(encoder, DataLoader(clean, batch_size, drop_last=len(clean) > batch_size), device)

# 7. The file that every later stage takes: weights and, in its header, where they come from.
pretraining = {"objective": "mask", "dataset": folder.name, "images": len(images), "epochs": epochs, "seed": seed}
description = replace(
    description, image_size=image_size, init="ae:mask", source="recipes/1_pretrain.py", pretraining=pretraining
)
segae.save_encoder(target, encoder, description)
print(f"wrote {target}")
