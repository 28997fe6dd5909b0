"""The web application: GET and POST /tasks, PUT /tasks/<number>/done."""

from __future__ import annotations

import json
import os
from pathlib import Path

import bottle

from tasks.store import Store


def create_app(store: Store) -> bottle.Bottle:
    """The WSGI application over a store."""
    app = bottle.Bottle()

    @app.get("/healthz")
    def healthz() -> str:
        store.list()
        return "ok\n"

    @app.get("/tasks")
    def list_tasks() -> str:
        return _json(store.list())

    @app.post("/tasks")
    def add_task() -> str:
        title = (bottle.request.json or {}).get("title")
        if not isinstance(title, str) or not title.strip():
            bottle.abort(400, "a task has a title")
        bottle.response.status = 201
        return _json(store.add(title.strip()))

    @app.put("/tasks/<number:int>/done")
    def finish_task(number: int) -> None:
        if not store.finish(number):
            bottle.abort(404, f"there is no task {number}")
        bottle.response.status = 204

    return app


def from_environment() -> bottle.Bottle:
    """What the server calls: the store's place comes from TASKS_DATABASE."""
    return create_app(Store(Path(os.environ["TASKS_DATABASE"])))


def _json(document: object) -> str:
    bottle.response.content_type = "application/json"
    return json.dumps(document)
