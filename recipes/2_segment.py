"""Story 2: make the encoder the backbone of a segmenter; freeze it for one epoch, then fine-tune everything.

    python recipes/2_segment.py DATA [encoder.safetensors | random | imagenet] [model.safetensors]

DATA is a folder with images/ and masks/, or the Oxford-IIIT Pets layout. The steps of `segae segment` in the open.
"""

import sys
from pathlib import Path

import segae

if __name__ != "__main__":
    raise ImportError("recipes are run or copied, not imported; import segae instead")
if len(sys.argv) < 2:
    sys.exit("Wanted: python recipes/2_segment.py DATA [encoder.safetensors | random | imagenet] [model.safetensors]")

root = Path(sys.argv[1])
init = sys.argv[2] if len(sys.argv) > 2 else "encoder.safetensors"
target = Path(sys.argv[3] if len(sys.argv) > 3 else "model.safetensors")
architecture, image_size, batch_size, seed = "tf_efficientnet_lite0", 96, 16, 0

# 1. The data: the test split stays closed here; a tenth of the training images is for watching.
data = segae.open_dataset(root)
train_pairs, valid_pairs = segae.split_off_validation(data.splits["train"], 0.1, seed)
quarantine = segae.Quarantine()
train = segae.cache_pairs(train_pairs, image_size, data.mask_values, quarantine)
valid = segae.cache_pairs(valid_pairs, image_size, data.mask_values, quarantine)
quarantine.report()

# 2. The encoder, from the file that pretraining wrote; images are normalised as they were then.
segae.seed_everything(seed)
device = segae.choose_device("auto")
encoder, description = segae.create_encoder(architecture, init)
print(f"encoder from {description.source}")
normalisation = (image_size, description.mean, description.std)

# 3. The segmenter: encoder, U-Net decoder, one logit per class and pixel.
model = segae.create_segmenter(encoder, architecture, "unet", len(data.classes)).to(device)

# 4. Train: one epoch with every bit of the encoder at rest, then three with everything moving.
loaders = segae.make_loaders(
    segae.LabelledImages(train.images, train.masks, segae.train_transform(*normalisation), seed),
    segae.LabelledImages(valid.images, valid.masks, segae.eval_transform(*normalisation), seed),
    batch_size=batch_size,
    device=device,
    seed=seed,
)
protocol = segae.protocol_of(description.init)  # for this kind of init the best one on validation images
learner = segae.segmentation_learner(loaders, model, classes=len(data.classes), bn_mode=protocol.bn_mode, seed=seed)
phases = segae.make_phases(1, 3, lr=protocol.lr, lr_ratio=protocol.lr_ratio, warmup=protocol.warmup)
segae.fit(learner, phases, report=segae.print_epoch)

# 5. The model file knows its classes, colours and normalisation.
segae.save_segmenter(
    target,
    model,
    segae.SegmenterDescription(
        encoder=architecture,
        decoder="unet",
        classes=data.classes,
        palette=data.palette,
        mask_values=data.mask_values,
        in_channels=description.in_channels,
        mean=description.mean,
        std=description.std,
        image_size=image_size,
        details={"init": description.init, "recipe": "2_segment.py"},
    ),
)
print(f"wrote {target}")
