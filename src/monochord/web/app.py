"""Routes of the local page: server-rendered, htmx for what changes, nothing from other hosts."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form, Header, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.middleware.trustedhost import TrustedHostMiddleware

from monochord.core.catalog import CatalogError
from monochord.lab import repertoire
from monochord.lab.sheet import figure as looked
from monochord.lab.sheet import number
from monochord.web.jobs import Busy, Jobs
from monochord.web.playground import DEFAULT, MODELS, PROMPT, PROMPTS, TRAITS, TUNED, Playground

HERE = Path(__file__).parent
HOSTS = ["127.0.0.1", "localhost"]
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


def create_app(runs: Path = Path("runs"), hosts: list[str] = HOSTS) -> FastAPI:
    """The page over the package's results and the comparisons below `runs`."""
    app = FastAPI(title="Monochord", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)  # no other name may be made to point here
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    templates = Jinja2Templates(HERE / "templates")
    token = secrets.token_urlsafe(24)
    templates.env.globals |= {"token": token, "looked": looked, "number": number}
    jobs, playground = Jobs(), Playground()
    app.state.token, app.state.jobs = token, jobs

    @app.middleware("http")
    async def guard(request: Request, proceed: Any) -> Response:
        response: Response = await proceed(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def own(x_monochord_token: Annotated[str, Header()] = "") -> None:
        if not secrets.compare_digest(x_monochord_token, token):  # another site's form can't know it
            raise HTTPException(403, "not from this page: reload it")

    def page(request: Request, name: str, **values: Any) -> HTMLResponse:
        return templates.TemplateResponse(request, name, values)

    @app.exception_handler(CatalogError)
    async def unknown(request: Request, error: CatalogError) -> HTMLResponse:
        return templates.TemplateResponse(request, "error.html", {"message": str(error)}, status_code=404)

    @app.get("/", response_class=HTMLResponse)
    def catalog(request: Request, q: str = "", family: str = "", verdict: str = "") -> HTMLResponse:
        entries = repertoire.repertoire(family or None, verdict or None)
        entries = repertoire.search(q, entries) if q.strip() else entries
        families = sorted({entry.family for entry in repertoire.repertoire()})
        name = "rows.html" if request.headers.get("hx-request") else "catalog.html"
        chosen = {"q": q, "family": family, "verdict": verdict}
        return page(request, name, entries=entries, families=families, verdicts=repertoire.VERDICTS, **chosen)

    @app.get("/papers/{slug}", response_class=HTMLResponse)
    def paper(request: Request, slug: str) -> HTMLResponse:
        entry = repertoire.entry(slug)
        return page(request, "paper.html", entry=entry, code=_code(slug), figures=_figures(entry))

    @app.post("/papers/{slug}/run", response_class=HTMLResponse, dependencies=[Depends(own)])
    def start(request: Request, slug: str) -> HTMLResponse:
        entry = repertoire.entry(slug)
        if not repertoire.has_experiment(slug):
            raise HTTPException(404, f"{slug} has no experiment yet")
        try:
            job = jobs.start(["reproduce", entry.slug, "--scale", "smoke"])
        except Busy as error:
            return page(request, "job.html", message=str(error), job=None)
        return page(request, "job.html", job=job, message="")

    @app.get("/jobs/{number}", response_class=HTMLResponse)
    def job(request: Request, number: int) -> HTMLResponse:
        found = jobs.get(number)
        if found is None:
            raise HTTPException(404, "no such job")
        return page(request, "job.html", job=found, message="")

    @app.get("/comparisons", response_class=HTMLResponse)
    def comparisons(request: Request, left: str = "", right: str = "") -> HTMLResponse:
        found = _comparisons(runs)
        chosen = [found[name] for name in (left, right) if name in found]
        return page(request, "comparisons.html", found=found, chosen=chosen, left=left, right=right)

    @app.get("/comparisons/{name}/report", response_class=HTMLResponse)
    def report(name: str) -> FileResponse:
        found = _comparisons(runs)
        if name not in found:
            raise HTTPException(404, "no such comparison")
        return FileResponse(found[name]["folder"] / "report.html")

    @app.get("/playground", response_class=HTMLResponse)
    def play(request: Request, model: str = DEFAULT) -> HTMLResponse:
        if model not in MODELS:
            raise HTTPException(404, "no such model here")
        shown = {"models": MODELS, "model": model, "traits": TRAITS, "grid": playground.grid(model)}
        return page(request, "playground.html", tuned=model in TUNED, prompt=PROMPTS.get(model, PROMPT), **shown)

    @app.post("/playground", response_class=HTMLResponse, dependencies=[Depends(own)])
    async def write(
        request: Request,
        model: Annotated[str, Form()],
        prompt: Annotated[str, Form(max_length=500)],
    ) -> HTMLResponse:
        from starlette.concurrency import run_in_threadpool

        form = await request.form()
        if model not in MODELS:
            raise HTTPException(404, "no such model here")
        scales = {trait: _number(form.get(f"trait-{trait}")) for trait in TRAITS}
        heads = [tuple(map(int, str(head).split("-"))) for head in form.getlist("head") if _is_head(str(head))]
        tuning = _number(form.get("tuning", 1))
        found = await run_in_threadpool(playground.write, model, prompt, scales, heads, tuning)
        return page(request, "written.html", **found)

    return app


def _number(text: Any) -> float:
    try:
        return max(-20.0, min(20.0, float(text)))
    except (TypeError, ValueError):
        return 0.0


def _is_head(text: str) -> bool:
    block, _, head = text.partition("-")
    return block.isdigit() and head.isdigit() and len(text) < 8


def _code(slug: str) -> str:
    """The experiment's source with colours, or nothing."""
    if not repertoire.has_experiment(slug):
        return ""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    source = (HERE.parent / "papers" / f"{slug.replace('-', '_')}.py").read_text(encoding="utf8")
    return str(highlight(source, PythonLexer(), HtmlFormatter(cssclass="code")))


def _figures(entry: repertoire.Entry) -> list[dict[str, str]]:
    found = []
    for drawn in (entry.result or {}).get("figures", []):
        path = repertoire.results_folder() / "figures" / drawn.get("file", "-")
        if path.is_file():
            found.append({"title": drawn["title"], "svg": path.read_text(encoding="utf8")})
    return found


def _comparisons(runs: Path) -> dict[str, dict[str, Any]]:
    """The comparisons below the folder, by the name of theirs."""
    found = {}
    for file in sorted(runs.glob("*/results.json")):
        try:
            results = json.loads(file.read_text(encoding="utf8"))
        except ValueError:
            continue
        if results.get("format", "").startswith("monochord-compare/"):
            found[file.parent.name] = {"folder": file.parent, "results": results, "name": file.parent.name}
    return found
