"""The matrix product of a layer, against JAX's own."""

import chex
import jax
import jax.numpy as jnp

from bilevel_jax.models import layers


def test_a_product_and_two_derivatives_agree_with_jax():
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, 3, 5))
  kernel = jax.random.normal(keys[1], (5, 4))
  direction = jax.random.normal(keys[2], (5, 4))

  @jax.jit
  def moments(x, kernel):
    found = []
    for product in (layers.product, jnp.matmul):
      loss = lambda x, w, product=product: jnp.sum(jnp.sin(product(x, w)))
      gradients = jax.grad(loss, argnums=(0, 1))
      along = lambda w, gradients=gradients: gradients(x, w)
      found.append(
        (
          loss(x, kernel),
          jax.jvp(along, (kernel,), (direction,)),
          jax.grad(lambda w, f=along: jnp.sum(f(w)[0] ** 2))(kernel),
        )
      )
    return found

  ours, jaxs = moments(x, kernel)
  chex.assert_trees_all_close(ours, jaxs, rtol=1e-5, atol=1e-5)
