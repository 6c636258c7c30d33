"""Alerts arrive at a real mail server: once, again when it gets worse or lasts, and late rather than never."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from blocks.notification import NotificationChannel
from deployments.notices import REPEAT_AFTER, Notifier, due, over
from seawall.catalog import Alert, Catalog, JobType, Severity
from seawall.catalog.logbook.alerts import at_work
from seawall.errors import SettingsError

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
PASSWORD = "correct horse/battery@staple"


class MailServer:
    """A mail server on loopback that admits one user."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.messages: list[Message] = []
        self._controller: Controller | None = None

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        self.messages.append(message_from_bytes(envelope.content))
        return "250 OK"

    def start(self) -> None:
        self._controller = Controller(
            self, "127.0.0.1", self.port, authenticator=self._admitted, auth_require_tls=False, auth_required=True
        )
        self._controller.start()

    def stop(self) -> None:
        if self._controller is not None:
            self._controller.stop()
            self._controller = None

    def _admitted(self, *asked: object) -> AuthResult:
        return AuthResult(success=asked[-1] == LoginPassword(b"seawall@x.org", PASSWORD.encode()))

    @property
    def subjects(self) -> list[str]:
        return [str(make_header(decode_header(message["Subject"]))) for message in self.messages]

    def channel(self, minimum: Severity = Severity.HIGH) -> NotificationChannel:
        address = f"seawall%40x.org:correct%20horse%2Fbattery%40staple@127.0.0.1:{self.port}"
        url = SecretStr(f"mailto://{address}?mode=insecure&from=seawall@x.org&to=dba@x.org")
        return NotificationChannel(urls=[url], minimum_severity=minimum)


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = MailServer(probe.getsockname()[1])
    server.start()
    yield server
    server.stop()


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.db", create=True) as opened:
        yield opened


@pytest.fixture
def notifier(catalog: Catalog, mail: MailServer) -> Notifier:
    return Notifier(catalog, mail.channel)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:aiosmtpd", "ignore::DeprecationWarning:aiosmtpd")


def test_an_alert_arrives_once_with_what_happened_and_what_is_not_severe_does_not(catalog, notifier, mail):
    said = "bundle 3 is <cut> & größer"
    catalog.raise_alert("verify-failed", Severity.HIGH, said, subject="shop", now=NOW)
    catalog.raise_alert("space", Severity.MEDIUM, "80 %", now=NOW)
    assert notifier.notify(NOW) == 1
    catalog.raise_alert("verify-failed", Severity.HIGH, said, subject="shop", now=NOW + MINUTE)
    assert notifier.notify(NOW + MINUTE) == 0
    assert mail.subjects == ["[Seawall high] verify-failed: shop"]
    (message,) = mail.messages
    plain = next(part for part in message.walk() if part.get_content_type() == "text/plain")
    text = plain.get_payload(decode=True).decode()
    assert said in text
    assert message["To"] == "dba@x.org"
    assert PASSWORD not in message.as_string()


def test_what_got_worse_or_lasts_is_told_again_and_what_somebody_takes_care_of_is_not(catalog, notifier, mail):
    alert = catalog.raise_alert("wal-gap", Severity.HIGH, "one segment", subject="shop", now=NOW)
    assert notifier.notify(NOW) == 1
    catalog.raise_alert("wal-gap", Severity.CRITICAL, "ten segments", subject="shop", now=NOW + MINUTE)
    assert notifier.notify(NOW + MINUTE) == 1
    assert notifier.notify(NOW + REPEAT_AFTER + 2 * MINUTE) == 0, "nobody noticed it again"
    catalog.raise_alert("wal-gap", Severity.CRITICAL, "ten segments", subject="shop", now=NOW + 2 * MINUTE)
    assert notifier.notify(NOW + 3 * MINUTE) == 0
    assert notifier.notify(NOW + REPEAT_AFTER + 2 * MINUTE) == 1
    catalog.acknowledge_alert(alert, catalog.ensure_user("ada", now=NOW), now=NOW + REPEAT_AFTER)
    catalog.raise_alert("wal-gap", Severity.CRITICAL, "x", subject="shop", now=NOW + 3 * REPEAT_AFTER)
    assert notifier.notify(NOW + 3 * REPEAT_AFTER) == 0
    assert [subject.split("]")[0] for subject in mail.subjects] == [
        "[Seawall high",
        "[Seawall critical",
        "[Seawall critical",
    ]


