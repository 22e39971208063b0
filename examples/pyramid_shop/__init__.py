"""A small shop on Pyramid. What an order enqueues is part of its request's transaction."""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.threadlocal import get_current_request
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from examples.pyramid_shop.requests import dbsession, request_context
from sqla_jobs import Jobs


class Base(DeclarativeBase): ...


jobs = Jobs(Base)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def note(text: str) -> None:
    """A helper that knows nothing about jobs."""
    get_current_request().dbsession.add(Note(text=text))


@jobs.task
def settle(session: Session, order: Order) -> None:
    order.status = "settled"
    note(f"settled: {get_current_request().route_url('order', id=order.id)}")


def place(request: Request) -> dict[str, int]:
    """The view that takes an order."""
    request.dbsession.add(order := Order())
    settle.enqueue(request.dbsession, order=order)
    if "fail" in request.params:
        raise RuntimeError("neither the order nor its job exist after this")
    return {"order": order.id}


def current_session() -> Session:
    session: Session = get_current_request().dbsession
    return session


def create_app(url: str, base_url: str = "https://shop.example") -> Any:
    """The WSGI application. Its jobs run in requests of its own."""
    with Configurator(settings={"tm.manager_hook": "pyramid_tm.explicit_manager"}) as config:
        config.include("pyramid_tm")
        registry: Any = config.registry
        registry["engine"] = create_engine(url)
        config.add_request_method(dbsession, reify=True)
        config.add_route("orders", "/orders", request_method="POST")
        config.add_route("order", "/orders/{id}")
        config.add_view(place, route_name="orders", renderer="json")
        jobs.bind(current_session, context=request_context(registry, base_url))
        return config.make_wsgi_app()
