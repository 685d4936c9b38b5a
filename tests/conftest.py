"""Four CPU devices, strict promotion and key checks, for every test."""

import importlib.metadata
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Nearly all of the suite's time is compilation: a quarter of it with these.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0"
  + " --xla_cpu_use_fusion_emitters=false"  # gone in jaxlib 0.12
  * importlib.metadata.version("jaxlib").startswith("0.10."),
)

import jax

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
