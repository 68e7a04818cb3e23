"""The status page: what a person who cares for the agent, or reads its reports, looks at.

Jinja escapes every value: names and descriptions come from DICOM headers, which anyone may have
written. Handlers are plain functions that Starlette runs in threads, except for the login.
"""

import re
import secrets
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from edge.errors import EdgeError
from edge.guarantee import NOT_CALIBRATED
from edge.link.estimate import PRIOR
from edge.part import Agent, Panel
from edge.queue import STATES, NoSuchStudy, requeue, room_wanted
from edge.report.model import NOT_A_DEVICE
from edge.report.view import view_of
from edge.report.wording import date
from edge.status import wording
from edge.status.login import (
    LOGIN,
    REPORT_POLICY,
    SESSION_S,
    Attempts,
    Authenticator,
    Guard,
    LoginRefused,
    User,
    address_of,
    path_of,
    person_of,
    to,
)
from edge.status.slices import Slices, study_of
from edge.status.state import KEY, UID, SiteState
from edge.status.views import Views
from edge.status.volumes import Volumes
from edge.store.record import Record
from imaging.render import LUNG, MEDIASTINAL, Window

BONE = Window(400, 1800)
WINDOWS = {"lung": LUNG, "mediastinal": MEDIASTINAL, "bone": BONE}
PER_PAGE = 20
OF_STUDY = re.compile(rf"/studies/by-uid/{UID.pattern}|/study/{KEY.pattern}(/view)?")
"""Paths that a login leads to."""
STRICT: Literal["strict"] = "strict"

log = structlog.get_logger()


