"""A whole run that is small enough for a test: weights, tokenizer, settings."""

import dataclasses
import json
import pathlib

import jax

from bilevel_jax import config
from bilevel_jax.data import tokenizer_files
from bilevel_jax.models import lora, policy, presets
from bilevel_jax.training import checkpoint, learner, meshes, sources
from bilevel_jax.weights import huggingface_export

ARCHITECTURE = presets.Architecture(
  family="llama",
  vocab_size=64,
  width=16,
  layers=2,
  heads=2,
  kv_heads=1,
  head_dim=8,
  mlp_width=32,
  max_positions=128,
)


def make_policy(architecture=ARCHITECTURE, compute_dtype="float32", **changes):
  """Returns the Policy of the tiny model."""
  tokens = len(tokenizer_files.CHARACTERS) + 2  # <pad> and <eos> are the first
  settings = {
    "without_token": frozenset(range(tokens, architecture.vocab_size)),
    "adapter": lora.Spec(rank=2, alpha=2.0, targets=("q", "v", "down")),
    "compute_dtype": compute_dtype,
    "attention": "xla",
    "remat": "none",
  }
  return policy.make(architecture, **(settings | changes))


def weights(directory: pathlib.Path, seed: int = 0, **changes) -> pathlib.Path:
  """Writes random weights with a character tokenizer; returns directory."""
  architecture = dataclasses.replace(ARCHITECTURE, **changes)
  tokenizer_files.character_tokenizer(directory / "tokenizer")
  base = jax.jit(make_policy(architecture).init)(jax.random.key(seed))
  return huggingface_export.export(
    directory / "policy",
    architecture,
    base,
    source_directory=directory / "tokenizer",
  )


def logged(run_dir, name: str = "metrics.jsonl") -> list[dict]:
  """Returns a run's lines but for its times, as they were written."""
  lines = (pathlib.Path(run_dir) / name).read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("time/")}
    for line in lines
  ]


def settings(directory: pathlib.Path, run_dir: str = "run"):
  """Returns a ConfigDict for a run of four steps on short arithmetic."""
  c = config.default_config()
  c.run_dir = str(directory / run_dir)
  c.steps = 4
  c.model.weights = str(directory / "policy")
  c.model.remat = "none"
  c.model.attention = "xla"
  c.adapter.rank = 2
  c.adapter.targets = ("q", "v", "down")
  c.tokenizer.prompt = "{question}"
  c.data.questions.task = "arithmetic"
  c.data.questions.count = 10  # three questions a step: epochs end mid-step
  c.data.questions.task_options = {"steps": 1, "max_operand": 9}
  c.data.evaluation.task = "arithmetic"
  c.data.evaluation.split = "test"
  c.data.evaluation.count = 5
  c.data.evaluation.task_options = {"steps": 2, "max_operand": 9}
  c.data.prompts_per_step = 3
  c.data.demonstrations_per_step = 4
  c.data.max_prompt_tokens = 16
  c.data.max_demonstration_tokens = 48
  c.reward.verifiers = ("tests.tiny_run.digits",)
  c.reward.workers = 1
  c.reward.deadline_s = 60.0
  c.rollout.samples_per_prompt = 4
  c.rollout.max_new_tokens = 8
  c.optimizer.base.learning_rate = 1e-2
  c.optimizer.adapter.learning_rate = 1e-2
  c.checkpoints.every = 1
  c.mesh.fsdp = 1  # a run on four devices has a test of its own
  return c


def parsed(directory: pathlib.Path, run_dir: str, **changes) -> config.Config:
  """Returns its Config; group__field=value changes a field."""
  c = settings(directory, run_dir)
  for name, value in changes.items():
    c.update_from_flattened_dict({name.replace("__", "."): value})
  return config.parse(c)


def last_state(settings: config.Config):
  """Returns the last checkpoint of a run: step, state, where streams stood."""
  model = sources.build_model(settings, sources.open_model(settings))
  mesh, _ = meshes.make(settings, model.architecture)
  streams = sources.build_streams(settings, model.tokenizer)
  built = learner.build(
    settings,
    model.policy,
    mesh,
    sources.demonstration_groups(settings, streams),
  )
  abstract = learner.abstract_state(built.method, model.policy)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract
  )
  checkpoints = checkpoint.Checkpoints(
    pathlib.Path(settings.run_dir) / "checkpoints", keep_last=2, keep_best=1
  )
  with checkpoints:
    restored = checkpoints.restore(abstract)
  assert restored is not None
  return restored


def digits(completion, question) -> float:
  """A reward that random text earns sometimes: its share of digits."""
  del question
  return sum(c.isdigit() for c in completion) / max(len(completion), 1)


def broken(completion, question):
  """A reward that looks for a field that no question has."""
  return question.meta["gold"]
