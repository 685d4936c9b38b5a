"""The command that turns weights from anywhere into a directory."""

import json

import gguf as gguf_package
import numpy as np
import pytest
import safetensors.numpy

from bilevel_jax.weights import huggingface
from tests.weights import directories
from tools import convert_weights

ARCHITECTURE = directories.UNTIED["qwen3_untied"]


@pytest.fixture
def source(tmp_path):
  directory = tmp_path / "source"
  huggingface.export(directory, ARCHITECTURE, directories.base(ARCHITECTURE))
  (directory / "tokenizer.json").write_text("{}")
  return directory


def test_float32_changes_no_bit(source, tmp_path, capsys):
  out = tmp_path / "out"
  assert convert_weights.main([str(source), "--out", str(out)]) == 0
  names = ("model.safetensors", "config.json", "tokenizer.json")
  for name in names:
    assert (out / name).read_bytes() == (source / name).read_bytes()
  assert "model.layers.*.self_attn.q_proj" in capsys.readouterr().out


def test_the_figures_are_those_of_the_files(source, tmp_path, capsys):
  out, figures = tmp_path / "out", tmp_path / "figures.json"
  arguments = [str(source), "--out", str(out), "--json", str(figures)]
  arguments += ["--dtype", "bfloat16", "--shard-gb", "1e-5"]
  assert convert_weights.main(arguments) == 0
  figures = json.loads(figures.read_text())
  tensors = {}
  for path in out.glob("*.safetensors"):
    tensors |= safetensors.numpy.load_file(path)
  total = sum(x.size for x in tensors.values())
  assert figures["parameters"] == total
  assert figures["files"] == len(list(out.glob("*.safetensors"))) > 1
  rows = {row["name"]: row for row in figures["tensors"]}
  assert sum(row["count"] for row in rows.values()) == len(tensors)
  assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
  query = rows["model.layers.*.self_attn.q_proj.weight"]
  assert query["count"] == ARCHITECTURE.layers
  assert query["shape"] == [32, 16]
  assert query["dtype"] == "bfloat16"
  assert query["parameters"] == 3 * 32 * 16
  assert query["share"] == query["parameters"] / total
  assert f"{total:,} parameters" in capsys.readouterr().out


def test_a_run_directory_means_its_export(source, tmp_path):
  run = tmp_path / "run"
  run.mkdir()
  source.rename(run / "export")
  out = tmp_path / "out"
  assert convert_weights.main([str(run), "--out", str(out)]) == 0
  assert huggingface.read_architecture(out) == ARCHITECTURE


def test_a_gguf_file_comes_with_its_tokenizer(tmp_path):
  path, out = tmp_path / "tiny.gguf", tmp_path / "out"
  write_gguf(path)
  assert convert_weights.main([str(path), "--out", str(out)]) == 0
  architecture = huggingface.read_architecture(out)
  assert (architecture.family, architecture.vocab_size) == ("qwen2", 300)
  embedding = huggingface.load_base(out, architecture)["embedding"]
  np.testing.assert_array_equal(embedding, gguf_tensor(300, 16))
  assert (out / "tokenizer.json").exists()
  assert json.loads((out / "config.json").read_text())["eos_token_id"] == 299


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (["no/such/place/at/all"], "no/such/place/at/all is not a directory"),
    (["missing.gguf"], "missing.gguf must be a GGUF file, got no such file"),
    (
      ["{source}", "--shard-gb", "0"],
      "--shard-gb must be above 0, below 2^31, got 0.0",
    ),
    (["{source}", "--out", "{source}"], "--out must be empty or absent"),
    (
      ["{source}", "--out", "{source}", "--force"],
      "--out must not be the source, got",
    ),
    (["{source}", "--out", "{source}/config.json"], "cannot be written: "),
  ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_2(
  arguments, sentence, source, tmp_path, capsys
):
  arguments = [a.replace("{source}", str(source)) for a in arguments]
  if "--out" not in arguments:
    arguments += ["--out", str(tmp_path / "out")]
  assert convert_weights.main(arguments) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: ")
  assert sentence in said
  assert said.count("\n") == 1


@pytest.mark.parametrize(
  ("arguments", "code", "word"),
  [(["--help"], 0, "--dtype"), (["x", "--out", "y", "--dtype", "int8"], 2, "")],
)
def test_the_command_line_explains_itself(arguments, code, word, capsys):
  with pytest.raises(SystemExit) as stopped:
    convert_weights.main(arguments)
  assert stopped.value.code == code
  assert word in capsys.readouterr().out


def test_an_interrupted_conversion_leaves_no_model(
  source, tmp_path, monkeypatch, capsys
):
  def stop(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(huggingface, "export", stop)
  out = tmp_path / "out"
  assert convert_weights.main([str(source), "--out", str(out)]) == 130
  assert not (out / "config.json").exists()
  assert "is as it was" in capsys.readouterr().err


def gguf_tensor(*shape):
  return np.random.default_rng(shape[0]).normal(size=shape).astype(np.float32)


def write_gguf(path):
  writer = gguf_package.GGUFWriter(str(path), "qwen2")
  writer.add_block_count(1)
  writer.add_context_length(64)
  writer.add_embedding_length(16)
  writer.add_feed_forward_length(24)
  writer.add_head_count(2)
  writer.add_head_count_kv(1)
  writer.add_rope_freq_base(10000.0)
  writer.add_layer_norm_rms_eps(1e-6)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("qwen2")
  writer.add_token_list([f"t{i}" for i in range(299)] + ["<|end|>"])
  writer.add_token_types([1] * 299 + [3])
  writer.add_token_merges([])
  writer.add_eos_token_id(299)
  shapes = {
    "token_embd.weight": (300, 16),
    "output_norm.weight": (16,),
    "blk.0.attn_norm.weight": (16,),
    "blk.0.ffn_norm.weight": (16,),
    "blk.0.attn_q.weight": (16, 16),
    "blk.0.attn_q.bias": (16,),
    "blk.0.attn_k.weight": (8, 16),
    "blk.0.attn_k.bias": (8,),
    "blk.0.attn_v.weight": (8, 16),
    "blk.0.attn_v.bias": (8,),
    "blk.0.attn_output.weight": (16, 16),
    "blk.0.ffn_gate.weight": (24, 16),
    "blk.0.ffn_up.weight": (24, 16),
    "blk.0.ffn_down.weight": (16, 24),
  }
  for name, shape in shapes.items():
    writer.add_tensor(name, gguf_tensor(*shape))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
