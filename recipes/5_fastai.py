# %% [markdown]
# # Pretrain and fine-tune with fastai
# Ordinary DataLoaders and Learners; `python recipes/5_fastai.py`, or the notebook of the same name.

# %%
from pathlib import Path

from fastai.vision.all import DataBlock, ImageBlock, MaskBlock, RandomSplitter, Resize, get_image_files

import segae

# %% tags=["parameters"]
folder, encoder, out = segae.data.drawn_pets(), "tf_efficientnet_lite0", Path("runs/recipe")
size, epochs, batch = 96, 3, 16

# %% [markdown]
# Pretrain on images without masks; the encoder is kept as a file.

# %%
common = {"splitter": RandomSplitter(0.1, seed=0), "item_tfms": Resize(size)}
images = DataBlock(blocks=(ImageBlock,), get_items=get_image_files, **common)
dls = images.dataloaders(folder / "unlabeled", bs=batch, num_workers=0)
learner = segae.pretraining_learner(dls, encoder, "pseudo_masks", path=out)
learner.fit_one_cycle(epochs, 2e-3, cbs=segae.fastai.SaveEncoder(out / "fastai-encoder.safetensors"))
learner.show_results(max_n=3)

# %% [markdown]
# Fine-tune a segmenter from it: one epoch with the encoder frozen, then everything.

# %%
data = segae.data.open_dataset(folder)
masks = DataBlock(
    blocks=(ImageBlock, MaskBlock(data.classes)),
    get_x=lambda pair: pair.image,
    get_y=lambda pair: segae.data.to_class_indices(segae.data.read_mask(pair.mask), data.mask_values, pair.mask),
    **common,
)
dls = masks.dataloaders(list(data.splits["train"]), bs=batch, num_workers=0)
learner = segae.segmentation_learner(dls, out / "fastai-encoder.safetensors", path=out)
found = learner.lr_find(num_it=60)
learner.fine_tune(epochs, base_lr=found.valley, freeze_epochs=1)
learner.show_results(max_n=3)
segae.save_segmenter(learner.model, out / "fastai.safetensors")
