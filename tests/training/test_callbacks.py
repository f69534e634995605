"""Steps of several batches, the log's line, the progress bar, pictures and the validation score."""

import io
import time

import pytest
import torch
from fastai.callback.core import Callback

from segae.training import DrawPictures, epoch_line, fit, freeze_finetune_phases
from tests.training.learners import Tiny, pretraining, segmentation, state

ONE_EACH = freeze_finetune_phases(1, 1)


def trained(batch: int, accumulate: int = 1, images: int = 22) -> tuple[dict[str, torch.Tensor], list[float], list]:
    rates: list[float] = []

    class Rates(Callback):
        order = 90

        def before_step(self) -> None:
            rates.append(self.learn.opt.hypers[-1]["lr"])

    learner = segmentation(Tiny, train=images, valid=0, batch=batch, size=16, accumulate=accumulate)
    learner.add_cb(Rates())
    log = fit(learner, freeze_finetune_phases(1, 2, lr=1e-2))
    return state(learner.model), rates, log["train_loss"].tolist()


@pytest.mark.parametrize(
    ("images", "whole", "batch", "accumulate"),
    [
        (22, 8, 2, 4),  # the last step of an epoch has three parts of four
        (22, 22, 5, 5),  # parts of different sizes count by their images: 5 + 5 + 5 + 5 + 2
        (24, 8, 4, 2),
    ],
)
def test_accumulated_steps_are_those_of_the_whole_batch(images, whole, batch, accumulate):
    expected, rates, losses = trained(whole, images=images)
    found, same_rates, same_losses = trained(batch, accumulate, images=images)
    assert same_rates == pytest.approx(rates, rel=1e-6)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=2e-5, rtol=1e-4, msg=name)
    assert same_losses == pytest.approx(losses, rel=1e-3)


def test_the_penalty_adds_exactly_its_gradient_once_to_a_step():
    learner, added = pretraining(distance_penalty=0.5, accumulate=2), []
    penalty = learner.distance_penalty
    original = penalty.after_backward

    def note() -> None:
        before = [parameter.grad.clone() for parameter in penalty.parameters]
        pull = [0.5 * (p.detach() - start) for p, start in zip(penalty.parameters, penalty.start, strict=True)]
        original()
        parts = zip(penalty.parameters, before, pull, strict=True)
        added.append([torch.allclose(p.grad - one, by, atol=1e-5) for p, one, by in parts])

    penalty.after_backward = note
    for parameter in learner.model.encoder.parameters():
        parameter.data.add_(0.1)  # away from the start, so that the penalty shows
    learner.fit(1)
    assert [all(one) for one in added] == [False, True, True]  # 18 images: 8 + 8, then the 2 that are left
    assert not any(added[0])


def test_the_validation_score_is_that_of_the_whole_set():
    learner = segmentation(valid=11)
    log = fit(learner, freeze_finetune_phases(0, 1))
    images, truths = (torch.stack(part) for part in zip(*learner.dls.valid.dataset.items, strict=True))
    learner.model.eval()
    with torch.no_grad():
        predicted = learner.model(images).argmax(1)
    ious = [((predicted == k) & (truths == k)).sum() / ((predicted == k) | (truths == k)).sum() for k in (0, 1)]
    assert log["miou"].iloc[-1] == pytest.approx(float(sum(ious)) / 2, abs=1e-6)


def test_an_epoch_is_described_in_one_line():
    row = {"epoch": 3, "phase": "full", "train_loss": 0.25, "images_per_second": 12.3, "peak_memory_mb": 456.7}
    line = epoch_line({**row, "valid_loss": 0.5, "miou": 0.75, "rankme": 9.0})
    assert all(part in line for part in ("3", "full", "0.25", "0.5", "0.75", "12 images/s", "457 MB"))
    assert "\n" not in line
    assert "mIoU" not in epoch_line(row)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Slow(Callback):
    def after_batch(self) -> None:
        time.sleep(0.11)  # tqdm draws every 0.1 s


def test_the_bar_shows_speed_loss_and_time_left_on_a_terminal_only(monkeypatch, capsys):
    terminal, learner = Terminal(), segmentation(Tiny, size=16)
    learner.add_cb(Slow())
    monkeypatch.setattr("sys.stderr", terminal)
    fit(learner, ONE_EACH)
    for part in ("epoch 2/2 (full)", "images/s", "loss 0.", "5/6 [00:0"):
        assert part in terminal.getvalue()
    monkeypatch.undo()
    fit(segmentation(Tiny, size=16), ONE_EACH)
    assert capsys.readouterr().err == ""


def test_without_a_report_epochs_are_logged_and_with_one_it_gets_each_row(caplog):
    with caplog.at_level("INFO", "segae"):
        fit(segmentation(Tiny, size=16), ONE_EACH)
        assert [record.message.split()[1] for record in caplog.records] == ["1", "2"]
        caplog.clear()
        rows: list[dict] = []
        fit(segmentation(Tiny, size=16), ONE_EACH, report=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert caplog.records == []


def test_pictures_are_drawn_after_an_epoch_and_a_failure_stops_nothing(caplog):
    def fail() -> None:
        raise OSError("no room")

    for every, expected in ((0, ["one", "one"]), (60, [])):
        drawn: list[str] = []
        learner = segmentation(Tiny, size=16)
        learner.add_cb(DrawPictures([fail, lambda drawn=drawn: drawn.append("one")], every=every))
        fit(learner, ONE_EACH)
        assert drawn == expected
    assert "no room" in caplog.text
