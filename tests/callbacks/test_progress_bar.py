import io
import logging
import pickle
import re
import sys
from types import SimpleNamespace

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer
from rich.console import Console
from tiny import TinyData, network

from lightning_biaskd import ClassificationModule, DistillationModule
from lightning_biaskd.callbacks import DistillationProgressBar, ResultTable, progress_bar, progress_line
from lightning_biaskd.callbacks.progress_line import rendered


def distillation():
    return DistillationModule(network(), network())


def fit(trainer, module, bar=None, *callbacks, **kwargs):
    run = trainer(callbacks=[*callbacks, bar or DistillationProgressBar()], enable_progress_bar=True, **kwargs)
    run.fit(module, TinyData())
    return run


class Shown(Callback):
    """What the bar shows after each step."""

    def __init__(self, bar):
        self.bar = bar
        self.after = []

    def on_train_batch_end(self, trainer, module, *_):
        self.after.append(dict(self.bar.get_metrics(trainer, module)))


def shown(trainer, module, **kwargs):
    bar = DistillationProgressBar()
    watcher = Shown(bar)
    fit(trainer, module, bar, watcher, **kwargs)
    return watcher.after


def test_student_teacher_and_gap_are_shown(trainer):
    last = shown(trainer, distillation(), max_epochs=2, log_every_n_steps=2)[-1]
    assert set(last) == {"loss", "student", "teacher", "gap"}
    student, teacher, gap = (float(last[name].rstrip("%")) for name in ("student", "teacher", "gap"))
    assert abs(student - teacher - gap) < 0.11
    assert last["gap"][0] in "+-"


def test_without_a_teacher_it_shows_the_accuracy(trainer):
    assert set(shown(trainer, ClassificationModule(network()), max_epochs=2, log_every_n_steps=1)[-1]) == {
        "loss",
        "accuracy",
    }


def test_it_looks_only_where_something_is_logged(trainer):
    after = shown(trainer, distillation(), log_every_n_steps=3, limit_val_batches=0)
    losses = [metrics.get("loss") for metrics in after]
    assert losses[0] is None
    assert losses[2] == losses[3] == losses[4] != losses[5]


def test_a_pipe_gets_one_line_per_epoch_as_it_ends(trainer, capsys):
    class Printed(Callback):
        def __init__(self):
            self.at_start = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 0:
                self.at_start.append(capsys.readouterr().out.strip())

    printed = Printed()
    fit(trainer, distillation(), None, printed, max_epochs=3)
    words = r"loss \d+\.\d+, student \d+\.\d%, teacher \d+\.\d%, gap [+-]\d+\.\d"
    assert printed.at_start[0] == ""
    assert re.fullmatch(rf"Epoch 1/3: {words}, 0:\d\d an epoch, 0:\d\d left", printed.at_start[1])
    assert re.fullmatch(rf"Epoch 2/3: {words}, 0:\d\d an epoch, 0:\d\d left", printed.at_start[2])
    assert re.fullmatch(rf"Epoch 3/3: {words}, 0:\d\d in all", capsys.readouterr().out.strip())


@pytest.mark.parametrize("off", [{"refresh_rate": 0}, {}])
def test_nothing_is_printed_where_it_is_off(off, trainer, capsys):
    bar = DistillationProgressBar(**off)
    if not off:
        bar.disable()
    fit(trainer, distillation(), bar, max_epochs=2)
    assert capsys.readouterr().out == ""


def test_a_pipe_with_forced_colours_is_a_pipe(trainer, monkeypatch, capsys):
    console = Console(file=sys.stdout, force_terminal=True)
    monkeypatch.setattr(progress_line, "get_console", lambda: console)
    fit(trainer, distillation(), max_epochs=2)
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == ["Epoch 1/2", "Epoch 2/2"]


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns; what it was sent."""
    console = Console(file=Screen(), force_terminal=True, width=80, height=24, _environ={})
    for module in (progress_line, progress_bar, sys.modules["lightning_biaskd.callbacks.result_table"]):
        monkeypatch.setattr(module, "get_console", lambda: console)
    return console.file


def screen(sent):
    """What a terminal shows in the end: the last state of each line that was rewritten or erased."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[\d*[A-Z]|\x1b\[\d*m|\x1b\[[\d;]*[a-z]|\x1b\[\?\d+[hl]|\r|\n|[^\x1b\r\n]+", sent):
        if token == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif token.endswith("A") and token.startswith("\x1b"):
            row -= int(token[2:-1] or 1)
        elif token.startswith("\x1b[2K"):
            lines[row] = ""
        elif not token.startswith("\x1b") and token != "\r":
            lines[row] += token
    return [line.rstrip() for line in lines if line.strip()]


