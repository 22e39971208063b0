"""A Flask application: an app factory, a blueprint, `db.Model` and `db.session`."""

from __future__ import annotations

from typing import assert_type

from flask import Blueprint, Flask, jsonify, request
from flask.typing import ResponseReturnValue
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, ForeignKey, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)

from sqla_jobs import JobMixin, Jobs, JobState, RunContext
from sqla_jobs.flask import FlaskJobs


class Base(DeclarativeBase):
    pass


class MyJob(JobMixin):
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User | None] = relationship(back_populates="jobs")


db = SQLAlchemy(model_class=Base)
jobs = Jobs(db.Model, job_class=MyJob, tasks=["shop.tasks"])
flask_jobs = FlaskJobs(jobs)
shop = Blueprint("shop", __name__)


class User(db.Model):  # type: ignore[name-defined, misc]  # Flask-SQLAlchemy makes db.Model when it runs
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    jobs: Mapped[list[MyJob]] = relationship(back_populates="user")


@jobs.task
def welcome(session: Session, user: User) -> str:
    return str(user.email)


@jobs.task(queue="mail", sensitive=["body"])
def send_email(run: RunContext, email: str, body: str) -> None: ...


@shop.post("/users")
def create() -> ResponseReturnValue:
    user = User()
    user.email = request.form["email"]
    db.session.add(user)
    job = welcome.enqueue(db.session, user=user)
    send_email.options(delay=60, columns={"user_id": 3}).enqueue(db.session, email=user.email, body="hi")
    jobs.tasks["shop.bill"].enqueue(db.session, user=user)
    db.session.commit()
    assert_type(job, MyJob)
    return jsonify(job=job.id, state=job.state), 201


@shop.get("/jobs")
def list_jobs() -> ResponseReturnValue:
    waiting = db.session.scalars(select(jobs.Job).where(jobs.Job.state == "queued", jobs.Job.user_id == 3)).all()
    assert_type([job.user_id for job in waiting], list[int | None])
    return jsonify([{"id": job.id, "user": job.user and job.user.email, "runs": len(job.runs)} for job in waiting])


@shop.post("/jobs/<int:job_id>/cancel")
def cancel(job_id: int) -> ResponseReturnValue:
    job = db.session.get(jobs.Job, job_id)
    if job is None or job.state is JobState.succeeded:
        return "", 404
    assert_type(job, MyJob)
    assert_type(jobs.cancel(db.session, job), bool)
    jobs.retry(db.session, job_id)
    jobs.pause(db.session, "mail")
    db.session.commit()
    return "", 204


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://localhost/shop"
    app.register_blueprint(shop)
    db.init_app(app)
    flask_jobs.init_app(app)
    assert_type(flask_jobs.jobs, Jobs[MyJob])
    return app


def create_app_with_sessions_of_its_own(engine: Engine) -> Flask:
    app = Flask(__name__)
    FlaskJobs(jobs, app, bind=engine)
    FlaskJobs(jobs, app, bind=sessionmaker(engine))
    FlaskJobs(jobs, app, bind=scoped_session(sessionmaker(engine)))
    return app


if __name__ == "__main__":
    app = create_app()
    with jobs.worker(["default", "mail"]):
        app.run()
