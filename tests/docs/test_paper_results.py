"""What docs/results/bridge_paper.md makes of the paper's tables."""

import math
import pathlib
import re

import numpy as np

PAGE = pathlib.Path(__file__).parents[2] / "docs/results/bridge_paper.md"
QUESTIONS = np.array([500, 272, 675, 30, 40])


def _tables():
  """Model -> row -> the five accuracies and their mean, in percent."""
  found = {}
  for block in PAGE.read_text("utf-8").split("\n\n"):
    if "| MATH500 |" not in block:
      continue
    head, _, *lines = block.splitlines()
    cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in lines]
    found[head.split(",")[0].strip("| ")] = {
      name: np.array(values, float) for name, *values in cells
    }
  return found


def test_each_mean_is_that_of_its_row():
  tables = _tables()
  assert len(tables) == 3
  for rows in tables.values():
    for name, (*five, mean) in rows.items():
      assert abs(np.mean(five) - mean) < 0.11, name


def test_the_pooled_leads_are_those_of_the_tables():
  """Counts of right answers, as accuracies of so many questions give them."""
  text = " ".join(PAGE.read_text("utf-8").split())
  right = {
    model: {
      name: int(np.round(row[:5] / 100 * QUESTIONS).sum())
      for name, row in rows.items()
    }
    for model, rows in _tables().items()
  }
  leads = []
  for counts in right.values():
    others = [n for name, n in counts.items() if name != "BRIDGE"]
    leads.append(100 * (counts["BRIDGE"] - max(others)) / QUESTIONS.sum())
  assert [f"{lead:.1f}" for lead in leads] == ["1.1", "1.6", "2.2"]
  assert "1.1 points (Qwen2.5-3B), 1.6 (Llama) and 2.2 (Qwen3-8B)" in text
  total = QUESTIONS.sum() * len(right)
  shares = [
    sum(counts[name] for counts in right.values()) / total
    for name in ("BRIDGE", "alternating")
  ]
  error = math.sqrt(sum(p * (1 - p) for p in shares) / total)
  assert f"{100 * (shares[0] - shares[1]):.1f}" == "1.7"
  assert f"{100 * error:.1f}" == "1.0"
  assert "alternating by 1.7 points, standard error 1.0" in text
