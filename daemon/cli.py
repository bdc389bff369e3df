"""The command line, thin: it declares commands and options; what they do is in daemon.commands.

Every import of weight stands inside a command, so that ``postsale --help``
answers at once. Exit status: 0 fine, 1 failed, 2 usage, 78 bad configuration.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from classifiers.errors import DataRefused, ModelRefused
from daemon import __version__
from daemon.errors import ConfigError, PostsaleError

EXIT_FAILED = 1
EXIT_CONFIG = 78

app = typer.Typer(
    name="postsale",
    help="The after-sales mailbox that answers itself, with the staff's OK.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", envvar="POSTSALE_CONFIG", help="Configuration file. Default: config.toml here, then /etc/postsale/."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"postsale {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options that stand before the command."""


# --------------------------------------------------------------------------- first steps


@app.command()
def demo(
    keep: Annotated[Path | None, typer.Option(help="Keep the demo's folder here instead of removing it.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Leave servers and daemon running until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show Postsale at work on a small shop's morning mail; needs no mailbox, no network."""
    from daemon.demo.play import show

    raise typer.Exit(show(keep=keep, serve=serve, as_json=as_json))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to create.")],
    address: Annotated[str, typer.Option(help="The shop's mail address.")] = "",
    approver: Annotated[str, typer.Option(help="Mail address of the person who approves replies.")] = "",
    provider: Annotated[str, typer.Option(help="gmail, outlook, exchange, 163, qq, zoho or generic.")] = "generic",
    imap: Annotated[str, typer.Option(help="IMAP host, for a generic provider.")] = "",
    smtp: Annotated[str, typer.Option(help="SMTP host, for a generic provider.")] = "",
    system: Annotated[bool, typer.Option("--system", help="For the systemd unit: state in /var/lib/postsale.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a configuration, a copy of playbook and templates, and the folders they name."""
    from daemon.commands.setup import init as write

    write(folder, address=address, approver=approver, provider=provider, imap=imap, smtp=smtp, system=system, as_json=as_json)


@app.command()
def check(
    config: ConfigOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not connect to mail servers.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at configuration, playbook, model, database and every server; one line each."""
    from daemon.commands.check import check as look

    raise typer.Exit(look(config, offline=offline, as_json=as_json))


@app.command()
def run(config: ConfigOption = None) -> None:
    """Run the service until it is told to stop (SIGTERM, Ctrl-C); SIGHUP reads playbook and model anew."""
    from daemon.commands.service import serve
    from daemon.commands.shared import config_path

    raise typer.Exit(serve(config_path(config)))


@app.command()
def explain(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Raw mail (.eml); - reads one from standard input.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Use this configuration's orders, playbook and model.")
    ] = None,
    now: Annotated[str | None, typer.Option(help="Fix the clock, as 2026-11-02T10:00:00+00:00.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Dry run on mail files: what would be done with each, and why. Needs no mailbox, server or database."""
    from daemon.commands.explain import explain as tell

    raise typer.Exit(tell(files, config=config, now=now, as_json=as_json))


# --------------------------------------------------------------------------- day by day


@app.command()
def status(
    config: ConfigOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every few seconds.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Mailboxes, queue, deadlines, doubts, versions: how the service is doing."""
    from daemon.commands.status import status as show

    show(config, watch=watch, as_json=as_json)


@app.command()
def pause(config: ConfigOption = None, mailbox: Annotated[str | None, typer.Option(help="Only this mailbox.")] = None) -> None:
    """Stop all sending to buyers at once; it stays stopped over restarts until resume."""
    from daemon.commands.status import pause as stop

    stop(config, mailbox=mailbox)


@app.command()
def resume(config: ConfigOption = None, mailbox: Annotated[str | None, typer.Option(help="Only this mailbox.")] = None) -> None:
    """Let sending go on after pause or an approver's STOP."""
    from daemon.commands.status import resume as go_on

    go_on(config, mailbox=mailbox)


@app.command()
def replay(
    since: Annotated[str, typer.Option(help="How far back: 30d, 12h.")] = "30d",
    mailbox: Annotated[str | None, typer.Option(help="Only this mailbox.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many messages, newest first.")] = 1000,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read mail history without touching it and tell what would have happened, per policy and label."""
    from daemon.commands.replay import replay as tell

    tell(config, since=since, mailbox=mailbox, limit=limit, as_json=as_json)


@app.command()
def report(
    out: Annotated[Path | None, typer.Option(help="Folder for report.html and report.csv. Default: print a summary.")] = None,
    days: Annotated[int, typer.Option(min=1, help="How many days back.")] = 7,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Labels, return reasons by product, response times, shares of auto, asked and edited replies."""
    from daemon.commands.report import report as write

    write(config, out=out, days=days, as_json=as_json)


# --------------------------------------------------------------------------- keeping and forgetting


@app.command()
def erase(
    address: Annotated[str, typer.Argument(help="The buyer's mail address.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what is stored about a person, training texts included, and report what went."""
    from daemon.commands.keeping import erase as forget

    forget(config, address=address, yes=yes, as_json=as_json)


@app.command()
def export(
    case: Annotated[int, typer.Argument(metavar="CASE", help="Number of the case.")],
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
    config: ConfigOption = None,
) -> None:
    """Everything that is stored about a case, as JSON, for a person who asks what is known of them."""
    from daemon.commands.keeping import export as write

    write(config, case=case, out=out)


@app.command()
def backup(out: Annotated[Path, typer.Argument(help="File to write.")], config: ConfigOption = None) -> None:
    """Copy database, models and tokens into one archive, also while the service runs."""
    from daemon.commands.keeping import backup as copy

    copy(config, out=out)


@app.command()
def restore(
    archive: Annotated[Path, typer.Argument(help="An archive that backup wrote.")],
    config: ConfigOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Put an archive's database, models and tokens back; the service must be stopped."""
    from daemon.commands.keeping import restore as bring_back

    bring_back(config, archive=archive, force=force)


@app.command()
def login(
    mailbox: Annotated[str, typer.Argument(help="Name of the mailbox.")],
    smtp: Annotated[
        bool, typer.Option("--smtp", help="Sign in the account that only sends, where smtp_sign_in names another.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Sign a mailbox in with OAuth2 (Google, Microsoft), once.

    Microsoft: you type a code at an address. Google gives no codes for mail: you
    open an address in a browser on any machine, and paste back the address of the
    page that cannot be shown on which it ends.
    """
    from daemon.commands.login import login as sign_in

    sign_in(config, mailbox=mailbox, smtp=smtp)


# --------------------------------------------------------------------------- commands that live elsewhere

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _pass_on(module: str, context: typer.Context, *, below: bool) -> None:
    """Hand the words after the command to the typer application of another module, imported only now."""
    from importlib import import_module

    name = str(context.info_name)
    application: typer.Typer = import_module(module).app
    words = [name, *context.args] if below else list(context.args)
    application(args=words, prog_name="postsale" if below else f"postsale {name}")


@app.command(context_settings=_PASS_ON)
def queue(context: typer.Context) -> None:
    """Waiting cases: list, show, approve, reject, edit, label, hold, release, take, resend, done."""
    _pass_on("daemon.commands.queue", context, below=False)


@app.command(context_settings=_PASS_ON)
def playbook(context: typer.Context) -> None:
    """The playbook: check, coverage, gallery."""
    _pass_on("daemon.commands.playbook", context, below=False)


@app.command(context_settings=_PASS_ON)
def train(context: typer.Context) -> None:
    """Train a classifier from labelled mail."""
    _pass_on("daemon.commands.training", context, below=True)


@app.command(context_settings=_PASS_ON)
def evaluate(context: typer.Context) -> None:
    """Measure a classifier on labelled mail."""
    _pass_on("daemon.commands.training", context, below=True)


@app.command(context_settings=_PASS_ON)
def models(context: typer.Context) -> None:
    """Trained models: list, show, promote, rollback, diff."""
    _pass_on("daemon.commands.training", context, below=True)


def main() -> None:
    """Entry point of the ``postsale`` command."""
    try:
        app()
    except ConfigError as error:
        for each in (error, *error.others):
            sys.stderr.write(f"postsale: {each}\n")
        sys.exit(EXIT_CONFIG)
    except (PostsaleError, ModelRefused, DataRefused) as error:
        sys.stderr.write(f"postsale: {error}\n")
        sys.exit(EXIT_FAILED)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; there is nobody left to tell
        sys.exit(EXIT_FAILED)
    except OSError as error:
        sys.stderr.write(f"postsale: {error.strerror or error}{f': {error.filename}' if error.filename else ''}\n")
        sys.exit(EXIT_FAILED)
