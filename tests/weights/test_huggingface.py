"""Hugging Face weights read, against safetensors' own library."""

import json
import os
import shutil

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import errors as hub_errors
from jax.sharding import NamedSharding, PartitionSpec

from bilevel_jax import checksums, errors
from bilevel_jax.weights import huggingface, safetensors_files
from tests.weights import directories

LLAMA = directories.LLAMA


def edit_tensors(directory, edit):
  path = directory / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  edit(tensors)
  safetensors.numpy.save_file(tensors, path)


def export(directory, architecture=LLAMA, **options):
  """Writes a directory that somebody else might have made: no checksums."""
  base = directories.base(architecture)
  huggingface.export(directory, architecture, base, **options)
  (directory / checksums.FILE).unlink()
  return directory


@pytest.fixture
def exported(tmp_path):
  return export(tmp_path / "hf")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_master_weights_are_float32_whatever_the_file_holds(dtype, exported):
  def edit(tensors):
    tensors.update({k: v.astype(dtype) for k, v in tensors.items()})

  edit_tensors(exported, edit)
  rounded = jax.tree.map(
    lambda x: x.astype(dtype).astype(np.float32),
    directories.base(LLAMA),
  )
  loaded = huggingface.load_base(exported, LLAMA)
  assert {x.dtype.name for x in jax.tree.leaves(loaded)} == {"float32"}
  directories.assert_same_bits(loaded, rounded)


def test_sharded_load_is_the_unsharded_one_and_reads_its_shards_only(
  tmp_path, monkeypatch
):
  architecture = directories.UNTIED["qwen3_untied"]
  huggingface.export(
    tmp_path, architecture, directories.base(architecture), shard_bytes=5000
  )
  whole = huggingface.load_base(tmp_path, architecture)
  mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"))
  on = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
  split = {1: on(("fsdp", "tensor")), 2: on(None, ("fsdp", "tensor"))}
  split[3] = on(None, "fsdp", "tensor")
  shardings = jax.tree.map(lambda x: split[x.ndim], whole)
  reads, read = [], safetensors_files.Tensor.__getitem__

  def recorded(tensor, index):
    block = read(tensor, index)
    reads.append(block.size)
    return block

  monkeypatch.setattr(safetensors_files.Tensor, "__getitem__", recorded)
  sharded = huggingface.load_base(tmp_path, architecture, shardings)
  directories.assert_same_bits(sharded, whole)
  assert all(
    x.sharding == sharding
    for x, sharding in zip(
      jax.tree.leaves(sharded), jax.tree.leaves(shardings), strict=True
    )
  )
  # Every device reads its own part once, and no part is a whole tensor.
  assert sum(reads) == sum(x.size for x in jax.tree.leaves(whole))
  assert max(reads) == whole["embedding"].size // 4


def truncate(directory):
  os.truncate(directory / "model.safetensors", 5000)


def make_pointer(directory):
  pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
  (directory / "model.safetensors").write_text(pointer)


