"""Divergences from a teacher, against sums over the vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from bilevel_jax.objectives import divergences

pytestmark = pytest.mark.usefixtures("float64")
ROWS, COLUMNS, WIDTH, VOCABULARY = 2, 5, 4, 11
KINDS = ("forward", "reverse", "js")


@pytest.fixture
def inputs():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
  return (
    draw(ROWS, COLUMNS, WIDTH),
    draw(WIDTH, VOCABULARY),
    divergences.Teacher(
      draw(ROWS, COLUMNS, WIDTH + 1), draw(WIDTH + 1, VOCABULARY)
    ),
  )


def _expected(inputs, kind, *, temperature=1.0, without=(), top=None):
  states, table, teacher = inputs
  found = np.zeros((ROWS, COLUMNS))
  for place in np.ndindex(ROWS, COLUMNS):
    rows = []
    for hidden, kernel in (
      (teacher.states[place], teacher.unembedding),
      (states[place], table),
    ):
      logits = np.asarray(hidden @ kernel) / temperature
      logits[list(without)] = -np.inf
      rows.append(scipy.special.softmax(logits))
    t, p = rows
    if top is not None:
      best = np.argsort(-t)[:top]
      t, p = (np.append(x[best], 1 - x[best].sum()) for x in (t, p))
    if kind == "js":
      m = (t + p) / 2
      terms = scipy.special.rel_entr(t, m) + scipy.special.rel_entr(p, m)
      found[place] = terms.sum() / 2
    else:
      pair = (t, p) if kind == "forward" else (p, t)
      found[place] = scipy.special.rel_entr(*pair).sum()
  return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 16, 1000])
def test_the_divergence_is_the_sum_over_the_vocabulary(inputs, kind, chunk):
  for how in (
    {},
    {"temperature": 0.7},
    {"top": 3},
    {"without": (2, 7)},
  ):
    expected = _expected(inputs, kind, **how)
    named = dict(how)
    named["without_token"] = frozenset(named.pop("without", ()))
    found = divergences.of_states(*inputs, kind=kind, chunk=chunk, **named)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_its_gradient_is_that_of_differences_and_the_teacher_has_none(
  inputs, kind
):
  states, table, teacher = inputs
  total = lambda states, table, teacher: jnp.sum(
    divergences.of_states(
      states, table, teacher, kind=kind, chunk=8, without_token=frozenset({3})
    )
  )
  by = jax.grad(total, argnums=(0, 1, 2))(states, table, teacher)
  rng = np.random.default_rng(1)
  for place in (0, 1):
    way = jnp.asarray(rng.normal(size=inputs[place].shape))
    at = lambda step, place=place, way=way: total(
      *(
        x + step * way if n == place else x
        for n, x in enumerate((states, table))
      ),
      teacher,
    )
    np.testing.assert_allclose(
      jnp.sum(by[place] * way), (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-6
    )
  for x in by[2]:
    np.testing.assert_array_equal(x, 0.0)


@pytest.mark.parametrize("top", [None, 4])
def test_there_is_none_where_both_agree(inputs, top):
  states, table, _ = inputs
  same = divergences.Teacher(states, table)
  for kind in KINDS:
    total = functools.partial(
      divergences.of_states, teacher=same, kind=kind, top=top
    )
    np.testing.assert_allclose(total(states, table), 0.0, atol=1e-12)
    gradient = jax.grad(lambda x, total=total: total(x, table).sum())(states)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)
