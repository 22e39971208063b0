"""The pages of the shop."""

from __future__ import annotations

from decimal import Decimal

from flask import Blueprint, abort, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import select

from examples.flask_shop.models import Order, db, jobs

shop = Blueprint("shop", __name__)


@shop.get("/")
def index() -> str:
    """Show all orders, newest first."""
    return render_template("index.html", orders=db.session.scalars(select(Order).order_by(Order.id.desc())))


@shop.post("/orders")
def place() -> ResponseReturnValue:
    """Place an order."""
    item, email = request.form["item"], request.form["email"]
    db.session.add(Order(item=item, email=email, total=Decimal(request.form["total"])))
    db.session.commit()
    return redirect(url_for("shop.index"))


@shop.post("/orders/<int:number>/pay")
def pay(number: int) -> ResponseReturnValue:
    """Pay an order. The payment and its job are one commit, so both exist or neither."""
    order = db.get_or_404(Order, number)
    if order.status != "new":
        abort(409)
    order.status = "paid"
    jobs.tasks["settle"].enqueue(db.session, order=order)
    db.session.commit()
    return redirect(url_for("shop.index"))
