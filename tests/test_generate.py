"""Text from weights: what the engine sampled, in order, while it comes."""

import io
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from bilevel_jax import config, generate, types
from bilevel_jax.data import tokenizer
from bilevel_jax.rollout import engine
from bilevel_jax.weights import huggingface
from tests import processes, tiny_run

BUDGET = 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> pathlib.Path:
  return tiny_run.weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def run(directory, capsys):
  def run(*arguments, weights=directory):
    code = generate.main(
      ["--weights", str(weights), "--max-new-tokens", str(BUDGET), *arguments]
    )
    return code, *capsys.readouterr()

  return run


def test_a_stop_string_ends_the_text(run):
  """Where it comes, and at the end of the budget where it does not."""
  _, whole, _ = run("--prompt", "1+1", "--temperature", "1")
  text = whole.rstrip("\n")
  middle = text[len(text) // 2]
  code, out, _ = run("--prompt", "1+1", "--temperature", "1", "--stop", middle)
  assert code == 0
  assert out == text[: text.index(middle) + 1] + "\n"


def _expected(directory, prompts, *, samples, seed, temperature):
  """The engine's own texts, with a policy made here."""
  architecture = huggingface.read_architecture(directory)
  policy = tiny_run.make_policy(architecture)
  loaded = tokenizer.from_source(directory)
  rollout = engine.generate(
    policy,
    policy.merge(huggingface.load_base(directory, architecture), None),
    types.Requests(
      prompts=[loaded.text_tokens(prompt) for prompt in prompts],
      prompt_ids=np.arange(len(prompts)),
      samples_per_prompt=samples,
      max_new_tokens=BUDGET,
      eos_ids=loaded.eos_ids,
      sampling=types.Sampling(temperature=temperature),
      key=jax.random.key(seed),
    ),
  )
  return [
    loaded.decode(tokens[:length])
    for tokens, length in zip(rollout.tokens, rollout.lengths, strict=True)
  ]


def test_samples_are_the_engines_under_their_headings(directory, run):
  prompts = ["1+2=", "what is 17-4? show every step"]
  arguments = [a for prompt in prompts for a in ("--prompt", prompt)]
  code, out, err = run(*arguments, "--samples", "2", "--seed", "3", "--raw")
  texts = _expected(directory, prompts, samples=2, seed=3, temperature=1.0)
  assert len(set(texts)) == 4
  headings = [
    f"--- {prompt} [sample {sample} of 2]"
    for prompt in prompts
    for sample in (1, 2)
  ]
  parts = zip(headings, texts, strict=True)
  assert out == "".join(f"{h}\n{t}\n" for h, t in parts)
  assert code == 0
  assert err.startswith("4 completions, ")


def test_one_completion_is_its_bare_text_whatever_the_seed_if_greedy(
  directory, run
):
  outs = [
    run("--prompt", "3*3", "--temperature", "0", "--seed", seed)[1]
    for seed in ("0", "1")
  ]
  # Without a chat template, a prompt is a line.
  (text,) = _expected(directory, ["3*3\n"], samples=1, seed=9, temperature=0.0)
  assert outs == [text + "\n"] * 2


def test_prompts_come_from_a_file_and_from_stdin(run, tmp_path, monkeypatch):
  file = tmp_path / "prompts.txt"
  file.write_text("1+1\n\n2+2\n")
  options = ("--temperature", "0")
  _, given, _ = run(*options, "--prompt", "1+1", "--prompt", "2+2")
  assert run(*options, "--prompt-file", str(file))[1] == given
  monkeypatch.setattr(sys, "stdin", io.StringIO(file.read_text()))
  assert run(*options, "--prompt-file", "-")[1] == given


def test_prompts_are_put_as_the_run_put_its_questions(directory, run, tmp_path):
  shutil.copytree(directory, tmp_path / "run" / "export")
  settings = tiny_run.settings(tmp_path)
  settings.tokenizer.prompt = "what is {question}?"
  settings.tokenizer.system_prompt = "answer:"
  (tmp_path / "run" / "config.json").write_text(
    json.dumps({"config": config.to_dict(config.parse(settings))})
  )
  outs = {
    run("--prompt", "2+2", "--temperature", "0", *options, weights=weights)[1]
    for weights, *options in (
      (tmp_path / "run",),
      (tmp_path / "run" / "export",),
      (directory, "--system", "answer:", "--template", "what is {question}?"),
    )
  }
  (text,) = _expected(
    directory, ["answer:\nwhat is 2+2?\n"], samples=1, seed=0, temperature=0.0
  )
  assert outs == {text + "\n"}


def _rollout(texts, ended):
  lengths = np.array([len(text.encode()) for text in texts], np.int32)
  tokens = np.zeros((len(texts), 20), np.int32)
  for row, text in enumerate(texts):
    tokens[row, : lengths[row]] = list(text.encode())
  return types.Rollout(
    requests=None,  # pyright: ignore[reportArgumentType] -- nobody reads it
    tokens=tokens,
    lengths=lengths,
    logprobs=np.zeros(tokens.shape, np.float32),
    finish_reasons=np.where(ended, 0, -1).astype(np.int8),
  )


class _Bytes:
  def decode(self, tokens):
    return bytes(tokens.tolist()).decode(errors="replace")


def test_text_is_written_while_it_grows_and_in_order():
  out = io.StringIO()
  printer = generate._Printer(_Bytes(), ["p"], 2, out)
  first, second = "--- p [sample 1 of 2]\n", "--- p [sample 2 of 2]\n"
  seen = []
  for texts, ended in (
    (["", ""], [0, 0]),
    (["ab", "x"], [0, 0]),
    (["abc", "xyz"], [0, 1]),  # the second has ended, and waits
    (["abcd", "xyz"], [1, 1]),
  ):
    printer.show(_rollout(texts, ended))
    seen.append(out.getvalue())
  assert seen == [
    first,
    first + "ab",
    first + "abc",
    first + "abcd\n" + second + "xyz\n",
  ]


def test_half_a_character_waits_for_its_other_half():
  out = io.StringIO()
  printer = generate._Printer(_Bytes(), ["p"], 1, out)
  whole = _rollout(["aé!"], [0])
  for length, text in ((1, "a"), (2, "a"), (3, "aé"), (4, "aé!")):
    whole.lengths[0] = length
    printer.show(whole)
    assert out.getvalue() == text
  whole.lengths[0], whole.finish_reasons[0] = 2, 1
  out.truncate(0)
  out.seek(0)
  generate._Printer(_Bytes(), ["p"], 1, out).show(whole)
  assert out.getvalue() == "a\ufffd\n"


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ([], "--prompt or --prompt-file must give a prompt, got none"),
    (["--prompt-file", "nowhere.txt"], "nowhere.txt"),
    (["--prompt", "", "--raw"], "--prompt must not be empty"),
    (["--prompt", "€"], "must know every character of '€"),
    (["--prompt", "1", "--samples", "0"], "--samples must be at least 1"),
    (["--prompt", "1", "--temperature", "-1"], "--temperature must be at leas"),
    (["--prompt", "1", "--seed", str(2**99)], "--seed must be at least 0, bel"),
    (["--prompt", "1", "--top-p", "0"], "--top-p must be above 0, at most 1"),
    (["--prompt", "1", "--max-new-tokens", "0"], "must be at least 1, got 0"),
    (["--prompt", "1", "--max-new-tokens", "999"], "but the model has 128"),
    (["--prompt", "1", "--template", "x"], "must have a field such as"),
    (
      ["--prompt", "1", "--raw", "--system", "x"],
      "so that --system has no place",
    ),
    (["--prompt", "1", "--weights", "no/such/place/at/all"], "no/such/place"),
  ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence, run):
  code, out, err = run(*arguments)
  assert (code, out) == (2, "")
  assert err.startswith("error: ")
  assert sentence in err
  assert err.count("\n") == 1


def test_the_command_line_answers_in_the_same_way():
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "bilevel_jax.generate",
      "--weights",
      "x",
      "--seed=a",
    ],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
    timeout=processes.PATIENCE_S,
    check=False,
  )
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr == "error: argument --seed: invalid int value: 'a'\n"


@pytest.mark.parity
def test_greedy_text_is_that_of_transformers(directory, run):
  torch = pytest.importorskip("torch")
  import transformers

  prompts = ["1+2=", "what is 6*7? show every step"]
  arguments = [a for prompt in prompts for a in ("--prompt", prompt)]
  _, out, _ = run(*arguments, "--temperature", "0", "--raw")
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32
  ).eval()
  loaded = transformers.AutoTokenizer.from_pretrained(directory)
  expected = ""
  for prompt in prompts:
    tokens = loaded(prompt, return_tensors="pt").input_ids
    theirs = model.generate(tokens, max_new_tokens=BUDGET, do_sample=False)
    text = loaded.decode(theirs[0, tokens.shape[1] :], skip_special_tokens=True)
    expected += f"--- {prompt}\n{text}\n"
  assert out == expected
