"""Shows what `rootfs --check` found: for people in the shape of BuildKit's output, for programs with its JSON keys."""

from __future__ import annotations

from typing import Any

from firebuild.build.check import CheckReport
from firebuild.dockerfile.errors import LocatedDockerfileError, printable
from firebuild.dockerfile.excerpt import render_excerpt
from firebuild.dockerfile.location import Location

_RULER = "-" * 20


def render_check(report: CheckReport) -> str:
    """The warnings as text, each with its place in the Dockerfile. The report's error is not in it."""
    name = printable(report.name)
    parts = [_summary(report)]
    for warning in report.warnings:
        place = f"{name}:{warning.line}\n{_RULER}\n{render_excerpt(report.lines, warning.location)}\n{_RULER}"
        parts.append(f"WARNING: {warning.rule.name} - {warning.rule.anchor}\n{warning.message}\n{place}")
    return "\n\n".join(parts) + "\n"


def _summary(report: CheckReport) -> str:
    count = len(report.warnings)
    if count:
        return f"Check complete, {count} warning{'s have' if count > 1 else ' has'} been found!"
    return "Check complete, no warnings found." if report.error is None else "Check failed."


def make_check_document(report: CheckReport) -> dict[str, Any]:
    """The report as BuildKit's `lint` request gives it: `warnings`, `sources` and, if there is an error, `buildError`."""
    document: dict[str, Any] = {
        "warnings": [
            {
                "ruleName": warning.rule.name,
                "description": warning.rule.description,
                "url": warning.rule.anchor,
                "detail": warning.message,
                "location": {"ranges": [_range(warning.location)]},
            }
            for warning in report.warnings
        ],
        "sources": [{"filename": report.name}],
        "notices": list(report.notices),
    }
    error = report.error
    if error is not None:
        document["buildError"] = {"code": error.code, "message": error.message, "hint": error.hint}
        if isinstance(error, LocatedDockerfileError):
            document["buildError"]["location"] = {"ranges": [_range(error.location)]}
    return document


def _range(location: Location) -> dict[str, Any]:
    return {
        "start": {"line": location.start_line, "character": location.start_column},
        "end": {"line": location.end_line, "character": location.end_column},
    }
