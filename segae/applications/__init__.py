"""What a frozen encoder or an autoencoder is good for besides segmentation; no fastai in here."""

from segae.applications.anomaly import AnomalyDetector as AnomalyDetector
from segae.applications.clustering import cluster as cluster
from segae.applications.clustering import project as project
from segae.applications.features import Features as Features
from segae.applications.features import check_format as check_format
from segae.applications.features import collect_features as collect_features
from segae.applications.features import compute_features as compute_features
from segae.applications.features import list_images as list_images
from segae.applications.features import open_encoder as open_encoder
from segae.applications.features import require_layer as require_layer
from segae.applications.features import write_features as write_features
from segae.applications.retrieval import ImageIndex as ImageIndex
from segae.applications.selection import select_images as select_images
from segae.applications.visualization import pca_colors as pca_colors
from segae.models import load as load