def application(
    agent: Agent, volumes: Volumes, authenticator: Authenticator, *, secure: bool
) -> ASGIApp:
    """Return the application; ``secure`` says that this server has TLS."""
    state, views = SiteState(agent.site), Views(agent)
    pages, slices = Pages(agent, state, views, authenticator), Slices(state, views, volumes)
    study = "/study/{key:str}"
    app = Starlette(
        routes=[
            Route("/", pages.overview, methods=["GET"]),
            Route("/login", pages.login, methods=["GET"]),
            Route("/login", pages.log_in, methods=["POST"]),
            Route("/logout", pages.log_out, methods=["POST"]),
            Route("/requeue", pages.requeue, methods=["POST"]),
            Route("/studies/by-uid/{uid:str}", pages.by_uid, methods=["GET"]),
            Route(study, pages.study, methods=["GET"]),
            Route(f"{study}/view", pages.viewer, methods=["GET"]),
            Route(f"{study}/volume", slices.volume, methods=["GET"]),
            Route(f"{study}/volume", slices.open_volume, methods=["POST"]),
            Route(f"{study}/slice/{{plane:str}}/{{index:int}}", slices.slice, methods=["GET"]),
            Route(f"{study}/report/{{version:int}}", pages.report, methods=["GET"]),
            Route(f"{study}/picture/{{name:str}}", pages.picture, methods=["GET"]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
            Route("/{panel:str}", pages.panel, methods=["GET"]),
            Route("/{panel:str}/{action:str}", pages.act, methods=["POST"]),
        ],
        exception_handlers={
            HTTPException: pages.failed,
            sqlite3.Error: pages.no_database,
            Exception: pages.failed,
        },
    )
    guarded, key = Guard(app, authenticator, secure=secure), secrets.token_hex(32)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        authenticator.follow(scope)
        base, is_secure = scope["root_path"], scope["scheme"] == "https"
        cookie = f"{'__Secure-' if base else '__Host-'}overread" if is_secure else "overread"
        given = cookie, round(SESSION_S), base or "/", STRICT, is_secure
        await SessionMiddleware(guarded, key, *given)(scope, receive, send)

    return answer


class Pages:
    """The handlers."""

    def __init__(
        self, agent: Agent, state: SiteState, views: Views, authenticator: Authenticator
    ) -> None:
        self._agent, self._authenticator, self._attempts = agent, authenticator, Attempts()
        self._state, self._views = state, views
        self._started = datetime.now(UTC)
        self._templates = Environment(
            loader=PackageLoader("edge.status", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for name in ("age", "since", "moment", "size", "seconds", "count", "patient",
                     "second", "bars", "cut"):  # fmt: skip
            self._templates.filters[name] = getattr(wording, name)
        self._templates.filters["date"] = date
        self._templates.globals.update(
            disclaimer=NOT_A_DEVICE, stages=wording.STAGES, states=STATES
        )

    # --- coming and going

    def login(self, request: Request) -> Response:
        """Show the form for the password."""
        wanted = request.query_params.get("next", "/")
        if request.user is not None:
            return self._on(request, wanted)
        return self._login_page(request, wanted)

    async def log_in(self, request: Request) -> Response:
        """Take the password, and go where the user wanted to go."""
        form = request.state.form
        wanted, name = form.get("next", "/"), form.get("name", "")
        given = request.session, name, form.get("password", ""), address_of(request)
        try:
            await self._attempts.take(request, name, partial(self._authenticator.log_in, *given))
        except LoginRefused as error:
            return self._login_page(request, wanted, str(error), error.status)
        return self._on(request, wanted)

    def log_out(self, request: Request) -> Response:
        """End the session."""
        self._authenticator.log_out(request.session)
        return to(request, "/login")

    def _on(self, request: Request, wanted: str) -> Response:
        return to(request, wanted if self._is_own_page(wanted) else "/")

    def _login_page(
        self, request: Request, wanted: str, problem: str = "", status: int = 200
    ) -> Response:
        values = {"next": wanted, "problem": problem, "token": self._authenticator.token(LOGIN),
                  "base": request.scope["root_path"],
                  "asks_name": self._authenticator.asks_name}  # fmt: skip
        return HTMLResponse(self._templates.get_template("login.html.j2").render(values), status)

    # --- the agent

    def overview(self, request: Request) -> Response:
        """Show the agent, its queue, its link, and the latest studies."""
        state, query, pipeline = self._state, _query(request), self._agent.pipeline()
        unfinished, arriving, pending = state.unfinished(), state.arriving(), state.pending()
        queue = wording.cut([*unfinished, *arriving], "queue", query)
        refused = wording.cut(state.refused(), "refused", query)
        due = wording.cut(pending, "pending", query)
        studies = wording.cut(range(state.count()), "studies", query, PER_PAGE)
        rows = state.latest(PER_PAGE, skip=studies.start)
        claimed = [one for one in queue.rows if isinstance(one, Record)]
        shown = {one.id for one in (*rows, *refused.rows, *claimed)}

        def patient_of(key: str, name: str) -> str:
            shown.add(key)
            study = state.study(key)
            return wording.patient(state.report(study) if study else None, name)

        names = {one.key: patient_of(one.key, one.name) for one in due.rows}
        panels = [(one, {**one.values(), "patient_of": patient_of}) for one in self._panels()
                  if not one.is_page]  # fmt: skip
        sections = [self._section(request, one, values) for one, values in panels]
        pictured = (("overview picture", row.id) for row in rows)
        self._views.record(request, "list", *pictured, studies=sorted(shown))
        return self._render(
            request,
            "overview.html.j2",
            version=version("overread"),
            started=self._started,
            model=pipeline.provenance.edge_model if pipeline else "",
            guarantee=pipeline.provenance.guarantee if pipeline else NOT_CALIBRATED,
            problem=self._agent.problem(),
            arriving=arriving,
            unfinished=unfinished,
            pending=pending,
            rooms={row.id: room_wanted(row, state.folders) for row in claimed},
            parts={"queue": queue, "refused": refused, "pending": due, "studies": studies},
            refusals={row.id: state.report(row) for row in refused.rows},
            studies=[(row, state.report(row)) for row in rows],
            pictures={row.id: "overview.jpg" in state.pictures(row) for row in rows},
            links=self._agent.links(),
            prior=PRIOR,
            cards=[(one, one.card()) for one in self._panels() if one.card is not None],
            sections=sections,
            names=names,
            disks=state.disks(),
            database_bytes=state.database_bytes(),
            note=self._note(request.query_params.get("note", "")),
        )

    def requeue(self, request: Request) -> Response:
        """Put a study back into the inbox."""
        key = request.state.form.get("study", "")
        study = self._state.study(key)
        if study is None:
            raise HTTPException(404, "There is no such study.")
        try:
            requeue(study.id, self._agent.site, person_of(request))
        except NoSuchStudy as error:
            raise HTTPException(409, f"This study cannot be read again: {error}.") from error
        except OSError as error:
            log.exception("study cannot be put back", study_key=study.id)
            reason = f"Its files cannot be moved: {error.strerror}."
            raise HTTPException(503, reason) from error
        log.info("study put back into the inbox", study_key=study.id, by=request.user.name)
        return to(request, "/?note=requeued")

    # --- what the parts of the agent show

    def panel(self, request: Request) -> Response:
        """Show the page of a part."""
        panel = self._panel(request.path_params["panel"])
        if panel is None or not panel.is_page:
            raise HTTPException(404)
        return HTMLResponse(self._section(request, panel, panel.values()))

    def act(self, request: Request) -> Response:
        """Do what a button of a part says."""
        name, panel = request.path_params["action"], self._panel(request.path_params["panel"])
        action = panel.actions.get(name) if panel else None
        if panel is None or action is None:
            raise HTTPException(404)
        try:
            action.run(request.state.form, person_of(request))
        except EdgeError as error:
            raise HTTPException(409, f"{action.refused}: {error}.") from error
        log.info("action on the status page", panel=panel.name, action=name, by=request.user.name)
        return to(request, f"/?note={panel.name}.{name}")

    def _panels(self) -> list[Panel]:
        return [panel for part in self._agent.parts for panel in part.panels()]

    def _panel(self, name: str) -> Panel | None:
        return next((one for one in self._panels() if one.name == name), None)

    def _section(self, request: Request, panel: Panel, values: Mapping[str, Any]) -> str:
        template = self._templates.from_string(panel.template.read_text(encoding="utf-8"))
        return template.render(**self._common(request), **values)

    def _note(self, note: str) -> str:
        """Return the sentence on the action that a page was called for; empty for none."""
        if note == "requeued":
            return "The study is back in the inbox, and is read again."
        name, _, action = note.partition(".")
        panel = self._panel(name)
        found = panel.actions.get(action) if panel else None
        return found.done if found else ""

    def _is_own_page(self, path: str) -> bool:
        """Tell whether a path may follow the login: a page of this server and nothing else."""
        pages = ("/", *(f"/{one.name}" for one in self._panels() if one.is_page))
        return path in pages or OF_STUDY.fullmatch(path) is not None

    # --- one study

    def by_uid(self, request: Request) -> Response:
        """Lead to the study with a StudyInstanceUID: a link for other systems."""
        study = self._state.by_uid(request.path_params["uid"])
        if study is None:
            raise HTTPException(404, "There is no study with this StudyInstanceUID.")
        return to(request, f"/study/{study.id}")

    def study(self, request: Request) -> Response:
        """Show the content of a report, its versions and changes."""
        study, state = study_of(request, self._state), self._state
        report = state.report(study)
        pictures = ("overview picture", study.id), ("pictures", study.id)
        version = report.version if report else 0
        self._views.record(request, "study page", *pictures, study_key=study.id, version=version)
        return self._render(
            request,
            "study.html.j2",
            study=study,
            report=report,
            view=report and view_of(report),
            versions=state.versions(study),
            results=state.results(study.id),
            pictures=state.pictures(study),
            has_images=state.source(study) is not None,
            can_requeue=STATES[study.step] in ("done", "refused")
            and state.source(study) is not None,
        )

    def report(self, request: Request) -> Response:
        """Show the page of one version, as it was written."""
        study, number = study_of(request, self._state), request.path_params["version"]
        report = self._state.report(study)
        newest = report is not None and report.version == number
        name = "report.html" if newest else f"report.v{number}.html"
        page = self._state.file_of(study, name)
        if page is None:
            raise HTTPException(404, "There is no such version of this report.")
        self._views.record(request, "report", study_key=study.id, version=number)
        return HTMLResponse(page, headers={"content-security-policy": REPORT_POLICY})

    def picture(self, request: Request) -> Response:
        """Show a picture of a report."""
        study, name = study_of(request, self._state), request.path_params["name"]
        data = self._state.file_of(study, name)
        if data is None or not name.endswith(".jpg"):
            raise HTTPException(404, "There is no such picture.")
        what = "overview picture" if name == "overview.jpg" else "pictures"
        self._views.record(request, what, study_key=study.id)
        return Response(data, media_type="image/jpeg")

    def viewer(self, request: Request) -> Response:
        """Show the slices of a study."""
        study = study_of(request, self._state)
        report = self._state.report(study)
        if report is None:
            raise HTTPException(404, "The report of this study is gone or damaged.")
        self._views.record(request, "images", study_key=study.id)
        return self._render(
            request,
            "viewer.html.j2",
            study=study,
            report=report,
            view=view_of(report),
            windows=WINDOWS,
        )

    # --- all pages

    def failed(self, request: Request, error: Exception) -> Response:
        """Say why a page cannot be shown."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        text = str(error.detail) if isinstance(error, HTTPException) else ""
        if status == 404 and text == "Not Found":
            text = "There is no such page."
        if text and request.headers.get("sec-fetch-dest") == "empty":  # the viewer shows the text
            return PlainTextResponse(text, status)
        return self._render(request, "base.html.j2", status, text=text)

    def no_database(self, request: Request, error: Exception) -> Response:
        """Say that the database does not answer."""
        log.warning("status page: the database does not answer", error=str(error))
        text = "The agent's database does not answer now. This page tries again by itself."
        return self._render(request, "base.html.j2", 503, text=text)

    def _render(
        self, request: Request, template: str, status_code: int = 200, **values: Any
    ) -> Response:
        found = self._templates.get_template(template)
        return HTMLResponse(found.render(**self._common(request), **values), status_code)

    def _common(self, request: Request) -> dict[str, Any]:
        user: User | None = request.user
        # without it no button is shown that changes something
        token = user.form_token if user and user.is_operator else ""
        base, path, query = request.scope["root_path"], path_of(request), _query(request)
        return {"user": user, "token": token, "base": base, "path": path, "query": query}


def _query(request: Request) -> dict[str, str]:
    """Return which pages of its lists are shown."""
    return {name: text for name, text in request.query_params.items() if name != "note"}