def test_what_could_not_be_sent_is_sent_when_the_mail_server_is_back(catalog, notifier, mail, caplog):
    mail.stop()
    alert = catalog.raise_alert("backup-failed", Severity.HIGH, "disk full", subject="shop", now=NOW)
    assert notifier.notify(NOW) == 0
    assert catalog.alert(alert).notified_at is None
    mail.start()
    assert notifier.notify(NOW + timedelta(seconds=20)) == 0, "a dead server is not asked with every look"
    assert notifier.notify(NOW + 2 * MINUTE) == 1
    assert mail.subjects == ["[Seawall high] backup-failed: shop"]
    assert "did not take" in caplog.text
    assert "horse" not in caplog.text


@pytest.mark.slow
def test_a_wrong_password_is_no_arrival_and_stands_in_no_log(catalog, mail, caplog):
    wrong = mail.channel()
    wrong.urls = [SecretStr(wrong.urls[0].get_secret_value().replace("horse", "hunter2"))]
    catalog.raise_alert("backup-failed", Severity.HIGH, "disk full", subject="shop", now=NOW)
    assert Notifier(catalog, lambda: wrong).notify(NOW) == 0
    assert mail.messages == []
    assert "hunter2" not in caplog.text


def test_without_a_channel_nothing_is_sent_and_nothing_is_marked(catalog):
    alert = catalog.raise_alert("backup-failed", Severity.HIGH, "disk full", subject="shop", now=NOW)
    assert Notifier(catalog, lambda: None).notify(NOW) == 0
    assert catalog.alert(alert).notified_at is None


def test_who_was_told_of_trouble_hears_once_when_it_is_over(catalog, notifier, mail):
    catalog.raise_alert("location-down", Severity.HIGH, "no route", subject="offsite", now=NOW)
    catalog.raise_alert("suspect", Severity.MEDIUM, "odd", subject="shop", now=NOW)
    notifier.notify(NOW)
    for kind, subject in (("location-down", "offsite"), ("suspect", "shop")):
        catalog.resolve_alerts(kind, subject=subject, now=NOW + MINUTE)
    assert notifier.notify(NOW + 2 * MINUTE) == 1
    assert notifier.notify(NOW + 3 * MINUTE) == 0
    assert mail.subjects == ["[Seawall high] location-down: offsite", "[Seawall resolved] location-down: offsite"]
    text = mail.messages[-1].get_payload(0).get_payload(decode=True).decode()
    assert "over: no route" in text
    assert "resolved: 2026-11-23T03:01:00" in text


def test_that_something_is_over_is_not_said_where_nobody_wants_it_nor_when_it_is_back(catalog, mail):
    quiet = mail.channel()
    quiet.tell_resolved = False
    catalog.raise_alert("wal-gap", Severity.HIGH, "x", subject="shop", now=NOW)
    assert Notifier(catalog, lambda: quiet).notify(NOW) == 1
    catalog.resolve_alerts("wal-gap", subject="shop", now=NOW + MINUTE)
    assert Notifier(catalog, lambda: quiet).notify(NOW + MINUTE) == 0
    catalog.raise_alert("wal-gap", Severity.HIGH, "again", subject="shop", now=NOW + 2 * MINUTE)
    assert Notifier(catalog, mail.channel).notify(NOW + 2 * MINUTE) == 1
    assert mail.subjects == ["[Seawall high] wal-gap: shop"] * 2


def job(catalog: Catalog, config: dict[str, object] | None, name: str = "shop-full") -> UUID:
    return catalog.ensure_job(
        name, JobType.FULL, backup_targets={}, destination_config={}, notification_config=config, now=NOW
    )


