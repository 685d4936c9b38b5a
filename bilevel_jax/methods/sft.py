"""Supervised fine-tuning alone: the baseline that must not be faulty."""

from bilevel_jax.bilevel import problem
from bilevel_jax.methods import contract, updates

ROLLOUTS = False


def build(
  options: object,
  setup: contract.Setup,
  objective: problem.Objective | None = None,
) -> contract.Method:
  """Returns SFT: base <- base - lr grad L_SFT(base), on demonstrations.

  Args:
    objective: in place of the plain SFT loss.
  """
  plan = contract.Plan(rollouts=False, demonstrations=True)
  return contract.Method(
    needs=contract.Needs(
      rollouts=False, demonstrations="required", reference=None
    ),
    init=lambda base, adapter: contract.new_state(setup.optimizers, base=base),
    plan=lambda step, scalars: plan,
    update=updates.descent(setup, "sft", objective=objective),
  )
