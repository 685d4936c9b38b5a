"""Hugging Face directories written, against safetensors and transformers."""

import dataclasses
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from bilevel_jax import checksums, errors
from bilevel_jax.weights import huggingface
from tests import processes
from tests.weights import directories

LLAMA = directories.LLAMA


@pytest.fixture
def exported(tmp_path):
  huggingface.export(tmp_path / "hf", LLAMA, directories.base(LLAMA))
  return tmp_path / "hf"


@directories.EVERY
@pytest.mark.parametrize("shard_bytes", [5000, 10**9])
def test_import_export_import_is_bitwise(architecture, shard_bytes, tmp_path):
  base = directories.base(architecture)
  first = huggingface.export(
    tmp_path / "a", architecture, base, shard_bytes=shard_bytes
  )
  read = huggingface.read_architecture(first)
  assert read == architecture
  once = huggingface.load_base(first, read)
  directories.assert_same_bits(once, base)
  second = huggingface.export(
    tmp_path / "b", read, once, shard_bytes=shard_bytes
  )
  directories.assert_same_bits(huggingface.load_base(second, read), base)
  files = sorted(path.name for path in first.glob("*.safetensors"))
  assert (files == ["model.safetensors"]) == (shard_bytes == 10**9)
  for name in files:
    assert (first / name).read_bytes() == (second / name).read_bytes()


def test_tensors_have_the_names_and_orientation_of_torch(tmp_path):
  architecture = directories.UNTIED["qwen2_untied"]
  base = directories.base(architecture)
  huggingface.export(tmp_path, architecture, base)
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  layers = base["layers"]
  expected = {
    "model.embed_tokens.weight": base["embedding"],
    "model.norm.weight": base["final_norm"]["scale"],
    "lm_head.weight": base["head"]["kernel"].T,
  }
  for i in range(architecture.layers):
    start = f"model.layers.{i}."
    for ours, theirs in {
      "attention_norm": "input_layernorm",
      "mlp_norm": "post_attention_layernorm",
    }.items():
      expected[f"{start}{theirs}.weight"] = layers[ours]["scale"][i]
    for target in ("q", "k", "v", "o"):
      name = f"{start}self_attn.{target}_proj"
      expected[f"{name}.weight"] = layers[target]["kernel"][i].T
      if target != "o":
        expected[f"{name}.bias"] = layers[target]["bias"][i]
    for target in ("gate", "up", "down"):
      name = f"{start}mlp.{target}_proj.weight"
      expected[name] = layers[target]["kernel"][i].T
  directories.assert_same_bits(tensors, expected)
  with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
    assert file.metadata() == {"format": "pt"}


def test_bfloat16_export_rounds_to_nearest(tmp_path):
  base = directories.base(LLAMA)
  huggingface.export(tmp_path, LLAMA, base, dtype="bfloat16")
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  stored = tensors["model.embed_tokens.weight"]
  assert stored.dtype == ml_dtypes.bfloat16
  directories.assert_same_bits(
    stored, base["embedding"].astype(ml_dtypes.bfloat16)
  )
  fields = json.loads((tmp_path / "config.json").read_text())
  assert fields["torch_dtype"] == "bfloat16"


def test_adapter_is_merged_into_its_kernels_only(tmp_path):
  base = directories.base(LLAMA)
  adapter = directories.adapter(LLAMA, ("q", "down"))
  huggingface.export(tmp_path, LLAMA, base, adapter, scale=1.5)
  merged = huggingface.load_base(tmp_path, LLAMA)
  for target, factors in adapter.items():
    wanted = base["layers"][target]["kernel"] + 1.5 * np.einsum(
      "lir,lro->lio", factors["A"], factors["B"]
    )
    kernel = merged["layers"][target].pop("kernel")
    del base["layers"][target]["kernel"]
    np.testing.assert_allclose(kernel, wanted, rtol=0, atol=1e-6)
  directories.assert_same_bits(merged, base)


def test_two_processes_export_what_they_loaded(exported, tmp_path):
  out = tmp_path / "out"
  processes.run_pair("tests.weights.two_processes", exported, out)
  name = "model.safetensors"
  assert (out / name).read_bytes() == (exported / name).read_bytes()


def snapshot(directory):
  return {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}


def test_a_killed_export_leaves_the_earlier_one_whole(exported):
  before = snapshot(exported)

  def die(done, total):
    if done > total / 2:
      raise KeyboardInterrupt

  other = directories.base(LLAMA, seed=5)
  with pytest.raises(KeyboardInterrupt):
    huggingface.export(exported, LLAMA, other, progress=die, shard_bytes=5000)
  assert snapshot(exported) == before
  huggingface.export(exported, LLAMA, other)
  directories.assert_same_bits(huggingface.load_base(exported, LLAMA), other)
  assert [p.name for p in exported.iterdir() if p.is_dir()] == []


