"""The quick start of the README: an order and the job that settles it, created in one transaction."""

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import Jobs
from sqla_jobs.postgres import local_postgres


class Base(DeclarativeBase): ...


jobs = Jobs(Base)  # adds its tables to Base.metadata


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


@jobs.task
def settle(session: Session, order: Order) -> None:
    order.status = "settled"  # is committed together with the job's completion


if __name__ == "__main__":
    with local_postgres() as url, Session(engine := create_engine(url)) as session:
        Base.metadata.create_all(engine)
        session.add(order := Order())
        settle.enqueue(session, order=order)
        session.commit()  # the order and its job exist from here on: both, or neither
        jobs.worker(bind=engine).drain()
        print(order.status)
