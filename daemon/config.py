"""The only reader of Postsale's TOML: pydantic models with a help text per field.

Everything the operator can set is declared here once. ``config.example.toml``
is generated from these models, and an error names the file, the key, what is
wrong and how to mend it. Secrets are read from files or systemd credentials;
the TOML holds only where they are.
"""

from __future__ import annotations

import os
import re
import tomllib
from datetime import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from daemon.errors import ConfigError

ADDRESS_PATTERN = re.compile(r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$")


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

    approvers: tuple[str, ...] = Field(default=(), description="Names of [[approvers]] who decide for this mailbox, in order.")
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
    next_approver_after_hours: float = Field(default=8, gt=0, description="Business hours until the next approver is asked.")
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

    kind: Literal["folder"]
    path: Path = Field(description="Folder that reports are put into; read by header name, whatever the file is called.")
    shop: Literal["amazon", "ebay", "walmart", "etsy", "shopify", "own"] = Field(
        default="amazon", description="Shop of plain CSV files that a mapping describes."
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description='For a plain CSV: our field name = the column\'s header, as in order_id = "Order".'
    )
    timezone: str = Field(default="UTC", description="Time zone of dates that carry none.")


class SqlSource(Section):
    """Orders in a database that may only be read."""

    kind: Literal["sql"]
    url: str = Field(description="SQLAlchemy URL of the database.")
    password_file: Path | None = Field(default=None, description="File with its password.")
    query: str = Field(description="SELECT that takes :order_id and names its columns as our fields.")
    shop: str = Field(default="own", description="Shop whose ids this source knows.")


class HttpSource(Section):
    """Orders behind an HTTP endpoint that answers JSON."""

    kind: Literal["http"]
    url: str = Field(description="Address with {order_id} in it; it must be https unless the host is loopback.")
    shop: str = Field(default="own", description="Shop whose ids this source knows.")
    header_file: Path | None = Field(default=None, description="File with one header line, as in Authorization: Bearer ….")
    timeout_seconds: float = Field(default=5, gt=0, le=60, description="Longest wait for an answer.")
    cache_seconds: float = Field(default=60, ge=0, description="How long an answer is used again.")


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
    case_days: int = Field(default=730, ge=1, description="Days that the bare record of a case is kept.")
    feedback_days: int = Field(default=365, ge=1, description="Days that labelled text is kept for training.")


class HttpConfig(Section):
    listen: str | None = Field(default=None, description="host:port on loopback for /metrics and /healthz. Unset: off.")


class AlarmConfig(Section):
    addresses: tuple[str, ...] = Field(default=(), description="Who hears of trouble by mail.")
    webhook_url: str | None = Field(default=None, description="Also post each alarm as JSON to this address.")
    no_poll_minutes: float = Field(default=15, gt=0, description="Alarm when a mailbox could not be read for this long.")
    no_mail_hours: float = Field(default=24, gt=0, description="Alarm when no mail arrived for this long.")
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
            for name in mailbox.approval.approvers:
                if name not in known:
                    raise ValueError(
                        f"mailboxes.{mailbox.name}.approval.approvers: there is no approver {name}; add an [[approvers]] table"
                    )
        return self

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


#: Keys that earlier versions knew, and where they went.
RETIRED_KEYS: dict[str, str] = {}


def load(path: Path) -> Config:
    """Read and check a configuration file; paths in it become absolute.

    Raises ConfigError naming the file, the key, what is wrong and the mend.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(str(path), "", "there is no such file", "create one with `postsale init DIR`") from error
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror}", "check its owner and mode") from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "", "is not UTF-8", "save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), "", f"is not valid TOML: {error}", "mend that line") from error
    _refuse_retired(path, data)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise _explain(path, error) from error
    return _absolute(config, path.resolve().parent)


def _refuse_retired(path: Path, data: dict[str, Any]) -> None:
    for dotted, mend in RETIRED_KEYS.items():
        here: Any = data
        for part in dotted.split("."):
            if not isinstance(here, dict) or part not in here:
                break
            here = here[part]
        else:
            raise ConfigError(str(path), dotted, "is no longer used", mend)


def _explain(path: Path, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(str(p + 1) if isinstance(p, int) else p for p in first["loc"] if p not in {"folder[]", "sql", "http"})
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return ConfigError(str(path), key, "is no setting of Postsale", "check the spelling against config.example.toml")
    if first["type"] == "missing":
        return ConfigError(str(path), key, "is missing", "add it; config.example.toml shows how")
    problem, _, mend = message.partition("; ")
    return ConfigError(str(path), key, problem, mend or "config.example.toml shows what fits")


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
