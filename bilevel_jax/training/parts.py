"""Everything that a run is made of, built from its settings."""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel_jax import config, methods
from bilevel_jax.bilevel.problem import Problem
from bilevel_jax.data import batches, corpora
from bilevel_jax.data import tokenizer as tokenizer_lib
from bilevel_jax.methods import (
  accumulation,
  contract,
  hypergradients,
  terms,
)
from bilevel_jax.models import (
  attention,
  gguf,
  gguf_tokenizer,
  huggingface,
  presets,
)
from bilevel_jax.models import policy as policy_lib
from bilevel_jax.objectives import policy_gradient, token_weights, weighting
from bilevel_jax.rollout import engine
from bilevel_jax.training import optimizers, sharding
from bilevel_jax.training import step as step_lib
from bilevel_jax.types import Policy, TrainState, Tree


class Model(NamedTuple):
  """A policy, and where its weights and its tokenizer come from."""

  policy: Policy
  architecture: presets.Architecture
  tokenizer: tokenizer_lib.Tokenizer
  directory: pathlib.Path | None
  """Hugging Face directory of the weights, where they have one."""


class Streams(NamedTuple):
  """The examples of a run. The two training streams may share questions."""

  prompts: batches.Prompts
  demonstrations: batches.Demonstrations | None
  held_out: batches.Prompts | None


class Learner(NamedTuple):
  """The method with its compiled programs and how a batch is weighted."""

  method: contract.Method
  programs: step_lib.Programs
  rl_weighting: weighting.Weighting
  sft_weighting: weighting.Weighting


def build_model(settings: config.Config) -> Model:
  """Returns the model of the settings; reads no weights yet.

  Raises:
    ConfigError: an unknown architecture, or a tokenizer that does not fit.
  """
  source = settings.model
  directory = tokenizer_source = None
  if source.weights is None:
    architecture = presets.get(str(source.preset))
  elif source.weights.endswith(".gguf"):
    file = pathlib.Path(source.weights)
    architecture = gguf.read_architecture(file)
    if settings.tokenizer.path is None:
      tokenizer_source = pathlib.Path(settings.run_dir) / "tokenizer"
      gguf_tokenizer.write(file, tokenizer_source)
  else:
    directory = huggingface.resolve(source.weights, source.revision)
    architecture = huggingface.read_architecture(directory)
    tokenizer_source = directory
  tokenizer_source = settings.tokenizer.path or tokenizer_source
  if tokenizer_source is None:
    raise config.ConfigError(
      "tokenizer.path must be set when model.weights is not, got None"
    )
  tokenizer = tokenizer_lib.load(
    tokenizer_source,
    chat_template=settings.tokenizer.chat_template,
    system_prompt=settings.tokenizer.system_prompt,
    prompt=settings.tokenizer.prompt,
    use_chat_template=settings.tokenizer.use_chat_template,
  )
  tokenizer.check_fits(architecture.vocab_size)
  longest_completion = max(
    settings.rollout.max_new_tokens, settings.evaluation.max_new_tokens or 0
  )
  longest = max(
    settings.data.max_prompt_tokens + longest_completion,
    settings.data.max_demonstration_tokens,
  )
  if longest > architecture.max_positions:
    raise config.ConfigError(
      f"the longest sequence has {longest} tokens (data.max_prompt_tokens + "
      "rollout.max_new_tokens or evaluation.max_new_tokens, or "
      "data.max_demonstration_tokens), but the model has "
      f"{architecture.max_positions} positions"
    )
  exact = [
    form
    for form in _second_order(settings.method)
    if hypergradients.mixed_product(settings.method, form) == "exact"
  ]
  if exact and source.attention not in ("auto", *attention.SECOND_ORDER):
    raise config.ConfigError(
      f"the hypergradient {exact[0]} needs second derivatives, and "
      f"model.attention={source.attention} has first ones only: take chunked, "
      "or method.mixed_product=finite_difference"
    )
  policy = policy_lib.make(
    architecture,
    adapter_rank=settings.adapter.rank,
    adapter_alpha=settings.adapter.alpha,
    adapter_targets=settings.adapter.targets,
    compute_dtype=source.compute_dtype,
    attention=source.attention,
    remat=source.remat,
  )
  if (kv_cache_bytes := settings.rollout.kv_cache_bytes) is not None:
    engine.rows_that_fit(
      policy,
      settings.data.max_prompt_tokens,
      longest_completion,
      kv_cache_bytes,
    )
  return Model(policy, architecture, tokenizer, directory)


