"""A report as one HTML file: no script, nothing from a network."""

from __future__ import annotations

from importlib.util import find_spec

from service import install_hint
from service.cli.report.report import Report, answers, signed, span, subtitle, unit
from service.storage.base import StorageUnavailableError


def as_html(report: Report) -> str:
    """The page."""
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise StorageUnavailableError(f"--format html needs {' and '.join(missing)}: {install_hint('report')}")
    import jinja2
    from markupsafe import Markup

    from service.cli.report import plots

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("service.cli.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "span": span, "percent": lambda value: f"{value:.1%}"}
    pictures = {draw.__name__: draw(report) for draw in (plots.gain, plots.arms, plots.shares, plots.groups)}
    template = environment.get_template("report.html")
    return template.render(
        report=report,
        answers=list(answers(report)),
        subtitle=subtitle(report),
        unit=unit(report),
        pictures={name: Markup(picture) for name, picture in pictures.items() if picture},  # noqa: S704 - drawn, names escaped
    )