def test_a_jobs_alerts_go_to_its_own_channel_and_all_others_to_the_sites(catalog, mail):
    named: list[str] = []

    def load_named(name: str) -> NotificationChannel:
        named.append(name)
        return own

    own = mail.channel(Severity.LOW)
    own.urls = [SecretStr(mail.channel().urls[0].get_secret_value().replace("to=dba@x.org", "to=team@x.org"))]
    with at_work(job(catalog, {"channel": "team-a"})):
        catalog.raise_alert("backup-failed", Severity.LOW, "disk full", subject="shop", now=NOW)
    with at_work(job(catalog, None, "till-full")):
        catalog.raise_alert("backup-failed", Severity.HIGH, "disk full", subject="till", now=NOW)
    catalog.raise_alert("space", Severity.HIGH, "full", now=NOW)
    assert Notifier(catalog, mail.channel, load_named).notify(NOW) == 3
    to = {str(message["Subject"]): message["To"] for message in mail.messages}
    assert to == {
        "[Seawall low] backup-failed: shop": "team@x.org",
        "[Seawall high] backup-failed: till": "dba@x.org",
        "[Seawall high] space: this site": "dba@x.org",
    }
    assert named == ["team-a"]


def test_a_jobs_channel_that_is_missing_is_replaced_and_one_that_is_dead_holds_up_no_other(catalog, mail, caplog):
    def missing(name: str) -> NotificationChannel:
        raise SettingsError(f"there is no block {name}")

    with at_work(job(catalog, {"channel": "team-a"})):
        catalog.raise_alert("backup-failed", Severity.HIGH, "disk full", subject="shop", now=NOW)
    catalog.raise_alert("space", Severity.HIGH, "full", now=NOW)
    dead = NotificationChannel(urls=[SecretStr("mailto://a:b@127.0.0.1:1?mode=insecure&to=x@x.org")])
    notifier = Notifier(catalog, mail.channel, lambda _name: dead)
    assert notifier.notify(NOW) == 1
    assert mail.subjects == ["[Seawall high] space: this site"]
    assert Notifier(catalog, mail.channel, missing).notify(NOW + MINUTE) == 1
    assert "there is no block team-a" in caplog.text


def test_a_job_that_is_ensured_again_keeps_the_channel_that_somebody_gave_it(catalog):
    job_id = job(catalog, {"channel": "team-a"})
    job(catalog, None)
    assert catalog.job(job_id).notification_config == {"channel": "team-a"}
    job(catalog, {"channel": "team-b"})
    assert catalog.job(job_id).notification_config == {"channel": "team-b"}


def alert_of(severity: Severity, minutes: int) -> Alert:
    raised_at = NOW + minutes * MINUTE
    return Alert(
        id=uuid4(),
        alert_type="space",
        subject="",
        severity=severity,
        message="x",
        alert_data={},
        acknowledged_at=None,
        acknowledged_by=None,
        resolved_at=None,
        created_at=raised_at,
        occurrences=1,
        last_raised_at=raised_at,
        notified_at=None,
    )


@given(st.lists(st.builds(alert_of, st.sampled_from(Severity), st.integers(0, 3000))), st.sampled_from(Severity))
def test_only_what_is_open_and_severe_enough_is_due_and_the_worst_comes_first(alerts, minimum):
    over = [replace(alert, resolved_at=NOW) for alert in alerts]
    found = due([*over, *alerts], minimum, now=NOW + timedelta(days=9))
    assert {alert.id for alert in found} == {alert.id for alert in alerts if alert.severity.rank >= minimum.rank}
    assert list(found) == sorted(found, key=lambda alert: (-alert.severity.rank, alert.created_at))


@given(st.lists(st.builds(alert_of, st.sampled_from(Severity), st.integers(0, 3000))), st.sampled_from(Severity))
def test_nothing_is_said_to_be_over_that_is_open_again(alerts, minimum):
    resolved = [replace(alert, resolved_at=NOW, subject=str(n)) for n, alert in enumerate(alerts)]
    back = [replace(alert, resolved_at=None) for alert in resolved[::2]]
    found = over(resolved, back, minimum)
    assert list(found) == [one for one in resolved[1::2] if one.severity.rank >= minimum.rank]
