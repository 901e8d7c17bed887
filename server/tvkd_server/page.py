"""The page at `/`: a few files of the package, which ask the server that they came from and nobody else."""

from pathlib import Path

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

import tvkd_shared

page = APIRouter(include_in_schema=False)

_HERE, _DRAWING = Path(__file__).parent / "static", Path(tvkd_shared.__file__).parent / "drawing"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_FILES = {path.name: path for folder in (_HERE, _DRAWING) for path in folder.iterdir() if path.suffix in _TYPES}
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


@page.get("/")
async def index() -> Response:
    return _file("index.html")


@page.get("/static/{name}")
async def static(name: str) -> Response:
    return _file(name)


def _file(name: str) -> Response:
    """Read anew each time: it is small, and an upgraded server shall not serve the old one out of a browser's cache."""
    if name not in _FILES:
        raise HTTPException(404, f"the page has no file {name}")
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(_FILES[name].read_bytes(), headers=headers, media_type=_TYPES[Path(name).suffix])
