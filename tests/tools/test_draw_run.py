"""The picture of a run."""

import json
from xml.etree import ElementTree

from tools import draw_run


def test_the_picture_holds_what_was_logged(tmp_path, capsys):
  run = tmp_path / "run"
  run.mkdir()
  evaluation = {
    "evaluation/correct": 3,
    "evaluation/questions": 7,
    "evaluation/length": 1.0,
    "evaluation/truncated_share": 0.0,
    "evaluation/unscorable": 0,
  }
  lines = [
    {"step": 0, **evaluation},
    {"step": 1, "rl/reward": 0.25, "time/step_s": 60.0},
    {"step": 2, "rl/reward": 0.75, "time/step_s": 60.0},
  ]
  sample = {
    "step": 2,
    "prompt": "1<2?",
    "completion": "yes",
    "answer": "yes",
    "reward": 1.0,
    "finish_reason": "stop",
  }
  write = lambda name, rows: (run / name).write_text(
    "".join(json.dumps(row) + "\n" for row in rows)
  )
  write("metrics.jsonl", lines)
  assert draw_run.main([str(run), "--out", str(tmp_path / "x.svg")]) == 2
  assert "completions.jsonl" in capsys.readouterr().err
  write("completions.jsonl", [sample])
  out = tmp_path / "pictures" / "run.svg"
  assert draw_run.main([str(run), "--out", str(out), "--every", "2"]) == 0
  words = "".join(ElementTree.parse(out).getroot().itertext())
  words = words.replace("\N{NO-BREAK SPACE}", " ")
  for shown in ("42.9%", "1<2?", "reward 0.750", "1m 00s left", "3 of 7"):
    assert shown in words
  assert "font-face" not in out.read_text()