def build_streams(
  settings: config.Config, tokenizer: batches.Encoder
) -> Streams:
  """Returns the encoded examples.

  Raises:
    ConfigError: a source that cannot be read, or nothing that fits.
  """
  data = settings.data
  questions = corpora.load(data.questions)
  is_set = lambda source: bool(source.path or source.hub or source.task)

  def prompts(examples, seed):
    return batches.Prompts(
      examples,
      tokenizer,
      max_tokens=data.max_prompt_tokens,
      overlong=data.overlong,
      seed=seed,
    )

  demonstrations = None
  if data.demonstrations_per_step:
    demonstrations = batches.Demonstrations(
      corpora.load(data.demonstrations)
      if is_set(data.demonstrations)
      else questions,
      tokenizer,
      max_tokens=data.max_demonstration_tokens,
      overlong=data.overlong,
      share=data.demonstration_share,
      seed=settings.seed + 1,
    )
  held_out = None
  if is_set(data.evaluation):
    held_out = prompts(corpora.load(data.evaluation), settings.seed)
  return Streams(prompts(questions, settings.seed), demonstrations, held_out)


def make_mesh(settings: config.Mesh) -> jax.sharding.Mesh:
  """Returns the mesh: of all devices, or of the first if `fsdp` is smaller."""
  devices, others = jax.devices(), settings.data * settings.tensor
  if settings.fsdp is None:
    fsdp = max(1, len(devices) // others)
  else:
    fsdp = settings.fsdp
    devices = devices[: others * fsdp]
  return sharding.make_mesh(settings.data, fsdp, settings.tensor, devices)


def updates_per_step(settings: config.Config) -> int:
  """Returns the optimiser updates of one step."""
  return settings.rl.updates_per_rollout * settings.rl.passes_per_rollout


def reference_dtype(settings: config.Config) -> str | None:
  """Returns the dtype of the KL's reference policy, None without a KL term."""
  return settings.model.compute_dtype if settings.rl.kl_coef > 0 else None


def _second_order(settings: config.Method) -> list[str]:
  """The forms of a method that differentiate its losses twice."""
  wanted = (settings.hypergradient, *settings.compare_with)
  if settings.name != "bridge":
    return []
  return [name for name in wanted if name in hypergradients.SECOND_ORDER]


def build_learner(
  settings: config.Config, policy: Policy, mesh: jax.sharding.Mesh
) -> Learner:
  """Returns the method of the settings, compiled for a mesh.

  Raises:
    ConfigError: an unknown method.
  """
  if settings.method.name not in methods.METHODS:
    raise config.ConfigError(
      f"method.name must be one of {', '.join(methods.METHODS)}, got "
      f"{settings.method.name!r}"
    )
  total_updates = settings.steps * updates_per_step(settings)
  rollout, rl = settings.rollout, settings.rl

  def base_optimizer(learning_rate: float | None, updates: int):
    group = settings.optimizer.base
    if learning_rate is not None:
      group = dataclasses.replace(group, learning_rate=learning_rate)
    return optimizers.build(group, updates)

  rl_only_optimizer = base_optimizer(None, total_updates)
  if settings.method.rl_only_optimizer == "sgd":
    rl_only_optimizer = optimizers.build(
      config.Optimizer(
        name="sgd",
        learning_rate=settings.optimizer.base.learning_rate,
        clip_norm=settings.optimizer.base.clip_norm,
      ),
      total_updates,
    )
  chunk = settings.model.logprob_chunk
  twice = _second_order(settings.method)
  supervised = lambda weight: terms.sft_objective(
    policy, chunk=chunk, token_weight=weight
  )
  method = methods.METHODS[settings.method.name](
    settings.method,
    contract.Ingredients(
      problem=Problem(
        upper=supervised(
          token_weights.build(
            settings.sft.token_weight, settings.sft.trust_region
          )
        ),
        lower=terms.rl_objective(
          policy,
          temperature=rollout.temperature,
          clip_low=rl.clip_low,
          clip_high=rl.clip_high,
          kl_coef=rl.kl_coef,
          chunk=chunk,
          importance_cap=rl.importance_cap,
          ratio=rl.ratio,
          clip=rl.clip,
          surrogate=settings.method.surrogate if twice else "fixed_sample",
        ),
      ),
      gradient=accumulation.gradient_over(
        settings.training.micro_batch_sequences
      ),
      optimizers={
        "base": base_optimizer(None, total_updates),
        "adapter": optimizers.build(settings.optimizer.adapter, total_updates),
        "rl_only_base": rl_only_optimizer,
      },
      total_updates=total_updates,
      supervised=supervised,
      advantages=functools.partial(
        policy_gradient.group_advantages, normalise=rl.advantage
      ),
      base_optimizer=base_optimizer,
      updates_per_step=updates_per_step(settings),
      reference_dtype=reference_dtype(settings),
      seed=settings.seed,
    ),
  )
  programs = step_lib.compile_programs(
    method,
    policy,
    temperature=rollout.temperature,
    adapter_scale=settings.adapter.scale,
    chunk=chunk,
    state_shardings=sharding.shardings(abstract_state(method, policy), mesh),
  )
  return Learner(
    method,
    programs,
    weighting.build(rl.weighting, rollout.max_new_tokens),
    weighting.build(
      settings.sft.weighting, settings.data.max_demonstration_tokens
    ),
  )


def abstract_state(method: contract.Method, policy: Policy) -> TrainState:
  """Returns the shapes and dtypes of a method's state; computes nothing."""

  def make() -> TrainState:
    keys = jax.random.split(jax.random.key(0))
    adapter = policy.init_adapter(keys[1]) if method.trains_adapter else None
    return method.init(policy.init(keys[0]), adapter)

  return jax.eval_shape(make)


def load_base(
  settings: config.Config, model: Model, mesh: jax.sharding.Mesh
) -> Tree:
  """Returns the base to start from, in float32, sharded over the mesh.

  Raises:
    ConfigError: weights that cannot be read or do not fit.
  """
  policy, source = model.policy, settings.model
  key = jax.random.fold_in(jax.random.key(settings.seed), 0)
  placed = sharding.shardings(jax.eval_shape(policy.init, key), mesh)
  if model.directory is not None:
    return huggingface.load_base(model.directory, model.architecture, placed)
  if source.weights is not None:
    return jax.device_put(gguf.load(pathlib.Path(source.weights))[1], placed)
  return jax.jit(policy.init, out_shardings=placed)(key)


def initial_state(
  settings: config.Config, learner: Learner, policy: Policy, base: Tree
) -> TrainState:
  """Returns the state before the first update; `base` is not consumed."""
  adapter = None
  if learner.method.trains_adapter:
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    adapter = jax.jit(policy.init_adapter)(key)
  return learner.programs.init(jax.tree.map(jnp.copy, base), adapter)


_STREAMS = ("rollout", "evaluation")


def key(settings: config.Config, stream: str, step: int) -> jax.Array:
  """Returns the key of a stream of random numbers at a step.

  Args:
    settings: for the seed.
    stream: rollout or evaluation.
    step: steps done before.
  """
  root = jax.random.key(settings.seed)
  number = 2 + _STREAMS.index(stream)
  return jax.random.fold_in(jax.random.fold_in(root, number), step)


def fingerprint(base: Tree) -> dict[str, float]:
  """Returns what tells one set of weights from another: JSON."""
  leaves = jax.tree.leaves(base)
  total = jax.jit(lambda xs: sum(jnp.sum(jnp.abs(x)) for x in xs))(leaves)
  return {
    "parameters": sum(x.size for x in leaves),
    "sum_of_magnitudes": float(total),
  }


def export(
  directory: pathlib.Path,
  settings: config.Config,
  model: Model,
  state: TrainState,
) -> None:
  """Writes the merged policy for transformers, and the adapter for PEFT.

  The adapter belongs on the base that was trained with it, which is the
  merged policy less the adapter, not on the weights that the run began with.
  """
  adapter = settings.adapter
  huggingface.export(
    directory,
    model.architecture,
    state.base,
    state.adapter,
    adapter.scale,
    source_directory=model.tokenizer.files,
  )
  if state.adapter is not None:
    huggingface.export_adapter(
      directory / "adapter",
      model.architecture,
      state.adapter,
      rank=adapter.rank,
      alpha=adapter.alpha,
      targets=adapter.targets,
      base_model_name=str(settings.model.weights or settings.model.preset),
    )
