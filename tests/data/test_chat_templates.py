"""Templates that ask for too much, and what one that does not renders to."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bilevel_jax import errors
from bilevel_jax.data import chat_templates, tokenizer
from tests.data import test_tokenizer

FOR = "{% for i in range(99999) %}"
DOUBLED = (
  "{% set n = namespace(s='a' * 1024) %}{% for i in range(40) %}"
  "{% set n.s = n.s + n.s %}{% endfor %}{{ n.s | length }}"
)


def render(template, **variables):
  dialogue = [{"role": "user", "content": "What?\ud800\u2028"}], True
  (rendered,) = chat_templates.render(template, [dialogue], variables)
  return rendered.text


@pytest.mark.parametrize(
  ("template", "sentence"),
  [
    (FOR * 3 + "{% endfor %}" * 3, "more than 0.5 s of computing"),
    (FOR * 3 + "{{ i }}" + "{% endfor %}" * 3, "more than 0.5 s of computing"),
    (
      "{{ 9 ** (9 ** 9) }}",
      "more than 0.5 s of computing",
    ),  # one operation, in C
    ("{{ 'a' * 10 ** 10 }}", "more than 1 GiB of memory"),
    ("{{ 'a'.center(10 ** 10) }}", "more than 1 GiB of memory"),
    ("{{ [0] * 10 ** 10 }}", "more than 1 GiB of memory"),
    (DOUBLED, "more than 1 GiB of memory"),
    ("{{ 'a' * 5000000 }}", "5000000 characters, more than 4194304"),
    ("{{ raise_exception('no system\\nrole') }}", "TemplateError: no system"),
    ("{{ messages[3].role.x }}", "UndefinedError: "),
    ("{% if %}", "TemplateSyntaxError: "),
    ("{{ ''.__class__.__mro__ }}", "SecurityError: "),
    ("{{ " + "(" * 10**5 + "1" + ")" * 10**5 + " }}", "RecursionError: "),
  ],
)
def test_a_template_that_asks_for_too_much_is_refused(
  template, sentence, monkeypatch
):
  if "0.5 s" in sentence:
    monkeypatch.setattr(chat_templates, "_MOST_SECONDS", 0.5)
  start = time.monotonic()
  with pytest.raises(errors.ConfigError, match=sentence):
    render(template)
  assert time.monotonic() - start < 60
  monkeypatch.setattr(chat_templates, "_MOST_SECONDS", 10.0)
  assert render(
    "{{ messages[0].content }}{{ eos_token }}", eos_token="\ue000"
  ) == ("What?\ud800\u2028\ue000")


def test_a_tokenizer_whose_template_loops_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(chat_templates, "_MOST_SECONDS", 0.5)
  looping = "{% if add_generation_prompt %}" + FOR * 3 + "{% endfor %}" * 3
  looping += "{% endif %}" + test_tokenizer.CHATML
  files = test_tokenizer.write(tmp_path / "t", template=looping)
  with pytest.raises(
    errors.ConfigError, match=r"template must render .*0.5 s of"
  ):
    tokenizer.from_source(files)


SCRIPT = """
import sys, time
from bilevel_jax.data import chat_templates
chat_templates.render("a", [([], True)], {})
print(chat_templates._Process.kept._process.process_id, flush=True)
if sys.argv[1] == "stay":
  time.sleep(100)
"""


@pytest.mark.parametrize("end", ["leave", "stay"])
def test_the_process_ends_with_the_one_that_started_it(end):
  """Whether that one leaves or is killed."""
  with subprocess.Popen(
    [sys.executable, "-c", SCRIPT, end], stdout=subprocess.PIPE, text=True
  ) as parent:
    assert parent.stdout is not None
    renderer = int(parent.stdout.readline())
    if end == "stay":
      parent.send_signal(signal.SIGKILL)
  for _ in range(300):
    try:
      os.kill(renderer, 0)
    except ProcessLookupError:
      return
    time.sleep(0.1)
  raise AssertionError("it is there")
