"""The only reader of Postsale's TOML: pydantic models with a help text per field.

Everything the operator can set is declared here once. ``config.example.toml``
is generated from these models, and an error names the file, the key, what is
wrong and how to mend it. Secrets are read from files or systemd credentials;
the TOML holds only where they are.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator
from datetime import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from daemon import providers
from daemon.errors import ConfigError

ADDRESS_PATTERN = re.compile(r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+\Z")


def _address(value: str) -> str:
    if not ADDRESS_PATTERN.match(value):
        raise ValueError("is no plain mail address; write it as name@example.com")
    local, _, domain = value.rpartition("@")
    return f"{local}@{domain.lower()}"


class Section(BaseModel):
    """A table of the configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class RunMode(StrEnum):
    SHADOW = "shadow"
    LIVE = "live"


class ServiceConfig(Section):
    """The service as a whole."""

    data_dir: Path = Field(
        default=Path("data"),
        description="Folder for the database, locks and caches. A relative path starts at this file's folder.",
    )
    database: str = Field(
        default="",
        description="SQLAlchemy URL. Empty: SQLite in data_dir. PostgreSQL: postgresql+psycopg://user@host/postsale "
        "(its password belongs in database_password_file).",
    )
    database_password_file: Path | None = Field(
        default=None, description="File with the database password, when the URL needs one."
    )
    mode: RunMode = Field(
        default=RunMode.SHADOW,
        description="shadow: nothing goes to a buyer, a daily mail shows what would have gone. live: drafts are asked "
        "for or sent as each policy says.",
    )
    live_policies: tuple[str, ...] = Field(
        default=("*",),
        description='With mode = "live": the policy groups that are live, as names or * patterns. The others stay in shadow.',
    )
    timezone: str = Field(default="UTC", description="Time zone of reports and business hours, as in Europe/Berlin.")
    workers: int = Field(default=2, ge=1, le=32, description="Processes that read and judge mail.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level that is logged.")
    log_format: Literal["json", "console"] = Field(default="json", description="json for the journal, console for people.")

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("is no time zone; use a name such as Asia/Shanghai") from error
        return value


