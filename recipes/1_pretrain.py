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
if len(sys.argv) < 2:
    sys.exit("Wanted: python recipes/1_pretrain.py FOLDER [encoder.safetensors]")

folder = Path(sys.argv[1])
target = Path(sys.argv[2] if len(sys.argv) > 2 else "encoder.safetensors")
architecture, image_size, epochs, batch_size, seed = "tf_efficientnet_lite0", 96, 5, 32, 0

# 1. The encoder: any convolutional network of timm. Its description says how images are normalised.
segae.seed_everything(seed)
device = segae.choose_device("auto")
encoder, description = segae.create_encoder(architecture, "random")

# 2. What it is asked to do: in a crop, say where the object is that was found in the whole image by its colours alone.
#    It takes one object near the middle for granted; "otsu" takes small bright or dark things, "denoise" nothing.
objective = segae.make_objective("layers")

# 3. The model: encoder and decoder of a U-Net, with one more layer for what the objective asks for.
model = segae.create_pretrainer(
    encoder,
    architecture,
    out_channels=objective.reconstruction.out_channels(3),
    masking=objective.masking,
    decoder=objective.decoder,
).to(device)

# 4. The images, decoded once; files that cannot be read are named and left out. No test image gets in.
quarantine = segae.Quarantine()
cached = segae.cache_images(segae.find_pretraining_images([folder]), image_size, quarantine)
quarantine.report()
normalisation = (image_size, description.mean, description.std)
images = segae.UnlabelledImages(cached.images, segae.pretrain_transform(*normalisation, crop=not objective.crops), seed)
loaders = segae.make_loaders(images, None, batch_size=batch_size, device=device, seed=seed)

# 5. Train: a fastai Learner through one cycle of the learning rate.
learner = segae.pretraining_learner(loaders, model, objective, seed=seed)
log = segae.fit(learner, segae.make_pretraining_phases(epochs, lr=2e-3), report=segae.print_epoch)

# 6. The encoder is a plain dense one again, but its BatchNorm knows corrupted images only: measure clean ones.
clean = segae.UnlabelledImages(cached.images, segae.eval_transform(*normalisation), seed)
segae.recalibrate_batchnorm(encoder, DataLoader(clean, batch_size, drop_last=len(clean) > batch_size), device)

# 7. The file that every later stage takes: weights and, in its header, where they come from.
pretraining = {"objective": objective.name, "dataset": folder.name, "images": len(images), "epochs": epochs}
init, source = f"ae:{objective.name}", "recipes/1_pretrain.py"
description = replace(description, image_size=image_size, init=init, source=source, pretraining=pretraining)
segae.save_encoder(target, encoder, description)
print(f"wrote {target}")
