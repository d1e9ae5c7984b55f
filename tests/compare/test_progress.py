from lightning_biaskd.compare import progress
from lightning_biaskd.compare.progress import MatrixProgress


def test_the_time_left_goes_by_the_share_that_is_done(monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with MatrixProgress(done=5, missing=10) as matrix:
        assert matrix.left({}, waiting=10) == ""
        now = 600.0
        assert matrix.left({"a": 0.5, "b": 0.5}, waiting=6) == "about 23 min left"  # 3 of 10 in 10 minutes
        now = 6000.0
        assert matrix.left({"a": 0.0}, waiting=8) == "about 15 h 00 min left"
        assert matrix.left({}, waiting=0) == ""


def test_lines_count_runs_that_were_done_before(capsys):
    with MatrixProgress(done=5, missing=10) as matrix:
        matrix.show({"a": 0.5}, waiting=3)
        matrix.told("kd, seed 0: 90.00 %", {"a": 0.5}, waiting=3)
    out = capsys.readouterr().out
    assert "5 of 15 runs were done before" in out
    assert "[11 of 15 runs, about 1 min left] kd, seed 0: 90.00 %" in out


def test_a_line_in_a_log_is_one_line(capsys):
    with MatrixProgress(done=0, missing=10) as matrix:
        matrix.told("a row with a long name, another axis with a long name, seed 0: 50.95 % in 0:47", {}, waiting=9)
    assert len(capsys.readouterr().out.split("\n\n")[0].splitlines()) == 1
