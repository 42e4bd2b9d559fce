"""What training runs share: the clock, the learning rate, averaged weights, the log, held-out images."""

import pytest
import torch

from perigee.models.checkpoint import CheckpointError, read_checkpoint
from perigee.training import run
from perigee.training.held_out import is_held_out


def test_the_clock_counts_training_alone(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
    clock = run.Clock(minutes=2, checkpoint_minutes=0.5, seconds=60.0)
    now[0] += 20
    assert not clock.tick() and clock.seconds == 80 and clock.progress == pytest.approx(80 / 120)
    now[0] += 11
    assert clock.tick() and not clock.spent
    now[0] += 1000  # logging and saving
    clock.restart()
    now[0] += 29
    assert clock.tick() and clock.spent and clock.minutes == 2


def test_the_learning_rate_rises_and_falls():
    assert run.warm_up(0) == 0.01 and run.warm_up(99) == run.warm_up(5000) == 1
    falls = [run.cosine_fall(progress, 0.03) for progress in (0, 0.5, 1, 1.2)]
    assert falls == pytest.approx([1, 0.515, 0.03, 0.03])


def test_a_step_with_a_gradient_that_is_not_finite_is_left_out():
    weight = torch.ones(1, requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=1.0)
    run.descend((weight * float("nan")).sum(), optimiser, [weight])
    assert weight.item() == 1
    run.descend((weight * 100).sum(), optimiser, [weight])
    assert weight.item() == pytest.approx(0)  # the norm of the gradient is limited to 1


def test_averaged_weights_follow_faster_in_the_beginning():
    early, late = torch.zeros(1), torch.zeros(1)
    run.follow([early], [torch.ones(1)], 0)
    run.follow([late], [torch.ones(1)], 10**6)
    assert early.item() == pytest.approx(0.9) and late.item() == pytest.approx(0.001)


def test_a_log_has_one_header_and_a_checkpoint_replaces_the_last(tmp_path):
    for number in (1, 2):
        run.append_row(tmp_path / "log.csv", {"step": number, "minutes": 0.5})
        run.save_checkpoint(tmp_path, {"step": number})
        run.record_command(tmp_path, "perigee-train", ["run", str(number)])
    assert (tmp_path / "log.csv").read_text().split() == ["step,minutes", "1,0.5", "2,0.5"]
    assert read_checkpoint(tmp_path / "checkpoint.pt") == {"step": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "commands.log", "log.csv"]
    assert (tmp_path / "commands.log").read_text() == "perigee-train run 1\nperigee-train run 2\n"


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint but a list"):
        read_checkpoint(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.pt")


def test_held_out_images_depend_on_their_names_alone():
    names = [f"{i}.png" for i in range(4000)]
    few, more = ({name for name in names if is_held_out(name, share)} for share in (0.02, 0.04))
    assert few < more and len(more) / len(names) == pytest.approx(0.04, abs=0.01)
