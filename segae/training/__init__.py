"""Training on fastai Learners: schedules, callbacks, the resumable loop, run folders and several processes."""

from segae.training.callbacks import DrawPictures, epoch_line
from segae.training.checkpoints import KeepBest
from segae.training.cost import measure_cost
from segae.training.device import choose_device, limit_threads, prepare_device
from segae.training.distributed import init_distributed, rank
from segae.training.fit import fit
from segae.training.initialization import fit_lpft_head, recalibrate_batchnorm
from segae.training.learner import pretraining_learner, segmentation_learner
from segae.training.loggers import ExperimentLogger, check_loggers
from segae.training.memory import is_out_of_memory
from segae.training.run import open_result_folder, open_run_folder, provenance, read_metrics, seed_everything
from segae.training.schedule import Phase, finetune_defaults, freeze_finetune_phases, pretraining_phases

__all__ = [
    "DrawPictures", "ExperimentLogger", "KeepBest", "Phase", "check_loggers", "choose_device", "epoch_line",
    "finetune_defaults", "fit", "fit_lpft_head", "freeze_finetune_phases", "init_distributed", "is_out_of_memory",
    "limit_threads", "measure_cost", "open_result_folder", "open_run_folder", "prepare_device", "pretraining_learner",
    "pretraining_phases", "provenance", "rank", "read_metrics", "recalibrate_batchnorm", "seed_everything",
    "segmentation_learner",
]  # fmt: skip
