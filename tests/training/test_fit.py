"""Training to the end, stopping in between, and going on as if nothing had happened."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from segae.errors import SegaeError
from segae.training.callbacks import Callback
from segae.training.checkpoint import load_resume_file, save_resume_file
from segae.training.fit import fit
from segae.training.loaders import make_loaders
from segae.training.schedule import make_phases, make_pretraining_phases


class KillAfter(Callback):
    """Ends the process, as far as a test can, right after an epoch was saved."""

    order = 75

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def after_epoch(self) -> None:
        if len(self.learn.epoch_clock.log) == self.epochs:
            raise KeyboardInterrupt


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def without_times(log: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if "second" not in key} for row in log]


@pytest.mark.parametrize("killed_after", [1, 2, 3, 4])
def test_resumed_segmentation_is_bit_for_bit_the_uninterrupted_one(segmentation, tmp_path, killed_after):
    whole = segmentation()
    expected = fit(whole, make_phases(1, 3))
    first = segmentation()
    first.add_cb(KillAfter(killed_after))
    with pytest.raises(KeyboardInterrupt):
        fit(first, make_phases(1, 3), resume_file=tmp_path / "resume.pt")
    torch.rand(7)  # a new process would not have this process's random state
    second = segmentation(seed=0)
    log = fit(second, make_phases(1, 3), resume_file=tmp_path / "resume.pt", resume=True)
    assert same(whole.model, second.model)
    assert without_times(log) == without_times(expected)


def test_resumed_pretraining_is_bit_for_bit_the_uninterrupted_one(pretraining, tmp_path):
    phases = make_pretraining_phases(3, 1e-3)
    whole = pretraining()
    expected = fit(whole, phases)
    first = pretraining()
    first.add_cb(KillAfter(2))
    with pytest.raises(KeyboardInterrupt):
        fit(first, phases, log_csv=tmp_path / "log.csv", resume_file=tmp_path / "resume.pt")
    second = pretraining()
    log = fit(second, phases, log_csv=tmp_path / "log.csv", resume_file=tmp_path / "resume.pt", resume=True)
    assert same(whole.model, second.model)
    assert without_times(log) == without_times(expected)
    assert list(pd.read_csv(tmp_path / "log.csv")["epoch"]) == [1, 2, 3]


def test_a_resumed_stream_hears_where_all_ranks_were(segmentation, tmp_path):
    resume, told = tmp_path / "resume.pt", []
    learner = segmentation()
    learner.dls.train.dataset.state_dict = lambda: {"rank": 0}
    fit(learner, make_phases(0, 1), resume_file=resume)
    content = load_resume_file(resume)
    save_resume_file(resume, {**content, "streams": [*content["streams"], {"rank": 1}]})
    learner = segmentation()
    learner.dls.train.dataset.load_state_dict = lambda *states: told.append(states)
    fit(learner, make_phases(0, 1), resume_file=resume, resume=True)
    assert told == [({"rank": 0}, [{"rank": 0}, {"rank": 1}])]


def test_seeds_decide_order_and_corruption_too(pretraining):
    """The same weights to begin with: what differs afterwards comes from the seed of the training."""
    one, same_seed, other = pretraining(seed=0), pretraining(seed=0), pretraining(seed=1)
    other.model.load_state_dict(one.model.state_dict())
    for learner in (one, same_seed, other):
        fit(learner, make_pretraining_phases(1, 1e-3))
    assert same(one.model, same_seed.model)
    assert not same(one.model, other.model)


def test_training_learns_something(segmentation, pretraining):
    learner = segmentation()
    log = fit(learner, make_phases(1, 8, lr=1e-2))
    assert log[-1]["train_loss"] < 0.8 * log[0]["train_loss"]
    assert log[-1]["miou"] > log[0]["miou"]
    log = fit(pretraining("reconstruct"), make_pretraining_phases(12, 3e-3))
    assert log[-1]["train_loss"] < 0.95 * log[0]["train_loss"]


class Poison(Callback):
    """Makes the weights useless in an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch_poisoned = epoch

    def before_train(self) -> None:
        if self.learn.epoch_clock.now == self.epoch_poisoned:
            with torch.no_grad():
                next(self.learn.model.decoder.parameters()).fill_(float("nan"))


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_epoch(segmentation, tmp_path):
    learner = segmentation()
    learner.add_cb(Poison(2))
    with pytest.raises(SegaeError, match="loss became nan by step 1 of epoch 3.*--lr"):
        fit(learner, make_phases(1, 3), log_csv=tmp_path / "log.csv", resume_file=tmp_path / "resume.pt")
    state = load_resume_file(tmp_path / "resume.pt")
    assert state["epochs_done"] == 2
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    assert list(pd.read_csv(tmp_path / "log.csv")["epoch"]) == [1, 2]


