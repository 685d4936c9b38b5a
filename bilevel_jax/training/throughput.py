"""Operations that a step asks of a model, and the share of the peak it gets.

Model FLOPs, as PaLM counts them (arXiv 2204.02311, appendix B), of the tokens
that are computed: padding and recomputation (rematerialisation) count for
nothing, so they show as a lower share. A forward pass costs

    2 * matrix parameters of the layers           a token
    4 * layers * heads * head_dim * context       a token, for attention
    2 * width * vocabulary                        a log-prob, or a sampled token

and a gradient three times as much. MFU is that over seconds and the published
dense bfloat16 peak of the devices.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from bilevel_jax.models.presets import Architecture
from bilevel_jax.types import Rollout, TokenBatch


class Limits(NamedTuple):
  """What a device can do, as published."""

  bandwidth: float  # bytes of memory a second
  flops: float  # dense bfloat16 operations a second


LIMITS = {
  "A100": Limits(2.0e12, 312e12),
  "H100": Limits(3.35e12, 989e12),
  "H200": Limits(4.8e12, 989e12),
  "TPU v4": Limits(1.23e12, 275e12),
  "TPU v5 lite": Limits(0.82e12, 197e12),
  "TPU v5": Limits(2.77e12, 459e12),
  "TPU v6 lite": Limits(1.64e12, 918e12),
}


def limits(device_kind: str) -> Limits | None:
  """Returns the limits of a device, None where they are not known.

  Args:
    device_kind: of a jax.Device, such as "NVIDIA H200".
  """
  named = [name for name in LIMITS if name in device_kind]
  return LIMITS[max(named, key=len)] if named else None


def forward_flops(
  architecture: Architecture, *, tokens: int, context: int, logits: int
) -> float:
  """Returns the operations of a forward pass.

  Args:
    tokens: that pass through the layers.
    context: sum over these of the tokens that each attends to.
    logits: positions whose logits are computed.
  """
  a = architecture
  matrices = a.layers * sum(
    rows * columns for rows, columns in a.projections.values()
  )
  attention = 4.0 * a.layers * a.heads * a.head_dim * context
  unembedding = 2.0 * a.width * a.vocab_size * logits
  return 2.0 * matrices * tokens + attention + unembedding


def batch_flops(architecture: Architecture, batch: TokenBatch) -> float:
  """Returns the operations of a forward pass over a batch, on the host."""
  packed = batch.packed
  assert packed is not None
  held = np.asarray(packed.segment_ids) > 0
  return forward_flops(
    architecture,
    tokens=int(held.sum()),
    context=int((np.asarray(packed.positions) + 1)[held].sum()),
    logits=int((np.asarray(packed.where) >= 0).sum()),
  )


def rollout_flops(architecture: Architecture, rollout: Rollout) -> float:
  """Returns the operations of sampling: each prompt once, then its samples."""
  prompts = np.array([len(p) for p in rollout.requests.prompts], np.int64)
  before = prompts[rollout.prompt_index]
  # The token sampled last is not read again.
  steps = np.maximum(rollout.lengths.astype(np.int64) - 1, 0)
  context = prompts * (prompts + 1) // 2
  after = steps * before + steps * (steps + 1) // 2
  return forward_flops(
    architecture,
    tokens=int(prompts.sum() + steps.sum()),
    context=int(context.sum() + after.sum()),
    logits=int(rollout.lengths.sum()),
  )


def phase(
  name: str,
  seconds: float,
  *,
  tokens: int,
  flops: float | None,
  devices: Iterable[Any],
) -> dict[str, float]:
  """Returns what to log of a phase: tokens a second and, if known, the MFU.

  Args:
    name: of the phase, in the metrics' names.
    tokens: that came of it, on all devices.
    flops: that it asked for; None: not known.
  """
  devices = list(devices)
  logged = {f"time/{name}_tokens_per_s": tokens / max(seconds, 1e-9)}
  known = limits(devices[0].device_kind)
  if known is not None and flops is not None:
    peak = known.flops * len(devices)
    logged[f"time/{name}_mfu"] = flops / max(seconds, 1e-9) / peak
  return logged
