"""The benchmark's arithmetic, its protocol, and that both sides do the work."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import rollout
from benchmarks.peers import bilevel_jax_rollout, contestants, workloads
from bilevel_jax.models import presets
from bilevel_jax.training import throughput
from bilevel_jax.weights import huggingface_config
from tests import processes, tiny_run
from tests.models import tiny

TINY = dataclasses.replace(presets.get("tiny-qwen3"), layers=1)


@pytest.fixture
def fakes(monkeypatch):
  for name in ("OURS", "TUNIX", "TRANSFORMERS"):
    monkeypatch.setattr(contestants, name, "tests.benchmarks.fake_contestant")


def run(*arguments):
  return rollout.main([*map(str, arguments), "--repeats", "3"])


def test_figures_are_medians_of_the_pairs_without_the_first(
  fakes, tmp_path, capsys
):
  file = tmp_path / "figures.json"
  assert run("--peer", sys.executable, "--rows", "4,2", "--json", file) == 0
  figures = json.loads(file.read_text())
  names = ["uniform, 4 x 64", "uniform, 2 x 64", "long tail, 256 x 8..512"]
  assert [row["workload"] for row in figures["rows"][::2]] == names
  ours, tunix = figures["rows"][:2]
  assert (ours["contestant"], tunix["contestant"]) == ("ours", "tunix")
  assert ours["useful_tokens_per_s"] == 4 * 64
  assert tunix["useful_tokens_per_s"] == 4 * 64 / 4
  assert tunix["ours_over_it"] == 4
  assert tunix["ours_over_it_range"] == [3, 9]
  assert tunix["padded_share"] == 0.5
  assert tunix["first_seconds"] == 99
  assert tunix["compilations"] == 7
  assert tunix["compilations_while_timed"] == 0
  # K and V of 4 layers with 2 heads of 64 numbers in float32.
  assert ours["cache_share_of_static"] == (1 << 20) / (
    4 * (16 + 64) * 2 * 4 * 2 * 64 * 4
  )
  shown = capsys.readouterr().out
  assert "3.00..9.00" in shown
  assert "fake, NVIDIA H200, 5 parameters" in shown


def test_variants_of_ours_are_contestants_with_their_own_flags(
  fakes, tmp_path, monkeypatch
):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  chosen = rollout._parse(
    ["--layers", "unrolled,scanned", "--command-buffers", "on,off"]
  )
  plans = contestants.plans(chosen)
  assert [plan.label for plan in plans] == [
    "ours, unrolled, buffers on",
    "ours, unrolled, buffers off",
    "ours, scanned, buffers on",
    "ours, scanned, buffers off",
  ]
  assert plans[1].environment == {
    "XLA_FLAGS": "--xla_gpu_enable_command_buffer="
  }
  assert plans[2].options == {"layers": "scanned"}


def test_roofline_is_that_of_a_loop_over_steps(fakes, tmp_path):
  lengths, prompt = [3, 7, 7, 1], 5
  bandwidth, flops = 1e9, 2e10
  a = TINY
  weights = a.width * a.vocab_size + a.layers * (
    2 * a.width * a.heads * a.head_dim  # q, o
    + 2 * a.width * a.kv_heads * a.head_dim  # k, v
    + 3 * a.width * a.mlp_width
  )
  expected = 0.0
  for step in range(max(lengths)):
    rows = [length for length in lengths if length > step]
    expected += max(
      2 * weights / bandwidth, 2 * len(rows) * weights / flops
    ) + sum(
      (prompt + step) * 2 * 2 * a.layers * a.kv_heads * a.head_dim / bandwidth
      for _ in rows
    )
  given = {"bandwidth": bandwidth, "flops": flops}
  assert workloads.roofline_seconds(
    TINY, lengths, prompt, bytes_per_number=2, **given
  ) == pytest.approx(expected)
  # Where products take the longest, a batch of 100 takes 100 times as long.
  one, hundred = (
    workloads.roofline_seconds(
      TINY, [9] * n, 0, bytes_per_number=2, bandwidth=1e30, flops=flops
    )
    for n in (1, 100)
  )
  assert hundred == pytest.approx(100 * one)
  file = tmp_path / "figures.json"
  run(
    *("--dtype", "bfloat16", "--preset", "smollm2-135m", "--json", file),
    *("--workloads", "uniform"),
  )
  (row,) = json.loads(file.read_text())["rows"]
  least = workloads.roofline_seconds(
    presets.get("smollm2-135m"),
    [64] * 32,
    16,
    bytes_per_number=2,
    bandwidth=4.8e12,
    flops=989e12,
  )
  assert row["roofline_share"] == pytest.approx(least / 1.0)


@pytest.mark.parametrize(
  ("device", "bandwidth"),
  [
    ("NVIDIA H100 80GB HBM3", 3.35e12),
    ("TPU v5 lite", 0.82e12),
    ("TPU v5p", 2.77e12),
    ("cpu", None),
  ],
)
def test_devices_are_known_by_their_longest_name(device, bandwidth):
  limits = throughput.limits(device)
  assert (limits and limits[0]) == bandwidth


def test_long_tail_is_the_same_in_every_run_and_has_a_long_tail():
  lengths = workloads.long_tail(256)
  assert lengths == workloads.long_tail(256)
  assert 85 < np.median(lengths) < 107
  assert (min(lengths), max(lengths)) == (8, 512)
  # What a static sampler pays, in batches of 32 in the order given.
  slots = sum(32 * max(lengths[i : i + 32]) for i in range(0, 256, 32))
  assert slots > 2.5 * sum(lengths)


def test_our_rows_end_where_they_must(tmp_path):
  fields = huggingface_config.config_fields(TINY, "float32", {})
  (tmp_path / "config.json").write_text(json.dumps(fields))
  run, about = bilevel_jax_rollout.set_up(
    {
      "model": str(tmp_path),
      "random": True,
      "dtype": "float32",
      "options": {},
    }
  )
  assert about["parameters"] > 0
  lengths = [1, 34, 2, 31]  # past a segment, and past a smaller batch
  prompts = np.random.default_rng(0).integers(1, TINY.vocab_size, (4, 5))
  prompts[:, 1] = lengths
  request = {
    "prompts": prompts.tolist(),
    "lengths": lengths,
    "budget": 40,
    "eos_ids": [0],
    "temperature": 1.0,
  }
  answers = [run({**request, "seed": seed}) for seed in (1, 2)]
  for answer in answers:
    assert answer["lengths"] == lengths
    assert answer["slots"] == 4 * 32 + 1 * 2
    for tokens in answer["tokens"]:
      assert tokens[-1] == 0
      assert 0 not in tokens[:-1]
  assert answers[0]["tokens"] != answers[1]["tokens"]
  assert answers[0]["compilations"] > 0
  assert answers[1]["compilations"] == 0


def test_scanned_layers_give_what_unrolled_ones_do():
  architecture = presets.get("tiny-qwen3")
  policy = tiny.make(architecture)
  base, adapter = tiny.weights(policy)
  tokens = np.random.default_rng(0).integers(1, 96, (2, 5))
  first = np.array([0, 2])
  results = []
  for one in (policy, bilevel_jax_rollout.scanned(policy, architecture)):

    @jax.jit
    def forward(base, adapter, one=one):
      weights, cache = one.merge(base, adapter), one.init_cache(2, 8)
      hidden = []
      for start, stop in ((0, 4), (4, 5)):
        positions = np.arange(start, stop)[None] - first[:, None]
        out, cache = one.extend(
          weights, cache, tokens[:, start:stop], positions, start, first
        )
        hidden.append(one.logits(weights, out))
      return jnp.concatenate(hidden, 1)

    # What padding sees is nobody's business.
    results.append(np.asarray(forward(base, adapter))[:, 2:])
  np.testing.assert_allclose(*results, atol=1e-5)
  assert np.abs(results[0]).max() > 0.1


@pytest.mark.parity
def test_transformers_continues_as_we_do(tmp_path):
  pytest.importorskip("torch")
  from benchmarks.peers import transformers_rollout

  directory = tiny_run.weights(tmp_path)
  set_up = {"model": str(directory), "random": False, "dtype": "float32"}
  request = {
    "prompts": [[5, 6, 7], [9, 3, 3, 3, 8, 2], [4]],
    "lengths": None,
    "budget": 12,
    "eos_ids": [1],
    "batch": 2,
    "temperature": 0.0,
    "seed": 0,
  }
  answers = []
  for contestant in (bilevel_jax_rollout, transformers_rollout):
    run, about = contestant.set_up({**set_up, "options": {}})
    answers.append((about["parameters"], run(request)["tokens"]))
  assert answers[0] == answers[1]
  prompts = np.random.default_rng(0).integers(2, 60, (3, 4))
  prompts[:, 1] = [3, 2, 4]
  forced = request | {"prompts": prompts.tolist(), "lengths": [3, 2, 4]}
  answer = run(forced | {"temperature": 1.0})
  assert answer["lengths"] == [3, 2, 4]
  assert answer["slots"] == 2 * 3 + 4


@pytest.mark.parametrize(
  ("arguments", "fake", "sentence"),
  [
    (["--weights", "no/such/place/at/all"], "", "no/such/place/at/all is not"),
    (["--preset", "tiny"], "", "must be one of"),
    (["--preset", "tiny-qwen3"], "", "must have a token for each length up to"),
    (["--weights", "x", "--peer", "y"], "", "--weights must stand without"),
    (["--tflops", "1"], "", "must be given together"),
    (["--peer", "no/python"], "", "must have a Python interpreter"),
    (
      ["--peer", sys.executable],
      "fails",
      "tunix ended with code 1: RuntimeError: no memory left",
    ),
    (["--peer", sys.executable], "short", "must make completions of the len"),
  ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_2(
  arguments, fake, sentence, fakes, monkeypatch, capsys
):
  monkeypatch.setenv("FAKE", fake)
  assert run(*arguments) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: ")
  assert sentence in said
  assert said.count("\n") == 1


def test_the_script_starts_anywhere_and_explains_itself(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      processes.ROOT / "benchmarks" / "rollout.py",
      "--help",
    ],
    cwd=tmp_path,
    env={"PYTHONPATH": str(processes.ROOT)},
    capture_output=True,
    text=True,
    timeout=processes.PATIENCE_S,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "--peer PYTHON" in done.stdout