def test_a_step_that_blows_the_weights_up_is_not_saved(segmentation, tmp_path):
    class BlowUp(Callback):
        def after_batch(self) -> None:
            if self.learn.training and self.learn.epoch_clock.now == 1 and self.learn.iter == self.learn.n_iter - 1:
                with torch.no_grad():
                    next(self.learn.model.decoder.parameters())[0] = float("inf")

    learner = segmentation()
    learner.add_cb(BlowUp())
    with pytest.raises(SegaeError, match="last step of epoch 2"):
        fit(learner, make_phases(1, 1), resume_file=tmp_path / "resume.pt")
    assert load_resume_file(tmp_path / "resume.pt")["epochs_done"] == 1


def test_an_interrupted_batch_leaves_no_autocast_behind(segmentation):
    class Interrupt(Callback):
        def after_pred(self) -> None:
            raise KeyboardInterrupt

    learner = segmentation(precision="bfloat16")
    learner.add_cb(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        fit(learner, make_phases(0, 1))
    assert not torch.is_autocast_enabled("cpu")


def test_a_full_disk_stops_and_keeps_the_last_checkpoint(segmentation, tmp_path, monkeypatch):
    path = tmp_path / "resume.pt"
    learner = segmentation()

    class FillDisk(Callback):
        order = 65

        def after_epoch(self) -> None:
            if self.learn.epoch_clock.now == 1:

                def fail(content, file):
                    file.write(b"half of it")
                    raise OSError(28, "No space left on device")

                monkeypatch.setattr(torch, "save", fail)

    learner.add_cb(FillDisk())
    with pytest.raises(SegaeError, match="No space left on device"):
        fit(learner, make_phases(1, 2), resume_file=path)
    assert load_resume_file(path)["epochs_done"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["resume.pt"]


def test_no_validation_images_means_no_validation_columns(segmentation):
    log = fit(segmentation(valid=0), make_phases(0, 1))
    assert "valid_loss" not in log[0]
    assert "miou" not in log[0]


def test_bfloat16_autocast_reaches_the_model_and_weights_stay_float32(segmentation):
    kinds = []
    learner = segmentation(precision="bfloat16")
    learner.model.segmentation_head.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    log = fit(learner, make_phases(0, 1))
    assert torch.bfloat16 in kinds
    assert all(parameter.dtype == torch.float32 for parameter in learner.model.parameters())
    assert log[0]["train_loss"] == pytest.approx(fit(segmentation(), make_phases(0, 1))[0]["train_loss"], rel=0.1)


def test_a_resume_file_of_another_model_is_refused(segmentation, tmp_path):
    fit(segmentation(), make_phases(0, 1), resume_file=tmp_path / "resume.pt")
    with pytest.raises(SegaeError, match="another model"):
        fit(
            segmentation(architecture="test_efficientnet"),
            make_phases(0, 2),
            resume_file=tmp_path / "resume.pt",
            resume=True,
        )


def test_a_damaged_resume_file_is_refused(tmp_path):
    path = tmp_path / "resume.pt"
    save_resume_file(path, {"model": {"a": torch.ones(1000)}})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SegaeError, match=r"damaged.*--overwrite"):
        load_resume_file(path)


def test_a_resume_file_never_runs_code(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "resume.pt"
    path.write_bytes(pickle.dumps({"format": 1, "model": Evil()}))
    with pytest.raises(SegaeError, match=r"resume\.pt"):
        load_resume_file(path)
    assert not (tmp_path / "ran").exists()


def test_a_batch_of_one_value_is_refused_in_words(segmentation):
    learner = segmentation()
    items = learner.dls.train.dataset
    items.items[:] = [(image[:, :32, :32], mask[:32, :32]) for image, mask in items.items]
    learner.dls.loaders[0] = make_loaders(items, None, batch_size=1, device=torch.device("cpu"), seed=0).train
    with pytest.raises(SegaeError, match=r"single value for a channel.*--batch-size"):
        fit(learner, make_phases(0, 1))


def test_a_weight_decay_that_grows_the_weights_is_refused(segmentation, pretraining):
    for make in (segmentation, pretraining):
        with pytest.raises(SegaeError, match=r"weight_decay is -0\.1; wanted 0 or more"):
            make(weight_decay=-0.1)
