"""The configuration: every mistake gets file, key, reason and mend; the example is what the models say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemon import config_example, resources
from daemon.config import Config, RunMode, TlsMode, load
from daemon.errors import ConfigError
from daemon.providers import PRESETS

BAD = Path(__file__).parent / "bad_configs"
GMAIL = '[[mailboxes]]\nname = "shop"\naddress = "service@shop.example"\nprovider = "gmail"\n'


def _write(folder: Path, content: str) -> Path:
    path = folder / "config.toml"
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("case", sorted(p.name for p in BAD.iterdir()))
def test_a_bad_config_is_refused_with_key_reason_and_mend(case: str) -> None:
    file = BAD / case / "config.toml"
    expected = (BAD / case / "expected.txt").read_text(encoding="utf-8").strip().replace("DIR", str(BAD / case))
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == f"{file}: {expected}"
    assert "canary" not in str(caught.value)


def test_a_missing_config_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: there is no such file \(create one with `postsale init DIR`\)"):
        load(tmp_path / "nowhere.toml")


def test_every_mistake_of_one_look_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(_write(tmp_path, '[service]\nmode = "x"\nworkers = 0\ntimezone = "y"\n'))
    assert len(caught.value.others) == 2


def test_the_example_file_is_what_the_models_say() -> None:
    """Mended by ``make config.example.toml``."""
    assert (resources.share() / "config.example.toml").read_text(encoding="utf-8") == config_example.text()


def test_the_example_is_valid_and_safe(tmp_path: Path) -> None:
    config = load(_write(tmp_path, config_example.text()), require_files=False)
    assert config.service.mode is RunMode.SHADOW
    assert config.mailboxes[0].imap.tls is TlsMode.IMPLICIT
    assert config.approvers_of("shop")[0].address == "staff@shop.example"


def test_every_setting_shown_behind_a_hash_is_valid_where_it_stands(tmp_path: Path) -> None:
    lines = config_example.text().splitlines()
    tried = 0
    for number, line in enumerate(lines):
        match = re.match(r"#([a-z_]+ = )", line)
        table = next((row for row in reversed(lines[:number]) if row.lstrip("#").startswith("[")), "#")
        if not match or table.startswith("#") or match.group(1).startswith(("password", "oauth")):
            continue
        path = _write(tmp_path, "\n".join([*lines[:number], line[1:], *lines[number + 1 :]]))
        load(path, require_files=False)
        tried += 1
    assert tried > 70


def test_every_setting_has_a_help_text() -> None:
    seen = 0
    pending: list[type] = [Config]
    while pending:
        model = pending.pop()
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            below = config_example._model_of(field)
            if below is not None:
                pending.append(below)
            else:
                assert field.description, f"{model.__name__}.{name}"
                seen += 1
    assert seen > 80


@pytest.mark.parametrize("provider", sorted(set(PRESETS) - {"generic"}))
def test_a_provider_preset_names_encrypted_servers(tmp_path: Path, provider: str) -> None:
    mailbox = load(_write(tmp_path, GMAIL.replace("gmail", provider))).mailboxes[0]
    assert mailbox.imap.host
    assert mailbox.smtp.host
    assert TlsMode.NONE not in {mailbox.imap.tls, mailbox.smtp.tls}


def test_what_is_set_wins_over_the_preset(tmp_path: Path) -> None:
    content = GMAIL + '[mailboxes.imap]\nhost = "imap.other.example"\n[mailboxes.smtp]\nappend_to_sent = true\n'
    mailbox = load(_write(tmp_path, content)).mailboxes[0]
    assert (mailbox.imap.host, mailbox.imap.port) == ("imap.other.example", 993)
    assert (mailbox.smtp.host, mailbox.smtp.append_to_sent) == ("smtp.gmail.com", True)


def test_126_has_servers_of_its_own_and_is_told_who_we_are(tmp_path: Path) -> None:
    content = '[[mailboxes]]\nname = "shop"\naddress = "shop@126.com"\nprovider = "163"\n'
    mailbox = load(_write(tmp_path, content)).mailboxes[0]
    assert (mailbox.imap.host, mailbox.smtp.host, mailbox.imap.send_id) == ("imap.126.com", "smtp.126.com", True)


def test_a_password_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("secret\n")
    (tmp_path / "p").chmod(0o644)
    path = _write(tmp_path, GMAIL + '[mailboxes.sign_in]\npassword_file = "p"\n')
    with pytest.raises(ConfigError, match="can be read by others"):
        load(path)
    (tmp_path / "p").chmod(0o600)
    assert load(path).mailboxes[0].sign_in.password_file == tmp_path / "p"


def test_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    config = load(_write(tmp_path, GMAIL))
    assert config.service.data_dir == tmp_path / "data"
    assert config.classifier.model_dir == tmp_path / "models"
