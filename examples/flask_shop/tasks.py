"""The shop's tasks."""

from __future__ import annotations

import smtplib
from datetime import date, timedelta
from decimal import Decimal
from email.message import EmailMessage

from flask import current_app, render_template
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from examples.flask_shop.models import LedgerEntry, Order, book, jobs


@jobs.task
def settle(session: Session, order: Order) -> None:
    """Book the order. The ledger entry, the order's status, the receipt's job and this job's end are one commit."""
    book(order)
    send_receipt.enqueue(session, number=order.id, email=order.email, item=order.item, total=order.total)


@jobs.task(queue="mail", timeout=60)
def send_receipt(number: int, email: str, item: str, total: Decimal) -> None:
    """Mail the receipt, at least once. A mail cannot be rolled back, so this task takes no session."""
    mail = EmailMessage()
    mail["From"] = "shop@example.com"
    mail["To"] = email
    mail["Subject"] = f"Your order {number}"
    mail["Message-ID"] = f"<{number}@shop.example.com>"  # the same in every attempt: mailboxes can recognize duplicates
    mail.set_content(render_template("receipt.txt", number=number, item=item, total=total))
    if current_app.config["MAIL_HOST"] is None:
        current_app.logger.warning("not sent, since there is no MAIL_HOST:\n%s", mail)
        return
    with smtplib.SMTP(current_app.config["MAIL_HOST"], timeout=10) as server:
        server.send_message(mail)


@jobs.task
def close_day(session: Session) -> str:
    """Return yesterday's turnover, which is stored as the result of the run."""
    yesterday = date.today() - timedelta(days=1)  # noqa: DTZ011 - the shop's own day
    day = func.date(LedgerEntry.booked_at)
    turnover = session.scalar(select(func.coalesce(func.sum(LedgerEntry.amount), 0)).where(day == yesterday))
    return f"{yesterday}: {turnover} EUR"


close_day.schedule("5 0 * * *", name="close-day", timezone="Europe/Paris")
