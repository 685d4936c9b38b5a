"""GGUF files as llama.cpp's converter would write them, for tests."""

import gguf
import jax
import numpy as np
from tokenizers import pre_tokenizers

from bilevel_jax.models import presets
from bilevel_jax.weights import huggingface_names

WIDTH = 256  # a K-quant's block; every row of the file has a multiple of it
ARCHITECTURE = presets.Architecture(
  family="llama",
  vocab_size=96,
  width=WIDTH,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=64,
  mlp_width=WIDTH,
  max_positions=512,
  rope_theta=100000.0,
  norm_eps=1e-5,
)
NAMES = {
  "model.embed_tokens.weight": "token_embd.weight",
  "model.norm.weight": "output_norm.weight",
  "lm_head.weight": "output.weight",
}
LEAVES = {
  "input_layernorm": "attn_norm",
  "post_attention_layernorm": "ffn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
  if name in NAMES:
    return NAMES[name]
  _, _, layer, stem = name.split(".", 3)
  stem, kind = stem.rsplit(".", 1)
  return f"blk.{layer}.{LEAVES[stem]}.{kind}"


def permute(weights, heads):
  """The converter's: llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute."""
  return (
    weights.reshape(
      heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]
    )
    .swapaxes(1, 2)
    .reshape(weights.shape)
  )


def random_tensors(architecture):
  """Weights under Hugging Face's names, [out, in]."""
  rng = np.random.default_rng(0)
  return {
    name: rng.standard_normal(weight.shape, np.float32)
    for weight in jax.tree.leaves(huggingface_names.names(architecture))
    for name in weight.names
  }


def add_metadata(writer, a):
  writer.add_block_count(a.layers)
  writer.add_context_length(a.max_positions)
  writer.add_embedding_length(a.width)
  writer.add_feed_forward_length(a.mlp_width)
  writer.add_head_count(a.heads)
  writer.add_head_count_kv(a.kv_heads)
  writer.add_key_length(a.head_dim)
  writer.add_value_length(a.head_dim)
  writer.add_layer_norm_rms_eps(a.norm_eps)
  writer.add_rope_freq_base(a.rope_theta)
  writer.add_rope_dimension_count(a.head_dim)
  writer.add_vocab_size(a.vocab_size)


def write(
  path,
  tensors,
  architecture=ARCHITECTURE,
  *,
  encode=None,
  extra=None,
  edit=None,
):
  """Writes what llama.cpp's converter would; returns the path.

  encode: array -> (array, raw_dtype), for matrices. extra: more tensors, under
  GGUF's names. edit: changes the writer's metadata.
  """
  writer = gguf.GGUFWriter(path, architecture.family)
  add_metadata(writer, architecture)
  if edit is not None:
    edit(writer)
  for name, array in tensors.items():
    if architecture.family == "llama" and "q_proj" in name:
      array = permute(array, architecture.heads)
    if architecture.family == "llama" and "k_proj" in name:
      array = permute(array, architecture.kv_heads)
    kind = None
    if encode is not None and array.ndim == 2:
      array, kind = encode(array)
    writer.add_tensor(gguf_name(name), array, raw_dtype=kind)
  for name, array in (extra or {}).items():
    writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["Ġ t", "h e", "Ġt he", "1 2", "Ġ Ġ", "i n", "in g"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NORMAL, CONTROLLED, USER, UNUSED = (
  gguf.TokenType.NORMAL,
  gguf.TokenType.CONTROL,
  gguf.TokenType.USER_DEFINED,
  gguf.TokenType.UNUSED,
)


def add_tokenizer(writer, pre="qwen2", *, model="gpt2", edit=None):
  """Adds a tokenizer to the writer's metadata; returns its tokens."""
  merged = [merge.replace(" ", "") for merge in MERGES]
  groups = [
    (ALPHABET + merged + ["xyz"], NORMAL),  # no merge leads to xyz
    (CONTROL, CONTROLLED),
    (["<think>"], USER),
    (["[PAD1]", "[PAD2]"], UNUSED),
  ]
  tokens = [token for group, _ in groups for token in group]
  writer.add_tokenizer_model(model)
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types([kind for group, kind in groups for _ in group])
  writer.add_token_merges(MERGES)
  writer.add_eos_token_id(tokens.index("<|im_end|>"))
  writer.add_bos_token_id(tokens.index("<|im_start|>"))
  writer.add_chat_template(TEMPLATE)
  if edit is not None:
    edit(writer, tokens)
  return tokens
