"""Pretraining methods: autoencoding and pseudo-masks, each one registered frozen dataclass."""

from segae.methods.autoencoding import TARGETS as TARGETS
from segae.methods.base import Method as Method
from segae.methods.base import create_autoencoder as create_autoencoder
from segae.methods.base import create_method as create_method
from segae.methods.base import list_methods as list_methods
from segae.methods.base import method_names as method_names
from segae.methods.base import method_table as method_table
from segae.methods.base import register_method as register_method
from segae.methods.base import setting as setting
from segae.methods.corruptions import Corrupted as Corrupted
from segae.methods.corruptions import PatchDifficulty as PatchDifficulty
from segae.methods.corruptions import VisiblePatches as VisiblePatches
from segae.methods.corruptions import average_patches as average_patches
from segae.methods.corruptions import hide_patches as hide_patches
from segae.methods.corruptions import spread_patches as spread_patches
from segae.methods.losses import CRITERIA as CRITERIA
from segae.methods.losses import criterion_loss as criterion_loss
from segae.methods.losses import pixel_loss as pixel_loss
from segae.methods.penalties import estimate_jacobian_norm as estimate_jacobian_norm
from segae.methods.penalties import gaussian_kl as gaussian_kl
from segae.methods.penalties import jacobian_norm as jacobian_norm
from segae.methods.penalties import kl_to_rate as kl_to_rate
from segae.methods.pseudo_masks import PseudoMasks as PseudoMasks
from segae.methods.pseudo_masks import WeightedSums as WeightedSums
from segae.methods.pseudo_masks import cut_out as cut_out
from segae.methods.pseudo_masks import within_covariance as within_covariance
