"""The log of a run can be read back: what it began with and why, as training wrote it."""

from __future__ import annotations

from selfdet.drawing.run_log import beginnings, events
from selfdet.training.defaults import ASKED, Default, Policy, contrastive_lr, queue_length
from selfdet.training.transfer import TransferReport, TransferRow

FIRST = "fcos on resnet18 from runs/pre; it's here; cpu, fp32, 1 thread, torch 2.14.1+cu130"
REPORT = TransferReport(
    {"backbone": TransferRow(reused=11_186_112), "last": TransferRow(reinitialised=5_190), "rpn": TransferRow()},
    missing=["a.b"],
)


def log(*lines: str) -> str:
    return "\n".join([FIRST, *lines, "about 2 min for the 40 steps to come", "step 10/40  epoch 1  loss 2.4", ""])


def test_the_transfer_table_is_read_as_it_is_written() -> None:
    (found,) = beginnings(log("10 of 20 labelled images", REPORT.table()))
    assert found.transfer == [
        ["backbone", "100.0%", 11_186_112, 0, 0, 0, 0],
        ["last", "0.0%", 0, 5_190, 0, 0, 0],
        ["rpn", "–", 0, 0, 0, 0, 0],
    ]
    assert found.remarks == ["10 of 20 labelled images", "missing: a.b"]
    assert found.words == "fcos on resnet18 from runs/pre; it's here"
    assert found.device == "cpu, fp32, 1 thread, torch 2.14.1+cu130"


def test_choices_are_read_with_their_reasons() -> None:
    rate, queue = contrastive_lr(100, 64, pretrained=False), queue_length(100)
    lines = [rate.line("learning rate"), queue.line("queue length"), Default(8, ASKED).line("batch size")]
    (found,) = beginnings(log(*lines, Policy("frozen", "few (3)").line("batch norm")))
    assert found.choices == {
        "lr": rate.reason,
        "queue_length": queue.reason,
        "batch_size": ASKED,
        "batch_norm": "few (3)",
    }
    assert not found.remarks


def test_each_sitting_has_its_beginning_and_nothing_of_its_course() -> None:
    text = log("continuing after step 3 of 40", "between") + log("warning: beware") + "detector: runs/ft\n"
    first, second = beginnings(text)
    assert first.remarks == []
    assert second.remarks == ["warning: beware"]
    assert beginnings("step 1/2\nsomething else\n") == []


def test_what_befell_a_run_is_found() -> None:
    said = [
        "2 unreadable images of 10 replaced by others: a.jpg, b.jpg",
        "stopped by --max-time at step 3 of 40, saved; the same command with --resume continues it",
        "the loss is not finite at step 7",
    ]
    assert list(events(log(*said))) == said