@pytest.mark.parametrize("shard_bytes", [5000, 10**9])
@pytest.mark.parametrize("position", [0.3, 0.9, 0.999])
def test_a_flipped_bit_is_refused(shard_bytes, position, tmp_path):
  huggingface.export(
    tmp_path, LLAMA, directories.base(LLAMA), shard_bytes=shard_bytes
  )
  path = sorted(tmp_path.glob("*.safetensors"))[-1]
  data = bytearray(path.read_bytes())
  data[int(position * len(data))] ^= 1
  path.write_bytes(data)
  sentence = f"{tmp_path} is damaged: {path.name} has other bytes than were"
  with pytest.raises(errors.ConfigError, match=sentence):
    huggingface.load_base(tmp_path, LLAMA)
  (tmp_path / checksums.FILE).unlink()  # changed on purpose
  assert huggingface.load_base(tmp_path, LLAMA)


@pytest.mark.parametrize("moves", range(6))
def test_an_export_killed_while_it_is_published_does_not_load(
  moves, exported, monkeypatch
):
  replace, moved = pathlib.Path.replace, []

  def die(self, target):
    if len(moved) == moves:
      raise KeyboardInterrupt
    moved.append(target)
    return replace(self, target)

  monkeypatch.setattr(pathlib.Path, "replace", die)
  with pytest.raises(KeyboardInterrupt):
    huggingface.export(
      exported,
      LLAMA,
      directories.base(LLAMA),
      shard_bytes=5000,
    )
  with pytest.raises(errors.ConfigError, match="has no config"):
    huggingface.read_architecture(exported)


def test_fewer_shards_leave_no_old_ones_behind(tmp_path):
  for shard_bytes in (3000, 8000, 10**9):
    huggingface.export(
      tmp_path,
      LLAMA,
      directories.base(LLAMA),
      shard_bytes=shard_bytes,
    )
    stored = sum(
      len(safetensors.numpy.load_file(path))
      for path in tmp_path.glob("*.safetensors")
    )
    assert stored == 29
  assert not (tmp_path / "model.safetensors.index.json").exists()


def test_progress_counts_every_byte_of_the_file(tmp_path):
  seen = []
  huggingface.export(
    tmp_path,
    LLAMA,
    directories.base(LLAMA),
    progress=lambda *x: seen.append(x),
  )
  sizes = [x.nbytes for x in jax.tree.leaves(directories.base(LLAMA))]
  assert len(seen) == 29
  assert seen[0] == (52 * 16 * 4, sum(sizes))  # the embedding
  assert seen[-1] == (sum(sizes), sum(sizes))


def test_tokenizer_and_token_ids_come_from_the_source(tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  (source / "config.json").write_text(
    '{"eos_token_id": 7, "bos_token_id": 3, "pad_token_id": null}'
  )
  (source / "generation_config.json").write_text(
    '{"eos_token_id": [7, 8], "temperature": 0.5}'
  )
  for name in ("tokenizer.json", "chat_template.jinja", "merges.txt"):
    (source / name).write_text(name)
  (source / "notes.txt").write_text("not ours to copy")
  out = huggingface.export(
    tmp_path / "out",
    LLAMA,
    directories.base(LLAMA),
    source_directory=source,
  )
  assert (out / "tokenizer.json").read_text() == "tokenizer.json"
  assert (out / "chat_template.jinja").read_text() == "chat_template.jinja"
  assert (out / "merges.txt").read_text() == "merges.txt"
  assert not (out / "notes.txt").exists()
  fields = json.loads((out / "config.json").read_text())
  assert (fields["bos_token_id"], fields["eos_token_id"]) == (3, 7)
  assert fields["pad_token_id"] is None
  generation = json.loads((out / "generation_config.json").read_text())
  assert generation["eos_token_id"] == [7, 8]
  assert generation["temperature"] == 0.5


def test_an_export_that_cannot_be_written_is_refused(tmp_path):
  file = tmp_path / "file"
  file.write_text("")
  odd = dataclasses.replace(LLAMA, qk_norm=True)
  for directory, architecture, options, sentence in (
    (file, LLAMA, {}, "file cannot be written: "),
    (
      tmp_path,
      LLAMA,
      {"dtype": "int8"},
      "float32, bfloat16, got 'int8'",
    ),
    (tmp_path, odd, {}, "family llama with qk_norm True has no counterpart"),
  ):
    with pytest.raises(errors.ConfigError, match=sentence):
      huggingface.export(
        directory, architecture, directories.base(architecture), **options
      )
