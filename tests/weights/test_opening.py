"""One way to open a model: whatever names it, and wherever it is asked for."""

import dataclasses
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bilevel_jax import errors, evaluate, generate, train, weights
from bilevel_jax.runs import directory as run_directory
from bilevel_jax.training import run
from bilevel_jax.weights import gguf, safetensors_files
from tests import gguf_files, tiny_run
from tests.weights import directories


@pytest.fixture(scope="module")
def first(directory):
  """Directory of a run that came to its end."""
  settings = tiny_run.parsed(directory, "first", steps=1)
  return train.run(settings).files.path


def test_a_run_is_trained_on_from_its_export(directory, first):
  opened, export = weights.open(str(first)), weights.open(str(first / "export"))
  assert opened.fingerprint() == export.fingerprint()
  start = weights.open(str(directory / "policy"))
  assert opened.fingerprint() != start.fingerprint()
  settings = tiny_run.parsed(
    directory, "second", steps=1, model__weights=str(first)
  )
  before = run.gather(settings, scorer=mock.Mock()).state.base
  directories.assert_same_bits(before, export.read(None))
  assert train.run(settings).number == 1
  _, state, _ = tiny_run.last_state(settings)
  moved = jax.tree.map(lambda x, y: np.any(x != y), before, state.base)
  assert all(jax.tree.leaves(moved))


def test_a_run_that_left_no_export_is_refused_wherever_it_is_named(
  directory, tmp_path, capsys
):
  path = tmp_path / "unfinished"
  settings = tiny_run.parsed(directory, "none")
  files = run_directory.prepare(path, settings, resume=False)
  files.start(settings, 0)
  sentence = f"{path} is a run that has left no export: "
  for changes in (
    {"model__weights": str(path)},
    {"method__name": "kdrl", "method__expert__weights": str(path)},
  ):
    with pytest.raises(errors.ConfigError, match=sentence):
      train.run(tiny_run.parsed(directory, "new", **changes))
  named = ["--weights", str(path)]
  (tmp_path / "gsm8k_test.jsonl").write_text(
    '{"id": "a", "question": "1+1", "answer": "2"}'
  )
  evaluated = [*named, "--out", str(tmp_path / "out"), "--data", str(tmp_path)]
  for main, arguments in (
    (generate.main, [*named, "--prompt", "1+1"]),
    (evaluate.main, [*evaluated, "--benchmarks", "gsm8k"]),
  ):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}")
    assert said.count("\n") == 1


def test_opening_reads_no_weights(directory, tmp_path, monkeypatch):
  file = tmp_path / "m.gguf"
  tensors = gguf_files.random_tensors(gguf_files.ARCHITECTURE)
  gguf_files.write(file, tensors)

  def read(*_):
    raise AssertionError("weights were read")

  monkeypatch.setattr(safetensors_files.Tensor, "__getitem__", read)
  monkeypatch.setattr(gguf.gguf, "dequantize", read)
  for source in (directory / "policy", file):
    opened = weights.open(str(source))
    assert opened.architecture.layers == 2
    with pytest.raises(AssertionError, match="weights were read"):
      opened.read(None)


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"num_hidden_layers": 10**6}, "20 tensors, too few for 1000000 layers"),
    ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight"),
    ({"num_hidden_layers": 1}, "tensors that the architecture does not have"),
    ({"vocab_size": 97}, r"must have shape \[97, \d+\], got \[\d+, \d+\]"),
    ({"head_dim": 2}, r"k_proj.weight must have shape"),
    (
      {"intermediate_size": 10**12},
      r"must have shape \[16, 1000000000000\], got",
    ),
    ({"tie_word_embeddings": False}, "lacks 1 of 21 .* lm_head.weight"),
  ],
)
def test_tensors_are_compared_with_their_description_when_opened(
  changes, sentence, directory, tmp_path
):
  copied = shutil.copytree(directory / "policy", tmp_path / "policy")
  directories.edit_json(copied / "config.json", **changes)
  with pytest.raises(errors.ConfigError, match=sentence):
    weights.open(str(copied))


def test_a_gguf_file_is_read_onto_the_devices_that_are_asked_for(tmp_path):
  file = tmp_path / "m.gguf"
  tensors = gguf_files.random_tensors(gguf_files.ARCHITECTURE)
  opened = weights.open(str(gguf_files.write(file, tensors)))
  mesh = jax.make_mesh((4,), ("fsdp",))
  split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
  whole = opened.read(None)
  shardings = jax.tree.map(
    lambda x: split if x.ndim > 1 else NamedSharding(mesh, PartitionSpec()),
    whole,
  )
  read = opened.read(shardings)
  directories.assert_same_bits(read, whole)
  assert read["layers"]["q"]["kernel"].sharding == split


def test_a_gguf_file_is_trained_with_the_tokenizer_inside(tmp_path):
  file, count = tmp_path / "m.gguf", 0

  def edit(writer):
    nonlocal count
    count = len(gguf_files.add_tokenizer(writer, "smollm"))

  edit(gguf_files.gguf.GGUFWriter(None, "llama"))
  tensors = gguf_files.random_tensors(
    dataclasses.replace(gguf_files.ARCHITECTURE, vocab_size=count)
  )
  gguf_files.write(file, tensors, edit=edit)
  settings = tiny_run.parsed(tmp_path, "run", model__weights=str(file))
  settings = dataclasses.replace(
    settings, data=dataclasses.replace(settings.data, max_prompt_tokens=64)
  )
  gathered = run.gather(settings, scorer=mock.Mock())
  directories.assert_same_bits(
    gathered.state.base, weights.open(str(file)).read(None)
  )
  assert gathered.model.tokenizer.files == tmp_path / "run" / "tokenizer"
  assert gathered.model.tokenizer.decode([0]) == gguf_files.ALPHABET[0]
