"""The blocks of docs/python.md, run in order by a newcomer."""

import pathlib
import re

import jax

from bilevel_jax import config

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "python.md"


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
  defaults = config.default_config

  def on_one_device():  # which is what a newcomer has
    c = defaults()
    c.mesh.fsdp = 1
    return c

  monkeypatch.setattr(config, "default_config", on_one_device)
  monkeypatch.chdir(tmp_path)
  names = {}
  for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
    exec(compile(code, str(PAGE), "exec"), names)
  said = capsys.readouterr().out.splitlines()
  numbered = [line.split()[0] for line in said if re.match(r"\d \S+", line)]
  assert numbered == ["1", "2", "3", "4"]
  assert [len(texts) for texts in names["made"].texts] == [2, 2]
  assert 0 < names["loss"] < 20
  parts = jax.tree.leaves((names["found"].direct, names["found"].implicit))
  assert any((abs(x) > 0).any() for x in parts)
