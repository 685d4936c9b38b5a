"""Architectures: what distinguishes one Llama-type model from another."""

import dataclasses
import functools

from bilevel_jax import errors

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
"""A layer's matrices, the adapter's possible targets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
  """Llama 3.1's RoPE scaling: low frequencies are slowed by `factor`."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
  """The sizes and switches of a decoder; hashable, so it can be static.

  Weights are nested dicts, layers stacked on axis 0, kernels [in, out]:

      embedding                                    [V, D]
      layers/{attention_norm, mlp_norm}/scale      [L, D]
      layers/{q, k, v, o, gate, up, down}/kernel   [L, in, out]
      layers/{q, k, v}/bias                        [L, out]  attention_bias
      layers/{q_norm, k_norm}/scale                [L, head_dim]  qk_norm
      final_norm/scale                             [D]
      head/kernel                                  [D, V]  untied only

  and an adapter is {target: {"A": [L, in, r], "B": [L, r, out]}}.
  """

  family: str  # llama, qwen2 or qwen3: Hugging Face's model_type
  vocab_size: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  max_positions: int
  rope_theta: float = 10000.0
  rope_scaling: Llama3Scaling | None = None
  norm_eps: float = 1e-6
  tied_embeddings: bool = True
  attention_bias: bool = False
  qk_norm: bool = False

  @property
  def projections(self) -> dict[str, tuple[int, int]]:
    """Sizes [in, out] of a layer's matrices, by PROJECTIONS."""
    queries = self.heads * self.head_dim
    keys = self.kv_heads * self.head_dim
    sizes = (
      (self.width, queries),
      (self.width, keys),
      (self.width, keys),
      (queries, self.width),
      (self.width, self.mlp_width),
      (self.width, self.mlp_width),
      (self.mlp_width, self.width),
    )
    return dict(zip(PROJECTIONS, sizes, strict=True))


def get(name: str) -> Architecture:
  """Returns the architecture of that name.

  Raises:
    ConfigError: there is no such preset.
  """
  if name not in PRESETS:
    raise errors.ConfigError(
      f"model.preset must be one of {', '.join(PRESETS)}, got {name!r}"
    )
  return PRESETS[name]


def of_hub_id(name: str) -> Architecture | None:
  """Returns the architecture of a hub id or file name, None if not known.

  Base and instruct models, and ours, differ in their weights alone.
  """
  plain = name.rsplit("/", 1)[-1].lower()
  for ending in ("-instruct", "-base"):
    plain = plain.removesuffix(ending)
  return PRESETS.get(plain)


# Sizes as in the config.json that each model was published with.
_qwen2 = functools.partial(
  Architecture,
  family="qwen2",
  vocab_size=151936,
  max_positions=32768,
  rope_theta=1e6,
  attention_bias=True,
)
_qwen3 = functools.partial(
  Architecture,
  family="qwen3",
  vocab_size=151936,
  head_dim=128,
  max_positions=40960,
  rope_theta=1e6,
  qk_norm=True,
)
_llama = functools.partial(
  Architecture,
  family="llama",
  vocab_size=128256,
  max_positions=131072,
  rope_theta=500000.0,
  rope_scaling=Llama3Scaling(
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_positions=8192,
  ),
  norm_eps=1e-5,
)
_smollm2 = functools.partial(
  Architecture,
  family="llama",
  vocab_size=49152,
  head_dim=64,
  max_positions=8192,
  rope_theta=100000.0,
  norm_eps=1e-5,
)
_tiny = functools.partial(
  Architecture,
  vocab_size=96,
  width=32,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp_width=64,
  max_positions=1024,
)

PRESETS = {
  "qwen2.5-0.5b": _qwen2(
    width=896, layers=24, heads=14, kv_heads=2, head_dim=64, mlp_width=4864
  ),
  "qwen2.5-1.5b": _qwen2(
    width=1536,
    layers=28,
    heads=12,
    kv_heads=2,
    head_dim=128,
    mlp_width=8960,
    max_positions=131072,
  ),
  "qwen2.5-3b": _qwen2(
    width=2048, layers=36, heads=16, kv_heads=2, head_dim=128, mlp_width=11008
  ),
  "qwen2.5-7b": _qwen2(
    vocab_size=152064,
    width=3584,
    layers=28,
    heads=28,
    kv_heads=4,
    head_dim=128,
    mlp_width=18944,
    max_positions=131072,
    tied_embeddings=False,
  ),
  "qwen3-0.6b": _qwen3(
    width=1024, layers=28, heads=16, kv_heads=8, mlp_width=3072
  ),
  "qwen3-1.7b": _qwen3(
    width=2048, layers=28, heads=16, kv_heads=8, mlp_width=6144
  ),
  "qwen3-4b": _qwen3(
    width=2560, layers=36, heads=32, kv_heads=8, mlp_width=9728
  ),
  "qwen3-8b": _qwen3(
    width=4096,
    layers=36,
    heads=32,
    kv_heads=8,
    mlp_width=12288,
    tied_embeddings=False,
  ),
  "llama-3.2-1b": _llama(
    width=2048, layers=16, heads=32, kv_heads=8, head_dim=64, mlp_width=8192
  ),
  "llama-3.2-3b": _llama(
    width=3072, layers=28, heads=24, kv_heads=8, head_dim=128, mlp_width=8192
  ),
  "smollm2-135m": _smollm2(
    width=576, layers=30, heads=9, kv_heads=3, mlp_width=1536
  ),
  "smollm2-360m": _smollm2(
    width=960, layers=32, heads=15, kv_heads=5, mlp_width=2560
  ),
  "smollm2-1.7b": _smollm2(
    width=2048,
    layers=24,
    heads=32,
    kv_heads=32,
    mlp_width=8192,
    rope_theta=130000.0,
  ),
  # For tests, and for learning arithmetic from nothing on a CPU.
  "tiny-llama": _tiny(family="llama", tied_embeddings=False),
  "tiny-qwen2": _tiny(family="qwen2", attention_bias=True),
  "tiny-qwen3": _tiny(family="qwen3", qk_norm=True),
  "small-arithmetic": Architecture(
    family="llama",
    vocab_size=64,
    width=96,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=24,
    mlp_width=256,
    max_positions=256,
  ),
  "mini-arithmetic": Architecture(
    family="llama",
    vocab_size=64,
    width=64,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_width=128,
    max_positions=128,
  ),
}
