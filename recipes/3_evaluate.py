"""Story 3: read the test split, once, and say how good the segmenter is.

    python recipes/3_evaluate.py DATA [model.safetensors]

The steps of `segae evaluate` in the open.
"""

import sys
from pathlib import Path

import segae

if __name__ != "__main__":
    raise ImportError("recipes are run or copied, not imported; import segae instead")
if len(sys.argv) < 2:
    sys.exit("Wanted: python recipes/3_evaluate.py DATA [model.safetensors]")

root = Path(sys.argv[1])
source = Path(sys.argv[2] if len(sys.argv) > 2 else "model.safetensors")

# 1. The model brings its classes, its image size and its normalisation along.
model, description = segae.load_segmenter(source)

# 2. The test images, resized as the training images were, masks by the nearest pixel.
data = segae.open_dataset(root)
quarantine = segae.Quarantine()
test = segae.cache_pairs(data.splits["test"], description.image_size, data.mask_values, quarantine)
quarantine.report()

# 3. One confusion matrix over all pixels of all test images; every score follows from it.
scores = segae.evaluate_model(
    model,
    test.images,
    test.masks,
    classes=description.classes,
    mean=description.mean,
    std=description.std,
    device=segae.choose_device("auto"),
)
print(f"{len(test.images)} test images")
for name, value in scores.as_row().items():
    print(f"{name:>16}  {value:.3f}")