class Credential(Section):
    """How a mailbox signs in. Exactly one place holds the secret."""

    username: str = Field(default="", description="Login name. Empty: the mailbox's address.")
    password_file: Path | None = Field(default=None, description="File whose first line is the password. Mode 0600.")
    password_credential: str | None = Field(
        default=None, description="Name of a systemd credential (LoadCredential=) that holds the password."
    )
    password: str | None = Field(
        default=None,
        description="The password itself. Only with password_in_config = true; a file or a credential is safer.",
        repr=False,
    )
    password_in_config: bool = Field(default=False, description="Say so if you really want the password in this file.")
    oauth: Literal["google", "microsoft"] | None = Field(
        default=None, description="Sign in with OAuth2 instead of a password; run `postsale login MAILBOX` once."
    )
    oauth_client_id: str | None = Field(default=None, description="Client id of your OAuth2 application.")
    oauth_client_secret_file: Path | None = Field(
        default=None, description="File with the OAuth2 client secret, if it has one."
    )
    oauth_tenant: str = Field(default="common", description="Microsoft only: the tenant's id or domain.")
    oauth_token_url: str | None = Field(default=None, description="Another token endpoint than the provider's own.")
    oauth_device_url: str | None = Field(default=None, description="Another device-code endpoint than the provider's own.")

    oauth_sign_in_days: float | None = Field(
        default=None,
        gt=0,
        description="Days after which the provider ends a sign-in, however often it was renewed; 7 for a Google client whose "
        "publishing status is Testing. Unset: what the provider tells.",
    )
    oauth_idle_days: float | None = Field(
        default=None,
        gt=0,
        description="Days without renewal after which the provider ends a sign-in. Unset: 90 for Microsoft, 180 for Google.",
    )

    @model_validator(mode="after")
    def _one_secret(self) -> Credential:
        given = [k for k in ("password_file", "password_credential", "password", "oauth") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both set; keep one")
        if self.password is not None and not self.password_in_config:
            raise ValueError("password stands in the file; move it to password_file, or set password_in_config = true")
        if self.oauth and not self.oauth_client_id:
            raise ValueError("oauth needs oauth_client_id, the id of your OAuth2 application")
        return self


class TlsMode(StrEnum):
    IMPLICIT = "implicit"
    STARTTLS = "starttls"
    NONE = "none"


class ServerConfig(Section):
    host: str = Field(default="", description="Host name, as it stands in the server's certificate.")
    port: int | None = Field(default=None, ge=1, le=65535, description="Port. Unset: the standard one for the tls mode.")
    tls: TlsMode = Field(default=TlsMode.IMPLICIT, description="implicit, starttls, or none (loopback only).")
    ca_file: Path | None = Field(default=None, description="Certificate authority to trust beside the system's.")
    allow_cleartext: bool = Field(
        default=False, description="Allow tls = none to another machine. The password then crosses the network readable."
    )
    timeout_seconds: float = Field(default=30.0, gt=0, le=600, description="Longest wait for one answer of the server.")

    @model_validator(mode="after")
    def _cleartext_only_on_loopback(self) -> ServerConfig:
        loopback = self.host in {"localhost", "127.0.0.1", "::1"}
        if self.tls is TlsMode.NONE and self.host and not loopback and not self.allow_cleartext:
            raise ValueError("tls = none would send the password readable; use implicit or starttls")
        return self


class ImapConfig(ServerConfig):
    """Where mail is read."""

    folder: str = Field(default="INBOX", description="Folder that is watched. It is only read; nothing is deleted.")
    sent_folder: str | None = Field(default=None, description="Folder of sent mail. Unset: the one the server marks \\Sent.")
    poll_seconds: float = Field(default=60.0, ge=1, le=3600, description="Longest time between two looks at the folder.")
    idle: bool = Field(default=True, description="Let the server announce new mail (IDLE); polling stays the net beneath it.")
    handled_keyword: str | None = Field(
        default=None, description="IMAP keyword to set on mail once it is stored. Unset: the folder is opened read-only."
    )
    send_id: bool = Field(
        default=False, description="Say who we are after login (IMAP ID, RFC 2971); 163, 126 and QQ refuse folders without it."
    )


class SmtpConfig(ServerConfig):
    """Where mail leaves."""

    append_to_sent: bool = Field(default=True, description="Put a copy in the Sent folder when the server does not.")
    max_connections: int = Field(default=2, ge=1, le=20, description="Connections held to this server at once.")


class StaffAuth(StrEnum):
    DMARC = "dmarc"
    AUTH = "auth"
    DKIM = "dkim"
    M365 = "m365"
    TOKEN_ONLY = "token_only"  # noqa: S105 - the name of a way, not a secret


class ApprovalConfig(Section):
    """Approval by reply, per mailbox."""

    approvers: tuple[str, ...] = Field(
        default=(),
        description="Names of [[approvers]] who decide for this mailbox. All are asked at once; the first word counts.",
    )
    next_approvers: tuple[str, ...] = Field(
        default=(), description="Names of [[approvers]] who are asked too when nobody has decided for a while."
    )
    address: str | None = Field(
        default=None,
        description="Where approvers' replies arrive. Unset: the mailbox's own address. A separate domain is safer.",
    )
    plus_addressing: bool = Field(default=True, description="The server delivers name+tag@ to name@; tokens travel there.")
    staff_auth: tuple[StaffAuth, ...] = Field(
        default=(StaffAuth.DMARC,),
        description="What proves that a reply is from the approver: dmarc, auth, dkim, m365, token_only (a warning says "
        "what that does not protect against). Any one of them is enough; none passing means no action.",
    )
    authserv_id: str | None = Field(
        default=None, description="Name your receiving server writes in Authentication-Results. Needed for dmarc and auth."
    )
    token_hours: float = Field(default=72, gt=0, le=720, description="Life of an approval request in hours.")
    undo_seconds: int = Field(default=90, ge=0, le=3600, description="Wait between OK and sending, in which NO still stops it.")
    remind_after_hours: float = Field(default=4, gt=0, description="Business hours until the first reminder.")
    next_approver_after_hours: float = Field(default=8, gt=0, description="Business hours until next_approvers are asked.")
    alarm_before_deadline_hours: float = Field(
        default=4, gt=0, description="Hours before the marketplace deadline for the alarm."
    )
    digest_above: int = Field(default=10, ge=1, description="More waiting drafts than this are asked for in one digest mail.")
    ok_all_low_max_value: float = Field(
        default=0, ge=0, description="OK ALL LOW covers orders up to this value; 0 turns it off."
    )
    ok_all_low_labels: tuple[str, ...] = Field(default=("logistics_question",), description="Labels that OK ALL LOW may cover.")


class CapsConfig(Section):
    """Upper bounds on what may leave, whatever the mail says."""

    per_address_day: int = Field(default=3, ge=1, description="Replies to one address in 24 hours.")
    auto_per_address_day: int = Field(default=1, ge=1, description="Replies without a person to one address in 24 hours.")
    auto_per_group_day: int = Field(
        default=300,
        ge=1,
        description="Replies without a person of one policy group in a day (UTC), once it is grown. The rest is asked for.",
    )
    ramp_days: int = Field(
        default=14,
        ge=0,
        le=365,
        description="Days with replies without a person that a policy group takes to grow to auto_per_group_day from the day "
        "it goes live, in even steps: at first one part in ramp_days + 1. 0: no growing.",
    )
    per_thread_72h: int = Field(default=3, ge=1, description="Replies in one thread in 72 hours.")
    per_template_hour: int = Field(default=60, ge=1, description="Replies made from one template in an hour.")
    per_hour: int = Field(default=120, ge=1, description="Replies of the mailbox in an hour.")
    mails_per_address_day: int = Field(default=30, ge=1, description="More mails than this from one address: a person looks.")


class MailboxConfig(Section):
    """One seller mailbox."""

    name: str = Field(description="Short name, unique; used in commands and logs.", pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    address: str = Field(description="The address buyers' mail arrives at and replies leave from.")
    display_name: str = Field(default="", description="Name shown beside the address in replies.")
    shop_name: str = Field(default="", description="How replies are signed. Empty: the display name.")
    own_addresses: tuple[str, ...] = Field(
        default=(), description="Further addresses that are ours; mail from them is not answered."
    )
    shop_domains: tuple[str, ...] = Field(
        default=(), description="Own-shop domains whose contact forms and customers write here."
    )
    provider: Literal["gmail", "outlook", "exchange", "163", "qq", "zoho", "generic"] = Field(
        default="generic", description="Fills in hosts, ports and known quirks; what is set here wins."
    )
    imap: ImapConfig = Field(default_factory=ImapConfig, description="Where mail is read.")
    smtp: SmtpConfig = Field(default_factory=SmtpConfig, description="Where mail leaves.")
    sign_in: Credential = Field(default_factory=Credential, description="How to sign in to both servers.")
    smtp_sign_in: Credential | None = Field(default=None, description="Another sign-in for sending, when it differs.")
    approval: ApprovalConfig = Field(default_factory=ApprovalConfig, description="Who approves, and how it is proved.")
    caps: CapsConfig = Field(default_factory=CapsConfig, description="Upper bounds on what may leave.")
    response_hours: float = Field(default=24, gt=0, description="The marketplace's clock: hours to the first answer.")
    max_age_hours: float = Field(default=48, gt=0, description="Mail older than this when first seen goes to a person.")

    _check_address = field_validator("address")(_address)

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("provider", "generic"), str):
            return data
        return providers.fill(data.get("provider", "generic"), str(data.get("address", "")), data)

    @field_validator("own_addresses")
    @classmethod
    def _check_own(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_address(a) for a in value)


class ApproverConfig(Section):
    """A member of staff who may approve."""

    name: str = Field(description="Short name, unique.", pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    address: str = Field(description="Where requests go and replies must come from.")
    language: Literal["en", "zh-CN", "zh-TW"] = Field(default="en", description="Language of requests and answers.")
    timezone: str = Field(default="", description="Time zone of this person. Empty: the service's.")
    work_days: tuple[int, ...] = Field(default=(1, 2, 3, 4, 5), description="Working days, 1 is Monday.")
    work_start: time = Field(default=time(9), description="Start of business hours, as 09:00:00.")
    work_end: time = Field(default=time(18), description="End of business hours.")
    holidays: str | None = Field(default=None, description="Country code of public holidays to respect, as in CN or DE.")

    _check_address = field_validator("address")(_address)

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        return ServiceConfig._zone_exists(value) if value else value


class FolderSource(Section):
    """Order reports in a watched folder."""

    kind: Literal["folder"] = Field(description="folder, sql or http.")
    path: Path = Field(description="Folder that reports are put into; read by header name, whatever the file is called.")
    shop: Literal["amazon", "ebay", "walmart", "etsy", "shopify", "own"] = Field(
        default="amazon", description="Shop of plain CSV files that a mapping describes."
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description='For a plain CSV: our field name = the column\'s header, as in order_id = "Order".'
    )


class SqlSource(Section):
    """Orders in a database that may only be read."""

    kind: Literal["sql"] = Field(description="folder, sql or http.")
    url: str = Field(description="SQLAlchemy URL of the database.")
    password_file: Path | None = Field(default=None, description="File with its password.")
    query: str = Field(description="SELECT that takes :order_id and names its columns as our fields.")
    shop: str = Field(default="own", description="Shop whose ids this source knows.")


class HttpSource(Section):
    """Orders behind an HTTP endpoint that answers JSON."""

    kind: Literal["http"] = Field(description="folder, sql or http.")
    url: str = Field(description="Address with {order_id} in it; it must be https unless the host is loopback.")
    shop: str = Field(default="own", description="Shop whose ids this source knows.")
    header_file: Path | None = Field(default=None, description="File with one header line, as in Authorization: Bearer ….")
    timeout_seconds: float = Field(default=5, gt=0, le=60, description="Longest wait for an answer.")
    cache_seconds: float = Field(default=60, ge=0, description="How long an answer is used again.")


_SOURCES: dict[str, type[Section]] = {"folder": FolderSource, "sql": SqlSource, "http": HttpSource}

OrderSource = Annotated[FolderSource | SqlSource | HttpSource, Field(discriminator="kind")]


class OrdersConfig(Section):
    """Where order facts come from."""

    stale_after_hours: float = Field(default=24, gt=0, description="Facts older than this count as unknown.")
    defer_minutes: float = Field(default=15, ge=0, description="How long a mail waits for a report that may bring its order.")
    sources: tuple[OrderSource, ...] = Field(default=(), description="Sources, best first.")


class PlaybookConfig(Section):
    path: Path | None = Field(default=None, description="Playbook file. Unset: the one that ships with Postsale.")
    templates: Path | None = Field(default=None, description="Folder of reply templates. Unset: those that ship.")


class ClassifierConfig(Section):
    model_dir: Path = Field(default=Path("models"), description="Folder of trained models; the promoted one is used.")
    precision: float = Field(
        default=0.98, gt=0.5, lt=1, description="Share of labels that must be right where Postsale does not abstain."
    )
    signing_key_file: Path | None = Field(
        default=None, description="Key that signs models. Unset: a key is made in model_dir, readable by the owner only."
    )


class DeliveryConfig(Section):
    final_reply_timeout_seconds: float = Field(
        default=600, ge=1, description="Wait for the server's word after the message (RFC 5321 section 4.5.3.2.6 asks 600)."
    )
    evidence_minutes: float = Field(
        default=30, ge=0, description="How long evidence of an uncertain reply is searched before staff are asked."
    )
    breaker_minutes: float = Field(default=15, ge=0, description="Pause of an account after a refused login or a TLS failure.")


class ReadingConfig(Section):
    """Bounds on what one message may cost."""

    max_message_bytes: int = Field(
        default=25_000_000, ge=10_000, description="Larger messages are only read in part, and a person looks."
    )
    cpu_seconds: float = Field(default=5, gt=0, description="Processor time one message may take.")
    wall_seconds: float = Field(default=15, gt=0, description="Time one message may take.")
    memory_bytes: int = Field(default=1_000_000_000, ge=100_000_000, description="Address space of a reading process.")
    attempts: int = Field(default=3, ge=1, description="Times a message is tried before it is set aside as broken.")


class RetentionConfig(Section):
    raw_days: int = Field(default=30, ge=1, description="Days that raw mail, drafts and order facts of ended cases are kept.")
    raw_days_by_marketplace: dict[str, int] = Field(
        default_factory=lambda: {"amazon": 30},
        description="Other numbers of days for a marketplace; Amazon asks for 30 at most (Data Protection Policy).",
    )
    case_days: int = Field(default=730, ge=1, description="Days that the bare record of a case is kept.")
    feedback_days: int = Field(default=365, ge=1, description="Days that labelled text is kept for training.")


class HttpConfig(Section):
    listen: str | None = Field(default=None, description="host:port on loopback for /metrics and /healthz. Unset: off.")

    @field_validator("listen")
    @classmethod
    def _on_loopback(cls, value: str | None) -> str | None:
        host, _, port = (value or "127.0.0.1:0").rpartition(":")
        if host not in {"127.0.0.1", "localhost", "[::1]"} or not port.isdigit():
            raise ValueError("is no loopback address with a port; write 127.0.0.1:9464")
        return value


class AlarmConfig(Section):
    addresses: tuple[str, ...] = Field(default=(), description="Who hears of trouble by mail.")
    webhook_url: str | None = Field(default=None, description="Also post each alarm as JSON to this address.")
    no_poll_minutes: float = Field(default=15, gt=0, description="Alarm when a mailbox could not be read for this long.")
    no_mail_hours: float = Field(default=24, gt=0, description="Alarm when no mail arrived for this long.")
    token_days: float = Field(default=3, gt=0, description="Alarm when an OAuth2 sign-in ends within this many days.")
    disk_free_mb: int = Field(default=500, ge=0, description="Alarm when less is free where the data lies.")

    @field_validator("addresses")
    @classmethod
    def _check_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_address(a) for a in value)


class Config(Section):
    """The whole configuration file."""

    service: ServiceConfig = Field(default_factory=ServiceConfig)
    mailboxes: tuple[MailboxConfig, ...] = Field(default=())
    approvers: tuple[ApproverConfig, ...] = Field(default=())
    orders: OrdersConfig = Field(default_factory=OrdersConfig)
    playbook: PlaybookConfig = Field(default_factory=PlaybookConfig)
    classifier: ClassifierConfig = Field(default_factory=ClassifierConfig)
    delivery: DeliveryConfig = Field(default_factory=DeliveryConfig)
    reading: ReadingConfig = Field(default_factory=ReadingConfig)
    retention: RetentionConfig = Field(default_factory=RetentionConfig)
    http: HttpConfig = Field(default_factory=HttpConfig)
    alarms: AlarmConfig = Field(default_factory=AlarmConfig)

    @model_validator(mode="after")
    def _names_fit(self) -> Config:
        for what, names in (
            ("mailboxes", [m.name for m in self.mailboxes]),
            ("approvers", [a.name for a in self.approvers]),
        ):
            double = sorted({n for n in names if names.count(n) > 1})
            if double:
                raise ValueError(f"{what}: the name {double[0]} is used twice; give each its own")
        known = {a.name for a in self.approvers}
        for mailbox in self.mailboxes:
            for name in (*mailbox.approval.approvers, *mailbox.approval.next_approvers):
                if name not in known:
                    raise ValueError(
                        f"mailboxes.{mailbox.name}.approval.approvers: there is no approver {name}; add an [[approvers]] table"
                    )
        return self

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the store, without its password."""
        return self.service.database or f"sqlite:///{self.service.data_dir / 'postsale.db'}"

    def mailbox(self, name: str) -> MailboxConfig:
        """The mailbox of that name; KeyError when there is none."""
        for mailbox in self.mailboxes:
            if mailbox.name == name:
                return mailbox
        raise KeyError(name)

    def approvers_of(self, mailbox: str) -> tuple[ApproverConfig, ...]:
        """Approvers of a mailbox in the order in which they are asked."""
        by_name = {a.name: a for a in self.approvers}
        return tuple(by_name[n] for n in self.mailbox(mailbox).approval.approvers)


def load_playbook_toml(path: Path) -> dict[str, Any]:
    """The playbook's TOML as plain values.

    Every ``[[policy]]`` gets ``line`` and ``lines`` (its keys' lines), so that a
    later error can name the place. Raises ConfigError with file and line.
    """
    text = _read_text(path, "set playbook.path to a playbook, or leave it out for the one that ships")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"line (\d+)", str(error))
        key = f"line {where.group(1)}" if where else ""
        raise ConfigError(str(path), key, f"is not valid TOML: {error}", "mend that line") from error
    policies = data.get("policy", [])
    if not isinstance(policies, list) or not all(isinstance(p, dict) for p in policies):
        raise ConfigError(str(path), "policy", "must be a list of tables", "write each policy as [[policy]]")
    for policy, (line, lines) in zip(policies, _policy_lines(text), strict=False):
        policy["line"], policy["lines"] = line, lines
    return data


def _policy_lines(text: str) -> list[tuple[int, dict[str, int]]]:
    """Where each ``[[policy]]`` and each of its keys stands."""
    found: list[tuple[int, dict[str, int]]] = []
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*\[", line) and not re.match(r"\s*\[\s*['\"]", line):
            inside = re.match(r"\s*\[\[\s*policy\s*\]\]", line) is not None
            if inside:
                found.append((number, {}))
        elif inside and (key := re.match(r"\s*([A-Za-z0-9_-]+)\s*=", line)):
            found[-1][1].setdefault(key.group(1), number)
    return found


def load_templates(folder: Path) -> dict[str, str]:
    """Every reply template under the folder, by ``<language>/<label>/<situation>`` (parts as ``<language>/_parts/<name>``).

    The staff's own templates (``staff/``) are not among them. Raises ConfigError.
    """
    if not folder.is_dir():
        raise ConfigError(str(folder), "", "there is no such folder", "set playbook.templates, or leave it out")
    found = {}
    for path in sorted(folder.rglob("*.txt.j2")):
        name = path.relative_to(folder).as_posix().removesuffix(".txt.j2")
        if name.count("/") == 2 and not name.startswith("staff/"):
            found[name] = _read_text(path, "save the template as UTF-8")
    return found


def _read_text(path: Path, mend: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(str(path), "", "there is no such file", mend) from error
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror}", "check its owner and mode") from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "", "is not UTF-8", "save it as UTF-8") from error


#: Keys that are not settings (any longer), and where the operator should go. ``*`` is any one table.
RETIRED_KEYS: dict[str, str] = {
    "service.dry_run": 'set service.mode = "shadow"',
    "mailboxes.*.password": "put it in a file and name that in mailboxes.*.sign_in.password_file",
    "mailboxes.*.username": "it belongs in mailboxes.*.sign_in.username",
    "mailboxes.*.imap.username": "it belongs in mailboxes.*.sign_in.username",
    "mailboxes.*.imap.password": "put it in a file and name that in mailboxes.*.sign_in.password_file",
    "mailboxes.*.smtp.username": "it belongs in mailboxes.*.sign_in.username, or in smtp_sign_in when it differs",
    "mailboxes.*.smtp.password": "put it in a file and name that in sign_in.password_file, or smtp_sign_in when it differs",
    "mailboxes.*.imap.ssl": 'write tls = "implicit", "starttls" or "none"',
    "mailboxes.*.smtp.ssl": 'write tls = "implicit", "starttls" or "none"',
}


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file that the operator wrote; raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(str(path), "", "there is no such file", "create one with `postsale init DIR`") from error
    except IsADirectoryError as error:
        raise ConfigError(str(path), "", "is a folder", "name the file in it, as in DIR/config.toml") from error
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror}", "check its owner and mode") from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "", "is not UTF-8", "save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), "", f"is not valid TOML: {error}", "mend that line") from error


def load(path: Path, *, require_files: bool = True) -> Config:
    """Read and check a configuration file; paths in it become absolute.

    With ``require_files`` it must be complete enough to run: every server is
    named, and every file and folder that it names is there. Raises ConfigError naming the file, the key,
    what is wrong and the mend; its ``others`` hold what else is wrong.
    """
    data = read_toml(path)
    found = _retired(path, data)
    if found:
        raise _first_of(found)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise _first_of([_explain(path, data, e) for e in error.errors()]) from error
    absolute = _absolute(config, path.resolve().parent)
    if require_files:
        found = [*_unnamed(path, absolute), *missing_files(path, absolute)]
        if found:
            raise _first_of(found)
    return absolute


def _unnamed(path: Path, config: Config) -> list[ConfigError]:
    """What a mailbox cannot run without, though the table alone is valid."""
    found: list[ConfigError] = []
    for mailbox in config.mailboxes:
        key = f"mailboxes.{mailbox.name}"
        found.extend(
            ConfigError(str(path), f"{key}.{part}.host", "is missing", "name the server, or a provider whose servers are known")
            for part, server in (("imap", mailbox.imap), ("smtp", mailbox.smtp))
            if not server.host
        )
        approval = mailbox.approval
        if approval.approvers and not approval.authserv_id and {StaffAuth.DMARC, StaffAuth.AUTH} & set(approval.staff_auth):
            found.append(
                ConfigError(
                    str(path),
                    f"{key}.approval.authserv_id",
                    "is missing, and staff_auth cannot prove a sender without it",
                    "set it to the name your receiving server writes first in the Authentication-Results header of incoming mail",
                )
            )
    return found


def missing_files(path: Path, config: Config) -> list[ConfigError]:
    """One error for each file or folder that the configuration names and that cannot be used.

    A secret that others on this machine may read is an error too.
    """
    found: list[ConfigError] = []
    for key, named, field in _paths(config, ""):
        if field in {"data_dir", "model_dir"}:
            continue  # made at first use
        is_folder = field in {"templates", "path"} and not key.startswith("playbook.path")
        if is_folder and not named.is_dir():
            found.append(ConfigError(str(path), key, f"there is no folder {named}", "create it, or mend the path"))
        elif not is_folder and not named.is_file():
            found.append(ConfigError(str(path), key, f"there is no file {named}", "create it, or mend the path"))
        elif not os.access(named, os.R_OK):
            found.append(ConfigError(str(path), key, f"{named} cannot be read", "check its owner and mode"))
        elif field in SECRET_FILES and named.stat().st_mode & 0o077:
            found.append(ConfigError(str(path), key, f"{named} can be read by others", f"chmod 600 {named}"))
    return found


#: Fields that name a file holding a secret.
SECRET_FILES = frozenset(
    {"password_file", "database_password_file", "oauth_client_secret_file", "signing_key_file", "header_file"}
)


def _paths(value: Any, key: str, field: str = "") -> Iterator[tuple[str, Path, str]]:
    """Every path in a configuration with its dotted key and its field's name."""
    if isinstance(value, Path):
        yield key, value, field
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _paths(getattr(value, name), f"{key}.{name}" if key else name, name)
    elif isinstance(value, tuple):
        for number, item in enumerate(value, start=1):
            yield from _paths(item, f"{key}.{getattr(item, 'name', number)}")


def _first_of(found: list[ConfigError]) -> ConfigError:
    first, *others = found
    first.others = tuple(others)
    return first


def _retired(path: Path, data: dict[str, Any]) -> list[ConfigError]:
    found: list[ConfigError] = []
    for pattern, mend in RETIRED_KEYS.items():
        *parents, last = pattern.split(".")
        here: list[tuple[str, Any]] = [("", data)]
        for part in parents:
            here = [step for key, value in here for step in _below(key, value, part)]
        found.extend(
            ConfigError(str(path), f"{key}.{last}", "is no setting of Postsale", mend)
            for key, value in here
            if isinstance(value, dict) and last in value
        )
    return found


def _below(key: str, value: Any, part: str) -> Iterator[tuple[str, Any]]:
    if part == "*" and isinstance(value, list):
        for number, item in enumerate(value, start=1):
            name = item.get("name", number) if isinstance(item, dict) else number
            yield f"{key}.{name}", item
    elif isinstance(value, dict) and part in value:
        yield (f"{key}.{part}" if key else part), value[part]


#: What a wrong type is called, by pydantic's code.
_MUST_BE = {
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_type": "must be text in quotes",
    "path_type": "must be a path in quotes",
    "tuple_type": "must be a list in [ ]",
    "time_type": "must be a time such as 09:00:00",
    "time_parsing": "must be a time such as 09:00:00",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "dict_type": "must be a table",
}


def _explain(path: Path, data: dict[str, Any], error: Any) -> ConfigError:
    """One error of the validation in the operator's words."""
    loc = error["loc"]
    key, model = _place(data, loc)
    kind, message, context = error["type"], error["msg"].removeprefix("Value error, "), error.get("ctx", {})
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), model.model_fields if model else (), n=1)
        mend = f"did you mean {near[0]}?" if near else "remove it; config.example.toml lists the settings"
        return ConfigError(str(path), key, "is no setting of Postsale", mend)
    if kind == "missing":
        return ConfigError(str(path), key, "is missing", "add it; config.example.toml shows how")
    if kind in {"enum", "literal_error"}:
        return ConfigError(str(path), key, f"{error['input']!r} is no choice", f"write {context['expected']}")
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        return ConfigError(str(path), f"{key}.kind", "names no kind of order source", "write 'folder', 'sql' or 'http'")
    if kind in _MUST_BE:
        now = "look at its quotes" if loc[-1] == "password" else f"it is {error['input']!r} now"
        return ConfigError(str(path), key, _MUST_BE[kind], now)
    if kind == "string_pattern_mismatch":
        return ConfigError(str(path), key, f"{error['input']!r} is no short name", "use a-z, 0-9, - and _, at most 40 of them")
    problem, _, mend = message.partition("; ")
    return ConfigError(
        str(path), key, problem.replace("Input should be", "must be"), mend or "config.example.toml shows what fits"
    )


