"""``EncoderFeatures``: a scikit-learn transformer in pipelines, searches and clones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

import segae
from tests.fabricate import make_images


def make_encoder(seed: int, **settings: object) -> segae.EncoderFeatures:
    torch.manual_seed(seed)
    return segae.EncoderFeatures(segae.create_encoder("test_resnet"), image_size=64, device="cpu", **settings)


def stripes(count: int) -> tuple[list[np.ndarray], list[str]]:
    """Images of horizontal and vertical stripes in turn, at random phases and with noise."""
    generator, images = np.random.default_rng(0), []
    for place in range(count):
        wave = 128 + 100 * np.sin(np.arange(64) / 3 + generator.uniform(0, 6))
        image = np.tile(wave[:, None], (1, 64)) if place % 2 else np.tile(wave[None], (64, 1))
        noisy = image[..., None] + generator.normal(0, 20, (64, 64, 3))
        images.append(noisy.clip(0, 255).astype(np.uint8))
    return images, ["across" if place % 2 else "down" for place in range(count)]


@pytest.mark.parametrize("probe", [KNeighborsClassifier(3), LogisticRegression(max_iter=1000)])
def test_probes_learn_from_frozen_features(probe: object) -> None:
    images, labels = stripes(40)
    model = make_pipeline(make_encoder(0, layer=3), probe).fit(images[:24], labels[:24])
    assert model.score(images[24:], labels[24:]) > 0.9


def test_rows_are_those_of_extract_features_and_the_encoder_stays(tmp_path: Path) -> None:
    photos = make_images(tmp_path / "photos", 5, size=64, extension="png")
    features = make_encoder(0, layer=4, pool="max")
    before = {name: tensor.clone() for name, tensor in features.encoder.state_dict().items()}
    values = features.fit_transform(sorted(photos.glob("*.png")))
    expected = segae.extract_features(photos, features.encoder, layer=4, pool="max", image_size=64, device="cpu")
    np.testing.assert_array_equal(values, expected.values)
    assert len(features.get_feature_names_out()) == values.shape[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in features.encoder.state_dict().items())


def test_a_search_over_encoders_chooses_one() -> None:
    images, labels = stripes(24)
    encoders = [make_encoder(seed).encoder for seed in (0, 1)]
    search = GridSearchCV(
        make_pipeline(make_encoder(0), KNeighborsClassifier(3)),
        {"encoderfeatures__encoder": encoders, "encoderfeatures__layer": [2, 5]},
        cv=2,
    ).fit(images, labels)
    assert len(search.cv_results_["params"]) == 4
    assert search.score(images, labels) > 0.9


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator,
        lambda one: estimator_checks.check_parameters_default_constructible("EncoderFeatures", one),
        lambda one: estimator_checks.check_get_params_invariance("EncoderFeatures", one),
        lambda one: estimator_checks.check_no_attributes_set_in_init("EncoderFeatures", one),
        lambda one: estimator_checks.check_estimators_unfitted("EncoderFeatures", one),
    ],
)
def test_scikit_learns_checks_pass(check: object) -> None:
    check(segae.EncoderFeatures("pets_pseudo_masks"))


def test_a_clone_has_the_same_settings() -> None:
    features = segae.EncoderFeatures("pets_pseudo_masks", layer=3, pool="gem", image_size=96)
    assert clone(features).get_params() == features.get_params()


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    photos = make_images(tmp_path / "photos", 3, size=64, extension="png")
    files = sorted(photos.glob("*.png"))
    files[1].write_bytes(b"no picture")
    with pytest.raises(segae.DataError, match=files[1].name):
        make_encoder(0).fit_transform(files)


@pytest.mark.parametrize(
    ("settings", "message"), [({"pool": "none"}, "pool"), ({"layer": 9}, "layer"), ({"encoder": "nowhere"}, "encoder")]
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(segae.SegaeError, match=message):
        make_encoder(0).set_params(**settings).fit_transform(stripes(2)[0])
