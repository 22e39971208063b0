"""The shop's tests: the pages, and the jobs that they enqueue."""

from __future__ import annotations

import os
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from email.message import EmailMessage

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from examples.flask_shop import create_app
from examples.flask_shop.models import LedgerEntry, Order, db, jobs
from examples.flask_shop.tasks import close_day, send_receipt, settle
from sqla_jobs.testing import assert_enqueued, drain, enqueued
from sqla_jobs.testing.databases import Databases


@pytest.fixture
def app(sqla_jobs_databases: Databases) -> Iterator[Flask]:
    """A shop without orders, on a database of its own."""
    with sqla_jobs_databases.new(db.metadata) as url:
        app = create_app({"SQLALCHEMY_DATABASE_URI": url, "MAIL_HOST": "mail.example.com", "TESTING": True})
        yield app
        with app.app_context():
            db.engine.dispose()


@pytest.fixture
def client(app: Flask) -> Iterator[FlaskClient]:
    """A browser, inside an application context so that the test can use `db.session`."""
    with app.app_context():
        yield app.test_client()
        db.session.remove()


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> list[EmailMessage]:
    """The mails that would be sent through a server."""
    sent: list[EmailMessage] = []

    def keep(server: smtplib.SMTP, mail: EmailMessage) -> None:
        sent.append(mail)

    def connect(*to: object) -> tuple[int, bytes]:
        return 220, b""

    monkeypatch.setattr(smtplib.SMTP, "connect", connect)
    monkeypatch.setattr(smtplib.SMTP, "send_message", keep)
    return sent


def order(client: FlaskClient) -> int:
    client.post("/orders", data={"item": "Tea", "email": "ada@example.com", "total": "9.50"})
    return db.session.scalars(select(Order.id)).one()


def test_what_is_paid_is_booked_and_a_receipt_is_sent(client: FlaskClient, mails: list[EmailMessage]) -> None:
    number = order(client)
    client.post(f"/orders/{number}/pay")
    assert "paid" in client.get("/").text
    assert_enqueued(db.session, settle, order=db.session.get(Order, number))
    assert drain(db.session, jobs).runs == 2
    assert_enqueued(db.session, send_receipt, number=number, email="ada@example.com", total=Decimal("9.5"))
    db.session.commit()
    assert "booked" in client.get("/").text
    assert db.session.scalars(select(LedgerEntry.amount)).all() == [Decimal("9.50")]
    assert [(mail["To"], mail["Subject"]) for mail in mails] == [("ada@example.com", f"Your order {number}")]


def test_an_order_is_paid_once(client: FlaskClient) -> None:
    number = order(client)
    assert [client.post(f"/orders/{number}/pay").status_code for _ in range(2)] == [302, 409]
    assert len(enqueued(db.session, settle, order=db.session.get(Order, number))) == 1


def test_a_worker_does_the_same_in_its_threads(client: FlaskClient, mails: list[EmailMessage]) -> None:
    client.post(f"/orders/{order(client)}/pay")
    assert jobs.worker(["default", "mail"]).drain() == 2
    assert "booked" in client.get("/").text
    assert len(mails) == 1


def test_each_night_the_day_is_closed(client: FlaskClient) -> None:
    assert drain(db.session, jobs, ahead=timedelta(days=1)).runs == 1
    assert str(assert_enqueued(db.session, close_day).runs[0].result).endswith(": 0 EUR")


def test_the_migrations_make_the_tables_and_take_them_back(sqla_jobs_databases: Databases) -> None:
    with sqla_jobs_databases.new() as url:
        settings = {**os.environ, "FLASK_APP": "examples.flask_shop", "FLASK_SQLALCHEMY_DATABASE_URI": url}
        for command in (["upgrade"], ["check"], ["downgrade", "sqla_jobs@base"]):
            done = [sys.executable, "-m", "flask", "db", *command]
            subprocess.run(done, env=settings, capture_output=True, check=True)