def leave_only_bin(directory):
  (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def drop_norm(tensors):
  del tensors["model.layers.1.input_layernorm.weight"]


def widen_head(tensors):
  tensors["model.norm.weight"] = np.zeros(17, np.float32)


def add_bias(tensors):
  tensors["model.layers.0.self_attn.o_proj.bias"] = np.zeros(4, np.float32)


def store_integers(tensors):
  tensors["model.norm.weight"] = np.zeros(16, np.int8)


@pytest.mark.parametrize(
  ("damage", "sentence"),
  [
    (truncate, r"model.safetensors is not a complete .* has 5000 bytes"),
    (make_pointer, r"model.safetensors is not a complete safetensors file"),
    (
      lambda d: (d / "model.safetensors").write_bytes(b""),
      r"model.safetensors is not a complete safetensors file .* 0 bytes",
    ),
    (leave_only_bin, "holds pytorch_model.bin but no model.safetensors"),
    (
      lambda d: (d / "model.safetensors").unlink(),
      "has neither model.safetensors nor model.safetensors.index.json",
    ),
    (
      lambda d: edit_tensors(d, drop_norm),
      "lacks 1 of 29 tensors, the first is "
      "model.layers.1.input_layernorm.weight",
    ),
    (
      lambda d: edit_tensors(d, widen_head),
      r"model.norm.weight must have shape \[16\], got \[17\]",
    ),
    (
      lambda d: edit_tensors(d, add_bias),
      "1 tensors that the architecture does not have, the first is "
      "model.layers.0.self_attn.o_proj.bias",
    ),
    (
      lambda d: edit_tensors(d, store_integers),
      "model.norm.weight in .* must be F32, F16, BF16, got I8",
    ),
  ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
  damage, sentence, exported
):
  damage(exported)
  with pytest.raises(errors.ConfigError, match=sentence):
    huggingface.load_base(exported, LLAMA)


def test_a_missing_shard_is_named(tmp_path):
  export(tmp_path, shard_bytes=5000)
  shards = sorted(tmp_path.glob("*.safetensors"))
  shards[1].unlink()
  with pytest.raises(
    errors.ConfigError,
    match=f"lacks 1 of the {len(shards)} files .* {shards[1].name}",
  ):
    huggingface.load_base(tmp_path, LLAMA)


def outside(directory):
  shutil.copy(
    directory / "model.safetensors", directory.parent / "other.safetensors"
  )
  (directory / "model.safetensors").rename(directory / "a.safetensors")
  (directory / "folder").mkdir()


@pytest.mark.parametrize(
  ("index", "sentence"),
  [
    ("{", "index.json is not JSON"),
    ("[1]", "index.json must be a JSON object, got a list"),
    ('{"a":' * 10**5 + "1" + "}" * 10**5, "nested at most 100 levels deep"),
    ("{}", "must have a weight_map of tensors to files, got None"),
    ('{"weight_map": {}}', r"weight_map of tensors to files, got \{\}"),
    ('{"weight_map": ["a"]}', r"weight_map of tensors to files, got \['a'\]"),
    ('{"weight_map": {"x": 5}}', "must name files beside it, got 5 for 'x'"),
    ('{"weight_map": {"x": null}}', "beside it, got None for 'x'"),
    ('{"weight_map": {"x": ""}}', "beside it, got '' for 'x'"),
    ('{"weight_map": {"x": ".."}}', "beside it, got '..' for 'x'"),
    (
      '{"weight_map": {"x": "../other.safetensors"}}',
      "beside it, got '../other.safetensors' for 'x'",
    ),
    ('{"weight_map": {"x": "/etc/hostname"}}', "beside it, got '/etc/hostnam"),
    ('{"weight_map": {"x": "folder"}}', "lacks 1 of the 1 files .*: folder"),
    ('{"weight_map": {"x": "b\\u0000"}}', "lacks 1 of the 1 files"),
    (
      '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}',
      "lm_head.weight in b.safetensors and before",
    ),
  ],
)
def test_an_index_names_files_beside_it(index, sentence, tmp_path):
  untied = directories.UNTIED["llama_untied"]
  export(tmp_path / "hf", untied)
  outside(tmp_path / "hf")
  (tmp_path / "hf" / "model.safetensors.index.json").write_text(index)
  if "b.safetensors" in index:
    shutil.copy(
      tmp_path / "hf" / "a.safetensors", tmp_path / "hf" / "b.safetensors"
    )
  with pytest.raises(errors.ConfigError, match=sentence):
    huggingface.load_base(tmp_path / "hf", untied)


def test_a_shard_may_be_a_link_as_in_the_hubs_cache(exported, tmp_path):
  (exported / "model.safetensors").rename(tmp_path / "blob")
  (exported / "model.safetensors").symlink_to(tmp_path / "blob")
  directories.assert_same_bits(
    huggingface.load_base(exported, LLAMA), directories.base(LLAMA)
  )


ENTRY = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}


@pytest.mark.parametrize(
  "header",
  [
    {"model.norm.weight": ENTRY | {"shape": [-1]}},
    {"model.norm.weight": ENTRY | {"shape": [-4, -4]}},
    {"model.norm.weight": ENTRY | {"shape": [None]}},
    {"model.norm.weight": ENTRY | {"shape": None}},
    {"model.norm.weight": ENTRY | {"shape": [17]}},
    {"model.norm.weight": ENTRY | {"shape": [2**63, 2**63]}},
    {"model.norm.weight": ENTRY | {"data_offsets": [-64, 0]}},
    {"model.norm.weight": ENTRY | {"data_offsets": [64, 0]}},
    {"model.norm.weight": ENTRY | {"data_offsets": [0, 2**60]}},
    {"model.norm.weight": ENTRY, "b": ENTRY},
    {"model.norm.weight": None},
    {"__metadata__": {"format": 1}},
    [],
    None,
  ],
)
def test_a_header_that_is_malformed_is_refused_in_one_sentence(
  header, exported
):
  text = json.dumps(header).encode()
  for length, content in (
    (len(text), text),
    (2**63, text),
    (10**5, b"[" * 10**5),
    (2, b"\xff\xfe"),
  ):
    (exported / "model.safetensors").write_bytes(
      length.to_bytes(8, "little") + content + bytes(64)
    )
    with pytest.raises(errors.ConfigError, match="a complete safeten") as e:
      huggingface.open_base(exported, LLAMA)
    assert "\n" not in str(e.value)


def test_a_missing_directory_is_named(tmp_path):
  for read in (
    huggingface.read_architecture,
    lambda path: huggingface.load_base(path, LLAMA),
  ):
    with pytest.raises(errors.ConfigError, match="nowhere is not a directory"):
      read(tmp_path / "nowhere")


def test_buffers_and_a_tied_head_in_the_file_are_not_read(exported):
  def edit(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, "f4")

  edit_tensors(exported, edit)
  directories.assert_same_bits(
    huggingface.load_base(exported, LLAMA),
    directories.base(LLAMA),
  )


@pytest.mark.parametrize(
  "edit",
  [
    lambda head: head.__setitem__((-1, -1), 0.5),
    lambda head: head.resize((4, 4), refcheck=False),
  ],
)
def test_a_head_beside_a_tie_must_be_the_embedding(edit, exported):
  def add(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    edit(tensors["lm_head.weight"])

  edit_tensors(exported, add)
  with pytest.raises(
    errors.ConfigError,
    match=r"tie_word_embeddings must be false beside a lm_head.weight .* true",
  ):
    huggingface.load_base(exported, LLAMA)


def test_a_directory_is_its_own_answer(tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
  assert huggingface.resolve(str(tmp_path)) == tmp_path


def test_a_hub_id_is_fetched_without_torch_files(tmp_path, monkeypatch):
  asked = {}

  def download(repository, **options):
    asked.update(options, repository=repository)
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  assert huggingface.resolve("Qwen/Qwen3-0.6B", "v1") == tmp_path
  assert asked["repository"] == "Qwen/Qwen3-0.6B"
  assert asked["revision"] == "v1"
  fetched = set(
    huggingface_hub.utils.filter_repo_objects(
      [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "vocab.json",
        "merges.txt",
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "onnx/model.onnx",
      ],
      allow_patterns=asked["allow_patterns"],
    )
  )
  assert "chat_template.jinja" in fetched
  assert "model-00001-of-00002.safetensors" in fetched
  assert len(fetched) == 10


@pytest.mark.parametrize(
  ("error", "sentence"),
  [
    (hub_errors.GatedRepoError, "wants terms accepted and a login"),
    (
      hub_errors.RepositoryNotFoundError,
      "the hub has no such public repository",
    ),
    (hub_errors.RevisionNotFoundError, "the repository has no revision 'v9'"),
    (
      hub_errors.LocalEntryNotFoundError,
      "fetched from the hub: no connection$",
    ),
    (ConnectionError, "fetched from the hub: no connection$"),
  ],
)
def test_a_failed_download_is_one_sentence(error, sentence, monkeypatch):
  def download(*_, **__):
    failure = error.__new__(error)  # some of them want a whole response
    failure.args = ("no connection\nsecond line",)
    raise failure

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  with pytest.raises(errors.ConfigError, match=sentence) as caught:
    huggingface.resolve("Qwen/Nothing", "v9")
  assert str(caught.value).startswith("Qwen/Nothing is not a directory and")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["./here", "/no/such/place", "a/b/c", "a b"])
def test_a_path_is_not_looked_up_on_the_hub(path, monkeypatch):
  monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
  with pytest.raises(errors.ConfigError, match=f"{path} is not a directory$"):
    huggingface.resolve(path)


def test_a_file_is_not_a_model_directory(exported):
  with pytest.raises(errors.ConfigError, match="is a file, not a model direct"):
    huggingface.resolve(str(exported / "config.json"))
