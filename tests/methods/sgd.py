"""One update of a method on the world, and what plain SGD says of it."""

import jax

from bilevel_jax.bilevel import problem as problem_lib
from bilevel_jax.methods import terms
from tests.methods.conftest import RATE


def step(world, name, step=0, state=None, **settings):
  """Returns the state after one update of a method, and its metrics."""
  method = world.method(name, **settings)
  state = world.start(method) if state is None else state
  return run(method, state, world.batch(method, step))


def run(method, state, batch):
  """Returns the state after an update, compiled, and its metrics."""
  done = jax.jit(method.update)(state, batch)
  return done.state, done.metrics


def moved(before, after):
  """Returns what one SGD update says the gradient was."""
  return jax.tree.map(lambda b, a: (b - a) / RATE, before, after)


def descended(base, gradient, rate=RATE):
  return jax.tree.map(lambda x, g: x - rate * g, base, gradient)


def gradient(loss, base):
  return jax.jit(jax.grad(loss))(base)


def sft_gradient(world, base):
  return problem_lib.gradient(world.problem().upper)(
    base, None, world.sft
  ).by_lower


def rl_gradient(world, base):
  return problem_lib.gradient(world.problem().lower)(
    base, None, world.rl
  ).by_lower


def scores(world, base, batch):
  """Returns the log-probs of a batch's tokens, and the entropies."""
  return terms.token_logprobs(
    world.policy,
    base,
    None,
    batch,
    temperature=1.0,
    chunk=64,
    with_entropy=True,
  )
