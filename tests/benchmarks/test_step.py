"""The update benchmark: the same work for all, figures as it says."""

import json
import sys

import numpy as np
import pytest

from benchmarks import step
from benchmarks.peers import contestants, updates
from bilevel_jax.weights import huggingface_config
from tests import tiny_run


def test_works_are_what_the_page_says():
  works = {work.name: work for work in updates.works(list(updates.NAMES), 900)}
  assert list(works) == list(updates.NAMES)
  full, real = works["grpo, full length"], works["grpo, real lengths"]
  assert {
    (len(p), len(c))
    for p, c in zip(full.prompts, full.completions, strict=True)
  } == {(64, 192)}
  assert all(full.advantages)
  groups = np.array(real.advantages).reshape(-1, 8)
  assert [bool(group.any()) for group in groups] == [True, True, False] * 3
  for first in range(0, len(real.prompts), 8):
    assert all(p == real.prompts[first] for p in real.prompts[first:][:8])
  lengths = [len(c) for c in real.completions]
  assert min(lengths) < 16
  assert max(lengths) == 512
  bridge = works["bridge, real lengths"]
  fifth = sum(len(p) + len(s) for p, s in bridge.demonstrations)
  rollouts = bridge.tokens - fifth
  assert 0.2 * rollouts <= fifth < 0.2 * rollouts + 400
  assert min(min(p) for p in real.prompts) > 0  # 0 is padding


def test_figures_are_medians_of_pairs_and_ratios_to_our_grpo(
  tmp_path, monkeypatch, capsys
):
  seconds = {"grpo": 2.0, "bridge": 5.0}
  monkeypatch.setattr(step, "_plans", lambda _: ["ours", "tunix"])

  class Pretending:
    def __init__(self, plan, set_up):
      self._label = plan
      self.about = {"name": "fake", "device": "NVIDIA H200", "parameters": 5}

    __str__ = lambda self: self._label
    __enter__ = lambda self: self
    __exit__ = lambda self, *_: None

    def run(self, request):
      slow = 1 if self._label == "ours" else [99, 3, 9, 4][request["seed"]]
      return {
        "seconds": slow * seconds[request["method"]],
        "flops": 989e12 if self._label == "ours" else None,
        "padded_share": 0.25,
        "compilations": 7 if request["seed"] == 0 else 0,
        "bytes": 1 << 20,
      }

  monkeypatch.setattr(contestants, "Contestant", Pretending)
  file = tmp_path / "figures.json"
  asked = "grpo, full length; bridge, full length"
  arguments = ["--updates", asked, "--repeats", "3", "--json", str(file)]
  assert step.main(arguments) == 0
  ours, tunix, bridge = json.loads(file.read_text())["rows"]
  assert ours["useful_tokens_per_s"] == 32 * 256 / 2
  assert ours["mfu"] == 0.5
  assert tunix["ours_over_it"] == 4
  assert tunix["ours_over_it_range"] == [3, 9]
  assert bridge["contestant"] == "ours"  # the peer has no such method
  assert bridge["over_grpo"] == 2.5
  shown = capsys.readouterr().out
  assert "3.00..9.00" in shown
  assert "2.50" in shown


def test_an_unknown_update_is_refused(capsys):
  with pytest.raises(SystemExit, match="2"):
    step.main(["--updates", "dpo"])
  assert "got 'dpo'" in capsys.readouterr().err


def test_our_contestant_does_the_work_it_is_asked_for(tmp_path):
  """A process as the benchmark starts it, on a tiny model."""
  fields = huggingface_config.config_fields(
    tiny_run.ARCHITECTURE, "float32", {"eos_token_id": 1}
  )
  (tmp_path / "config.json").write_text(json.dumps(fields), "utf-8")
  plan = contestants.Plan(
    "ours", sys.executable, "benchmarks.peers.bilevel_jax_step", {}, {}
  )
  set_up = {
    "model": str(tmp_path),
    "dtype": "float32",
    "micro_batch_tokens": 512,
    "row_tokens": 64,
    "logprob_chunk": 64,
  }
  work = updates.Work(
    name="bridge, tiny",
    method="bridge",
    prompts=[[5, 6, 7]] * 4,
    completions=[[8] * n for n in (3, 9, 4, 5)],
    advantages=[1.0, -1.0, 0.0, 0.5],
    demonstrations=[([5, 6], [7, 8, 9])],
  )
  with contestants.Contestant(plan, set_up) as contestant:
    answers = [contestant.run(work.request(seed)) for seed in (0, 1)]
  assert answers[0]["bytes"] > 0
  assert answers[0]["compilations"] > 0
  assert answers[1]["bytes"] is None
  assert answers[0]["flops"] == answers[1]["flops"] > 0
