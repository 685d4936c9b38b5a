"""The benchmark of programs a second runs, and judges what it runs."""

import pytest

from benchmarks import sandbox


def test_prints_a_line_for_each_form(capsys):
  assert sandbox.main(["--programs", "6", "--workers", "1"]) == 0
  said = capsys.readouterr().out
  for form in ("fork", *sandbox.FORMS):
    assert f"\n {form}" in said


def test_programs_that_are_judged_wrongly_are_no_figure(monkeypatch):
  tests, right, _ = sandbox.FORMS["calls"]
  monkeypatch.setitem(sandbox.FORMS, "calls", (tests, right, right))
  with pytest.raises(RuntimeError, match="calls: programs are not judged"):
    sandbox.main(["--programs", "4", "--workers", "1"])