def _place(data: dict[str, Any], loc: tuple[str | int, ...]) -> tuple[str, type[BaseModel] | None]:
    """The dotted key of an error, lists named by their item's name; and the model that the key stands in."""
    key: list[str] = []
    here: Any = data
    model: Any = Config
    owner: type[BaseModel] | None = Config
    for part in loc:
        if isinstance(part, int):
            here = here[part] if isinstance(here, list) and part < len(here) else None
            key.append(str(here["name"]) if isinstance(here, dict) and "name" in here else str(part + 1))
            continue
        if key[:2] == ["orders", "sources"] and len(key) == 3 and part in _SOURCES:
            model = _SOURCES[part]  # pydantic names the kind that it chose
            continue
        owner = model if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = _model_below(owner, part)
        here = here.get(part) if isinstance(here, dict) else None
        key.append(part)
    return ".".join(key), owner


def _model_below(model: type[BaseModel] | None, name: str) -> Any:
    field = model.model_fields.get(name) if model else None
    if field is None:
        return None
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _absolute(config: Config, base: Path) -> Config:
    """The same configuration with every relative path starting at ``base``."""

    def walk(value: Any) -> Any:
        if isinstance(value, Path):
            return value if value.is_absolute() else (base / value)
        if isinstance(value, BaseModel):
            return value.model_copy(update={name: walk(getattr(value, name)) for name in type(value).model_fields})
        if isinstance(value, tuple):
            return tuple(walk(v) for v in value)
        return value

    absolute: Config = walk(config)
    return absolute


def credentials_directory() -> Path | None:
    """Where systemd put this service's credentials, if it did."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(folder) if folder else None
