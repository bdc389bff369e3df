"""The recipe of docs/playbook.md: a new label with its own policy and reply, and no Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from daemon.commands.playbook import app
from daemon.errors import ConfigError
from daemon.playbook import OpenPlaybook, open_checked
from daemon.samples import load_samples, sample_values
from daemon.steps.policy import decide
from daemon.vocab import Mode
from tests.steps.cases import context, facts, shipped

REPLY = """{# about: how to fit the lamp shade
   needs: order.id
   may: order.delivered_on #}
{% include "_parts/greeting.txt.j2" %}

The shade of your {% include "_parts/order.txt.j2" %} is turned to the left until it clicks.
{% if order.delivered_on %}
It came on {{ order.delivered_on|day }}, so the old shade type is in your box.
{% endif %}

{% include "_parts/closing.txt.j2" %}
"""
POLICY = """
[[policy]]
name = "fitting-help"
label = "fitting_help"
when = "order.state == 'delivered' and 'shade' in mentions"
template = "fitting_help/shade"
mode = "ask"
actions = ["send_drawing"]

"""
LAST = '[[policy]]\nname = "a-person-answers"'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped playbook, changed as the recipe says."""
    copy = tmp_path / "templates"
    shutil.copytree(
        shipped().templates, copy, ignore=shutil.ignore_patterns("staff", "[a-df-z]*-*", "de", "fr", "es", "it", "ja")
    )
    (copy / "en" / "fitting_help").mkdir()
    (copy / "en" / "fitting_help" / "shade.txt.j2").write_text(REPLY, "utf-8")
    playbook = (copy / "playbook.toml").read_text("utf-8")
    playbook = playbook.replace("[mentions]\n", '[mentions]\nshade = ["shade", "lampshade"]\n')
    playbook = playbook.replace(
        "[actions.cancel_in_shop]", '[actions.send_drawing]\nen = "Send the drawing."\n\n[actions.cancel_in_shop]', 1
    )
    (copy / "playbook.toml").write_text(playbook.replace(LAST, POLICY + LAST), "utf-8")
    return copy


def opened(folder: Path) -> OpenPlaybook:
    return open_checked(folder / "playbook.toml", folder)


def test_a_new_label_gets_its_own_reply(folder: Path) -> None:
    book = opened(folder)
    asked = context("fitting_help", order=facts(state="delivered"), text="How does the shade go on?")
    decision = decide(book.playbook, asked)
    assert (decision.policy, decision.mode, decision.template) == ("fitting-help", Mode.ASK, "fitting_help/shade")
    assert book.playbook.action_text(decision.actions[0], "zh-CN") == "Send the drawing."
    values, _ = sample_values(
        load_samples(folder / "samples.json"),
        book.playbook.settings,
        "fitting_help/shade",
        "en",
        "amazon, shipped by the seller",
    )
    draft = book.renderer.render("fitting_help/shade", "en", values, subject="Re: x")
    assert "turned to the left until it clicks" in draft.body
    assert "23 November 2026" in draft.body


def test_a_language_without_the_reply_brings_a_person(folder: Path) -> None:
    asked = context("fitting_help", order=facts(state="delivered"), text="shade", language="de")
    decision = decide(opened(folder).playbook, asked)
    assert decision.mode is Mode.HUMAN
    assert decision.reasons[-1].startswith("missing_")


@pytest.mark.parametrize(
    ("file", "old", "new", "where", "problem"),
    [
        ("playbook.toml", "order.state == 'delivered' and 'shade'", "order.stat == 'delivered' and 'shade'", "line {}", "did you mean order.state?"),
        ("playbook.toml", 'template = "fitting_help/shade"', 'template = "fitting_help/shad"', "line {}", "there is no template"),
        ("playbook.toml", "[[policy]]\nname = \"fitting-help\"", "[[policy]]\nname = fitting-help", "line {}", "is not valid TOML"),
        ("en/fitting_help/shade.txt.j2", "{{ order.delivered_on|day }}", "{{ order.deliverd_on|day }}", "line 8", "order.deliverd_on"),
        ("en/fitting_help/shade.txt.j2", "{% endif %}", "", "line", "Unexpected end of template"),
        ("en/_parts/greeting.txt.j2", "Hello", '{% include "_parts/greeting.txt.j2" %}Hello', "line 3", "includes it again"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_by_file_and_line(folder: Path, file: str, old: str, new: str, where: str, problem: str) -> None:
    path = folder / file
    text = path.read_text("utf-8")
    changed = text.replace(old, new, 1)
    assert changed != text
    path.write_text(changed, "utf-8")
    line = next(n for n, (a, b) in enumerate(zip(text.splitlines(), changed.splitlines(), strict=False), 1) if a != b)
    with pytest.raises(ConfigError) as caught:
        opened(folder)
    messages = [str(e) for e in (caught.value, *caught.value.others)]
    assert any(str(path) in m and where.format(line) in m and problem in m for m in messages), messages


def test_the_commands(tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["check", "--language", "en", "--json"])
    assert result.exit_code == 0, result.output
    assert '"problems": []' in result.output
    result = runner.invoke(app, ["coverage"])
    assert result.exit_code == 0
    assert "logistics_question/tracking" in result.output
    page = tmp_path / "gallery.html"
    result = runner.invoke(app, ["gallery", "--language", "en", "--out", str(page)])
    assert result.exit_code == 0, result.output
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_another_wording_is_another_version(folder: Path) -> None:
    before = opened(folder).playbook.version
    path = folder / "en" / "fitting_help" / "shade.txt.j2"
    path.write_text(REPLY.replace("left", "right"), "utf-8")
    assert opened(folder).playbook.version != before
