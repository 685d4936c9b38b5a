"""Four CPU devices, strict promotion and key checks, for every test."""

import dataclasses
import importlib.metadata
import os
import pathlib

# What runs keep for later ones stays out of the user's own cache directory.
os.environ["XDG_CACHE_HOME"] = str(
  pathlib.Path(__file__).parents[1] / ".pytest_cache" / "runs"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Nearly all of the suite's time is compilation: a quarter of it with these.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0"
  + " --xla_cpu_use_fusion_emitters=false"  # gone in jaxlib 0.12
  * importlib.metadata.version("jaxlib").startswith("0.10."),
)

import hypothesis
import jax
import pytest

# A machine may be busy: nothing fails for the time that it takes.
hypothesis.settings.register_profile(
  "any machine",
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any machine")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def float64():
  """Double precision, for tests whose oracle is a closed form."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file_at_a_time():
  """Thousands of programs in one process reach its limit of memory maps."""
  kept = _kept_programs()
  yield
  jax.clear_caches()
  assert _kept_programs() == kept, "a test left the cache of programs changed"


def _kept_programs() -> tuple[str | None, str | None]:
  return (
    os.environ.get("JAX_COMPILATION_CACHE_DIR"),
    jax.config.jax_compilation_cache_dir,
  )


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> pathlib.Path:
  """A directory with the weights and the tokenizer of `tests.tiny_run`."""
  from tests import tiny_run

  directory = tmp_path_factory.mktemp("runs")
  tiny_run.weights(directory)
  return directory


@pytest.fixture(scope="module")
def programs_of_any_name():
  """Runs that differ in names alone share their programs.

  Compiling is most of their time, and a program knows no names.
  """
  from bilevel_jax.training import learner

  build, built = learner.build, {}

  def build_once(settings, policy, mesh, *demonstrations):
    like = dataclasses.replace(
      settings,
      run_dir="",
      resume=False,
      model=dataclasses.replace(settings.model, weights=None),
    )
    key = repr(like), policy, mesh, repr(demonstrations)
    if key not in built:
      built[key] = build(settings, policy, mesh, *demonstrations)
    return built[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(learner, "build", build_once)
    yield
