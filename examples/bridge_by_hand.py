"""BRIDGE by hand: where is the cooperative gain?

A question is a token q of 0 .. 7, and its answer counts on from it, modulo 8:
q + 1, q + 2, q + 3. The reward is 1 for all three tokens, else 0: a uniform
policy earns 1/512, so RL alone hardly ever sees a reward. Two demonstrations
show five of the eight transitions, enough for three questions. In joint
training SFT makes rewards frequent enough for RL to learn the other five.

The policy is a bigram table, the base, plus a product of low rank, the
adapter: so small that expected rewards are sums over all 4,096 sequences, and
the gains printed here are exact. Training itself sees samples only.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel_jax.bilevel import penalty, problem

VOCAB, LENGTH, RANK = 8, 3, 2  # tokens; tokens of an answer; of the adapter
SAMPLES = 8  # answers to each question, in each update
PENALTY = 0.5  # lambda: RL's weight, beside 1 - lambda of SFT
ALL = jnp.indices((VOCAB,) * (LENGTH + 1)).reshape(LENGTH + 1, -1).T
DEMONSTRATIONS = jnp.array([[0, 1, 2, 3], [2, 3, 4, 5]])


class Variables(NamedTuple):
  """What is trained; also holds an optimiser, or its state, for each."""

  base: Any  # theta: [VOCAB, VOCAB], trained by SFT and RL
  rl_only_base: Any  # theta-hat: the same at first, then trained by RL alone
  adapter: Any  # w: {"A": [VOCAB, RANK], "B": [RANK, VOCAB]}, used with both


def logits(base, adapter):
  """Returns [VOCAB, VOCAB]: a row for each token, of the token after it."""
  return base + adapter["A"] @ adapter["B"]


def log_probs(base, adapter, tokens):
  """Returns [N]: log pi(answer | question) of tokens [N, 1 + LENGTH]."""
  table = jax.nn.log_softmax(logits(base, adapter))
  return table[tokens[:, :-1], tokens[:, 1:]].sum(axis=1)


def reward(tokens):
  """Returns [N]: 1.0 where tokens [N, 1 + LENGTH] count on, else 0.0."""
  steps = (tokens[:, 1:] - tokens[:, :-1]) % VOCAB
  return (steps == 1).all(axis=1).astype(jnp.float32)


def expected_reward(base, adapter):
  """Returns the scalar J_RL, exact: a sum over all answers there are."""
  return jnp.exp(log_probs(base, adapter, ALL)) @ reward(ALL) / VOCAB


@jax.jit
def sample(key, base, adapter):
  """Returns tokens [VOCAB * SAMPLES, 1 + LENGTH], grouped by question."""
  tokens = [jnp.repeat(jnp.arange(VOCAB), SAMPLES)]
  for one in jax.random.split(key, LENGTH):
    following = logits(base, adapter)[tokens[-1]]
    tokens.append(jax.random.categorical(one, following))
  return jnp.stack(tokens, axis=1)


def sft_loss(base, adapter, tokens):
  """The upper objective: -J_SFT on demonstrations [N, 1 + LENGTH]."""
  return -log_probs(base, adapter, tokens).mean(), {}


def rl_loss(base, adapter, tokens):
  """The lower objective: its gradient estimates that of -J_RL (REINFORCE)."""
  # The tokens are as `sample` gives them for this policy. No clip, no KL term.
  groups = reward(tokens).reshape(VOCAB, SAMPLES)
  advantages = (groups - groups.mean(axis=1, keepdims=True)).reshape(-1)
  return -(advantages * log_probs(base, adapter, tokens)).mean(), {}


def update(optimizers, gain_weight, variables, states, rollouts, rl_rollouts):
  """One BRIDGE update, given what the two policies sampled; see `train`."""
  terms = penalty.terms(  # three gradients, all at the old variables
    problem.Problem(upper=sft_loss, lower=rl_loss),
    *variables,
    DEMONSTRATIONS,
    rollouts,
    # RL alone learns from samples of its own. A language model's are costly:
    # there it is scored on the joint policy's, by importance ratios.
    lower_only_batch=lambda lower_batch, aux: rl_rollouts,
  )
  # The gain (see `train`) has its gradient taken in `penalty.combine`, by
  # `excess(of_lower.by_upper, 1, lower_only.by_upper)`: of minus the gain, as
  # losses are minimised. It moves the adapter alone, with weight PENALTY.
  found = penalty.combine(terms, PENALTY, gain_weight)
  gradients = Variables(found.lower, found.lower_only, found.upper)
  new, new_states = [], []
  for i, optimizer in enumerate(optimizers):
    step, state = optimizer.update(gradients[i], states[i], variables[i])
    new.append(optax.apply_updates(variables[i], step))
    new_states.append(state)
  return Variables(*new), Variables(*new_states)


def train(updates=240, every=30, gain_weight=1.0, adapter_rate=0.05):
  """Returns rows (updates, SFT loss, J_RL joint, J_RL of RL only, gain)."""
  optimizers = Variables(*map(optax.sgd, (1.0, 1.0, adapter_rate)))
  step = jax.jit(lambda *x: update(optimizers, gain_weight, *x))
  key, key_a = jax.random.split(jax.random.key(0))
  base = jnp.zeros((VOCAB, VOCAB))
  a = jax.random.normal(key_a, (VOCAB, RANK)) / RANK**0.5
  adapter = {"A": a, "B": jnp.zeros((RANK, VOCAB))}  # A @ B = 0: no effect yet
  variables = Variables(base, base, adapter)
  states = Variables(*map(lambda o, v: o.init(v), optimizers, variables))
  rows = []
  for number in range(updates + 1):
    base, rl_only_base, adapter = variables
    if number % every == 0:
      joint = expected_reward(base, adapter)
      rl_only = expected_reward(rl_only_base, adapter)
      gain = joint - rl_only  # J_RL(theta, w) - J_RL(theta-hat, w)
      loss, _ = sft_loss(base, adapter, DEMONSTRATIONS)
      rows.append((number, *map(float, (loss, joint, rl_only, gain))))
    key, *keys = jax.random.split(key, 3)
    rollouts = sample(keys[0], base, adapter)
    rl_rollouts = sample(keys[1], rl_only_base, adapter)
    variables, states = step(variables, states, rollouts, rl_rollouts)
  return rows


def main():
  """Prints the table and three comparisons; returns the table's rows."""
  rows = train()
  print("updates  SFT loss  joint reward  RL-only reward  cooperative gain")
  for row in rows:
    print("{:7d}{:10.3f}{:14.3f}{:16.3f}{:18.3f}".format(*row))
  print("\nThe base is a whole table, and can learn all that A @ B can say:")
  print("the gain is joint training's over RL alone, not the adapter's. It is")
  for options, where in (
    ({"gain_weight": 0.0}, "if the adapter ignores the gain's gradient"),
    ({"adapter_rate": 0.0}, "if the adapter is not trained"),
    ({"updates": 990}, "after 990 updates: RL alone is slow, not unable"),
  ):
    print(f"  {train(**options)[-1][-1]:.3f} {where}")
  return rows


if __name__ == "__main__":
  main()
