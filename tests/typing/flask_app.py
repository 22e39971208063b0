"""A Flask application: `db.Model`, `db.session`, and own columns of jobs with a relationship."""

from __future__ import annotations

from typing import assert_type

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, scoped_session, sessionmaker

from sqla_jobs import Changed, JobMixin, Jobs
from sqla_jobs.flask import FlaskJobs


class Base(DeclarativeBase):
    pass


class MyJob(JobMixin):
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User | None] = relationship(back_populates="jobs")


db = SQLAlchemy(model_class=Base)
jobs = Jobs(db.Model, job_class=MyJob, modules=["shop.tasks"])
flask_jobs = FlaskJobs(jobs)


class User(db.Model):  # type: ignore[name-defined, misc]  # Flask-SQLAlchemy makes db.Model when it runs
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    jobs: Mapped[list[MyJob]] = relationship(back_populates="user")


@jobs.task
def welcome(session: Session, user: User) -> str:
    return str(user.email)


def use(user: User) -> None:
    job = welcome.options(delay=60, columns={"user_id": 3}).enqueue(db.session, user=user)
    jobs.tasks["shop.bill"].enqueue(db.session, user=user)
    assert_type(job, MyJob)
    waiting = db.session.scalars(select(jobs.Job).where(jobs.Job.state == "queued", jobs.Job.user_id == 3)).all()
    assert_type([job.user_id for job in waiting], list[int | None])
    assert_type(jobs.cancel(db.session, job), Changed)


def create_app(engine: Engine) -> Flask:
    app = Flask(__name__)
    db.init_app(app)
    flask_jobs.init_app(app)
    assert_type(flask_jobs.jobs, Jobs[MyJob])
    for bind in (engine, sessionmaker(engine), scoped_session(sessionmaker(engine))):
        FlaskJobs(jobs, app, bind=bind)
    return app
