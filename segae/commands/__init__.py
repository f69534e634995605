"""The verbs: settings in, result object and run folder out. The command line calls the same functions."""

from segae.commands.data import check_data, download
from segae.commands.doctor import doctor
from segae.commands.evaluate import evaluate
from segae.commands.export import export
from segae.commands.features import extract_features
from segae.commands.finetune import FinetuneResult, finetune
from segae.commands.predict import predict
from segae.commands.pretrain import PretrainResult, pretrain
from segae.commands.serve import serve
from segae.commands.suggest import suggest

__all__ = [
    "FinetuneResult", "PretrainResult", "check_data", "doctor", "download", "evaluate", "export",
    "extract_features", "finetune", "predict", "pretrain", "serve", "suggest",
]  # fmt: skip
