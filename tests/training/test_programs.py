"""An update that is not finite leaves the state alone, and is counted."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax.methods import contract
from bilevel_jax.training import programs

NAN = np.float32(np.nan)


def _state(skipped=0):
  state = contract.new_state(
    {"base": optax.sgd(0.1)},
    base={"x": jnp.ones(3)},
    extra={"mu": jnp.float32(0.5)},
  )
  return dataclasses.replace(state, skipped_in_a_row=jnp.int32(skipped))


def _update(state, batch):
  """A method whose numbers have names of its own; a batch is what they are."""
  state = dataclasses.replace(
    state,
    updates=state.updates + 1,
    base=jax.tree.map(lambda x: x + 1, state.base),
    extra={"mu": state.extra["mu"] / 2},
  )
  return contract.Updated(state, batch["logged"], batch["watched"])


GUARDED = jax.jit(programs.guarded(_update))


@pytest.mark.parametrize(
  "watched",
  [
    {"whatever": NAN},
    [np.float32(1), (np.float32(2), {"deep": np.float32(np.inf)})],
    {"a tree": {"of": np.array([[1, 2], [-np.inf, 3]], np.float32)}},
  ],
)
def test_whatever_it_is_called_what_must_be_finite_guards_the_state(watched):
  logged = {"mine/number": np.float32(3)}  # which says nothing of it
  state = _state(skipped=1)
  after, metrics = GUARDED(state, {"logged": logged, "watched": watched})
  assert int(after.skipped_in_a_row) == 2
  chex.assert_trees_all_equal(
    after, dataclasses.replace(state, skipped_in_a_row=after.skipped_in_a_row)
  )
  assert metrics == logged | {"training/skipped_updates": 1.0}


def test_a_number_that_is_only_logged_guards_nothing():
  """Whatever its name: a gradient norm of no interest may be infinite."""
  names = ("sft/loss", "rl/loss", "optimizer/base_gradient_norm", "mine")
  batch = {"logged": dict.fromkeys(names, NAN), "watched": np.float32(1)}
  after, metrics = GUARDED(_state(skipped=1), batch)
  assert int(after.updates) == 1
  assert int(after.skipped_in_a_row) == 0
  assert float(metrics["training/skipped_updates"]) == 0.0


@pytest.mark.parametrize("nothing", [(), {}, None, {"losses": []}])
def test_an_update_that_names_nothing_is_never_skipped(nothing):
  """Nor does it end a row of skipped ones: it is none of either."""
  batch = {"logged": {"sft/loss": NAN}, "watched": nothing}
  after, metrics = GUARDED(_state(skipped=2), batch)
  assert int(after.updates) == 1
  assert after.base["x"].tolist() == [2, 2, 2]
  assert float(after.extra["mu"]) == 0.25
  assert int(after.skipped_in_a_row) == 2
  assert float(metrics["training/skipped_updates"]) == 0.0
