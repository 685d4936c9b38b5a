"""ReLIFT: RL, and SFT on what no sample solved (arXiv 2506.07527).

Every step is of RL. A question that all samples failed puts its demonstration
into a buffer; when that holds `buffer` of them, the step ends with an update of
SFT on so many, with an optimiser of its own.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from bilevel_jax.fields import setting
from bilevel_jax.methods import contract, updates
from bilevel_jax.types import StepBatch


@dataclasses.dataclass(frozen=True)
class Options(updates.SFTRate):
  buffer: int = setting(
    16,
    "demonstrations that an SFT update waits for (the code: 128)",
    at_least=1,
  )
  first_out: Literal["oldest", "newest"] = setting(
    "newest", "which of the buffer are learned from; the rest waits"
  )


def build(options: Options, setup: contract.Setup) -> contract.Method:
  """Returns RL interleaved with SFT on the hardest questions.

  Ours: no entropy bonus (0.001 in the code); at most one update of SFT a step,
  the rest waits; a question without a demonstration is left to RL.
  """
  init, update = updates.by_turns(setup, options)

  def batches(host: contract.Host) -> Iterator[StepBatch]:
    answers = host.sample()
    groups = host.groups(answers)
    failed = groups.accuracy == 0
    waiting = host.memory.setdefault("waiting", [])
    waiting += [
      demonstration.id
      for question, demonstration in enumerate(groups.demonstrations)
      if failed[question] and demonstration is not None
    ]
    chosen = []
    if len(waiting) >= options.buffer:
      oldest = options.first_out == "oldest"
      those = slice(options.buffer) if oldest else slice(-options.buffer, None)
      chosen = host.demonstrations_at(waiting[those])
      del waiting[those]
    host.log(
      {
        "mix/demonstrated_questions": float(groups.demonstrated.mean()),
        "mix/waiting": float(len(waiting)),
      }
    )
    for rl in host.rl(answers):
      yield StepBatch(rl=rl, sft=None)
    if chosen:
      yield StepBatch(rl=None, sft=host.sft(chosen, rows=options.buffer))

  plan = contract.Plan(rollouts=True, demonstrations=False)
  return contract.Method(
    needs=contract.Needs(demonstrations="own"),
    init=init,
    plan=lambda step, scalars: plan,
    update=update,
    batches=batches,
  )
