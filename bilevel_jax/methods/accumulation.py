"""Gradients summed over micro-batches: exact, because weights are global."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel_jax.bilevel import problem
from bilevel_jax.types import Tree


def gradient_over(
  rows: int | None,
) -> Callable[[problem.Objective], problem.GradientFunction]:
  """Returns `bilevel.problem.gradient`, `rows` rows of the batch at a time.

  The sum over micro-batches is the gradient of the whole batch, since every
  token's weight was fixed over the global batch beforehand.

  Args:
    rows: rows of a micro-batch; None: the whole batch at once.
  """

  def gradient(objective: problem.Objective) -> problem.GradientFunction:
    whole = problem.gradient(objective)

    def accumulated(base: Tree, adapter: Tree, batch: Tree):
      total = jax.tree.leaves(batch)[0].shape[0]
      if rows is None or rows >= total:
        return whole(base, adapter, batch)
      count = -(-total // rows)

      # Strided: micro-batch i takes rows i, i + count, ..., so rows that are
      # sharded over devices in blocks need not move.
      def split(x: jax.Array) -> jax.Array:
        padding = ((0, count * rows - total),) + ((0, 0),) * (x.ndim - 1)
        x = jnp.pad(x, padding)
        return x.reshape(rows, count, *x.shape[1:]).swapaxes(0, 1)

      def join(x: jax.Array) -> jax.Array:
        x = x.swapaxes(0, 1)
        return x.reshape(rows * count, *x.shape[2:])[:total]

      def add(sums, micro_batch):
        part = whole(base, adapter, micro_batch)
        sums = jax.tree.map(jnp.add, sums, (part.base, part.adapter, part.loss))
        return sums, part.aux

      zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), (base, adapter)
      )
      loss_dtype = jnp.result_type(*jax.tree.leaves(base), jnp.float32)
      (base_sum, adapter_sum, loss), aux = jax.lax.scan(
        add,
        (*zeros, jnp.zeros((), loss_dtype)),
        jax.tree.map(split, batch),
      )
      return problem.Gradient(
        base=base_sum,
        adapter=adapter_sum,
        loss=loss,
        aux=jax.tree.map(join, aux),
      )

    return accumulated

  return gradient