def test_a_terminal_keeps_the_last_epoch_and_one_whole_table(trainer, terminal, capsys):
    run = fit(trainer, distillation(), None, ResultTable(), max_epochs=3)
    run.test(distillation(), TinyData(), verbose=False)
    out = capsys.readouterr().out.strip()
    assert re.fullmatch(r"Epoch 3/3: loss .*0:\d\d in all", out)
    assert len(out) < 80
    left = screen(terminal.getvalue())
    assert left[0].strip() == "On the test images"
    assert [line[0] for line in left[1:3]] == ["┏", "┃"]
    assert not any("Epoch" in line or "Test " in line for line in left)


def test_the_line_is_there_before_anything_is_printed_above_it(terminal):
    line = progress_line.opened(1)
    assert "0/1" in terminal.getvalue()  # Rich's thread draws a second later
    line.close("")


def test_log_messages_stand_above_the_line(trainer, terminal, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    handler = logging.StreamHandler()
    logger = logging.getLogger("somebody")
    logger.addHandler(handler)

    class Speaks(Callback):
        def on_train_batch_end(self, *_):
            logger.warning("a message")

    fit(trainer, distillation(), None, Speaks(), limit_train_batches=1)
    assert stream.getvalue() == ""
    assert "a message" in terminal.getvalue()
    assert handler.stream is stream
    logger.removeHandler(handler)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("total", [18, 5005, float("inf"), 0])
def test_the_line_never_wraps(width, total):
    words = ["12:34:56 left", "loss 12.345", "student 100.0%", "teacher 100.0%", "gap -100.0", "my/own_metric 0.123"]
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    console.print(rendered("Epoch 120/300", 17, total, words, width))
    (line,) = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue()).splitlines()
    assert len(line) <= width
    assert (words[-1] in line) == (width == 200)


def test_a_notebook_has_one_line_without_widgets(trainer, monkeypatch, capsys):
    texts = []
    handle = SimpleNamespace(update=texts.append)
    display = SimpleNamespace(Pretty=str, display=lambda text, display_id: texts.append(text) or handle)
    monkeypatch.setattr(progress_line, "in_notebook", lambda: True)
    monkeypatch.setattr(progress_line, "import_module", lambda name: display)
    fit(trainer, distillation(), max_epochs=2)
    assert any(text.startswith("Epoch 1/2 ") for text in texts)
    assert texts[-1].startswith("Epoch 2/2: loss")
    assert capsys.readouterr().out == ""


def left(trainer, monkeypatch, at, *callbacks, **kwargs):
    """Seconds left at the end of each step, of which each takes ten seconds."""
    now = 0.0
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now)

    class Steps(Callback):
        def on_train_batch_start(self, *_):
            nonlocal now
            now += 10

    bar = DistillationProgressBar()
    found = []
    monkeypatch.setattr(bar, "_show", lambda what, done, total, left=None: found.append(left))
    fit(trainer, distillation(), bar, Steps(), *callbacks, limit_val_batches=0, **kwargs)
    return found[at]


def test_the_time_left_is_that_of_the_whole_run(trainer, monkeypatch):
    assert left(trainer, monkeypatch, 1, max_epochs=4) == pytest.approx(10 * (4 * 6 - 1))
    assert left(trainer, monkeypatch, 1, max_epochs=-1, max_steps=9) == pytest.approx(10 * 8)
    assert left(trainer, monkeypatch, 1, max_epochs=4, max_steps=9) == pytest.approx(10 * 8)
    timer = Timer(duration={"seconds": 30})
    monkeypatch.setattr(timer, "time_remaining", lambda *_: 30.0)
    assert left(trainer, monkeypatch, 1, timer, max_epochs=4) == pytest.approx(30)


def test_it_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(DistillationProgressBar(leave=True))).leave
