"""Images in: reading files, labeled data sets and their splits, the cache, torch data sets and loaders."""

from segae.data.augmentation import FINETUNING_CHANGES, before_random_crops, pretraining_changes
from segae.data.cache import CachedPairs, cache_images, cache_pairs, content_hashes
from segae.data.check import check_folder
from segae.data.datasets import (
    PETS_CLASSES,
    ClassFolders,
    OxfordPets,
    SegmentationDataset,
    SegmentationFolder,
    check_masks,
    download_pets,
    drawn_pets,
    ignore_classes,
    locate_dataset,
    make_palette,
    map_classes,
    open_dataset,
    open_dataset_like,
)
from segae.data.duplicates import Duplicate, find_duplicates
from segae.data.fashion_mnist import download_fashion_mnist
from segae.data.file_lists import Pair, PairList, PathList
from segae.data.folders import find_images
from segae.data.formats import LAYOUTS, find_layouts
from segae.data.gpu import CropAndFlip, GPUImageDataset, MildChange, StrongChange
from segae.data.image_io import (
    SkippedFiles,
    UnavailableFile,
    UnreadableImage,
    read_array,
    read_formatted,
    read_image,
    read_mask,
    read_pair,
    read_resized,
    to_class_indices,
)
from segae.data.labeled_shards import LabeledShards, open_labeled_shards
from segae.data.loaders import make_loaders, set_epoch
from segae.data.normalization import find_kind, measure_normalization, read_picture
from segae.data.report import DataReport, Problem
from segae.data.split_files import choose_by_hash
from segae.data.splits import (
    ExclusionReport,
    find_pretraining_images,
    label_subset,
    split_hash,
    train_val_split,
    unique_names,
)
from segae.data.streaming import is_stream, open_stream, sample_pairs, sample_stream
from segae.data.torch_datasets import CachedImageDataset, CachedPairDataset, LazyImageDataset, LazyPairDataset
from segae.image_format import GRAY, IGNORE_INDEX, ImageFormat, resize_image, resize_mask, to_picture

try:
    from segae.data.transforms import (
        describe_augmentation,
        eval_transform,
        load_augmentation,
        pretrain_transform,
        train_transform,
    )
except ImportError:  # without albumentations
    from segae.data.torchvision_transforms import (
        describe_augmentation,
        eval_transform,
        load_augmentation,
        pretrain_transform,
        train_transform,
    )

__all__ = [
    "FINETUNING_CHANGES", "GRAY", "IGNORE_INDEX", "LAYOUTS", "PETS_CLASSES", "CachedImageDataset", "CachedPairDataset",
    "CachedPairs", "ClassFolders", "CropAndFlip", "DataReport", "Duplicate", "ExclusionReport", "GPUImageDataset",
    "ImageFormat", "LabeledShards", "LazyImageDataset", "LazyPairDataset", "MildChange", "OxfordPets", "Pair",
    "PairList", "PathList", "Problem", "SegmentationDataset", "SegmentationFolder", "SkippedFiles", "StrongChange",
    "UnavailableFile", "UnreadableImage", "before_random_crops", "cache_images", "cache_pairs", "check_folder",
    "check_masks", "choose_by_hash", "content_hashes", "describe_augmentation", "download_fashion_mnist",
    "download_pets", "drawn_pets", "eval_transform", "find_duplicates", "find_images", "find_kind", "find_layouts",
    "find_pretraining_images", "ignore_classes", "is_stream", "label_subset", "load_augmentation", "locate_dataset",
    "make_loaders", "make_palette", "map_classes", "measure_normalization", "open_dataset", "open_dataset_like",
    "open_labeled_shards", "open_stream", "pretrain_transform", "pretraining_changes", "read_array", "read_formatted",
    "read_image", "read_mask", "read_pair", "read_picture", "read_resized", "resize_image", "resize_mask",
    "sample_pairs", "sample_stream", "set_epoch", "split_hash", "to_class_indices", "to_picture", "train_transform",
    "train_val_split", "unique_names",
]  # fmt: skip
