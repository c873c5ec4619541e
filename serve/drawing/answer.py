"""A picture -> what the page shows of it: asked through the client, written as HTML."""

import time
from collections.abc import Callable
from html import escape
from typing import Any

from mlp_dist.core.errors import ServerError
from mlp_dist.core.spec import AUTO, BundleSpec
from serve.client import Client, InvalidKeyError, NotReadyError
from serve.keys import KeyFileError

MOST = 10
"""Classes that have a bar: of more, the most probable."""


def ask(client: Client, page_of: Callable[[str], str], picture: bytes, what: str) -> str:
    """HTML of the server's answer to the bytes of an image file, or of why there is none.

    `what` the picture is, in words; `page_of` knows the address of a run's page in MLflow, "" where it has
    none.
    """
    started = time.perf_counter()
    try:
        answer = client.ask(picture)
        seconds = time.perf_counter() - started
    except (NotReadyError, InvalidKeyError, KeyFileError) as error:
        return _told(
            "No answer from the server", f"{error}. Or end this page with Ctrl-C and start it again."
        )
    except ServerError as error:
        return _told(f"No answer to {what}", _words(error))
    try:
        explanation = client.ask(picture, "explanations").values
    except ServerError as error:
        explanation = {"missing": _words(error)}
    label = max(answer.values, key=answer.values.__getitem__)
    parts = (
        _header(
            label, f"{answer.values[label]:.1%} sure about {what}", f"answered in {seconds * 1000:.0f} ms"
        ),
        bars(answer.values),
        _pictures(explanation),
        f'<p class="run">{_run(answer.run_id, page_of)}</p>',
    )
    return f'<section class="answer" data-label="{escape(label)}">{"".join(parts)}</section>'


def waiting(spec: BundleSpec) -> str:
    """What stands there before there is an answer."""
    how = "Each stroke is answered."
    if spec.preprocess != AUTO:
        how = f"This model looks at the whole square: fill it. {how}"
    header = _header("?", "Draw with the mouse, a pen or a finger.", how)
    return f'<section class="answer waiting">{header}{bars(dict.fromkeys(spec.classes, 0.0))}</section>'


def bars(probabilities: dict[str, float]) -> str:
    """Class name -> probability as a row of a bar each: in their order, or of many the most probable."""
    shown = list(probabilities.items())
    best = max(probabilities, key=probabilities.__getitem__)
    if len(shown) > MOST:
        shown = sorted(shown, key=lambda each: -each[1])[:MOST]
    rows = (
        f"<tr{' class=best' if name == best and value else ''}><th>{escape(name)}</th>"
        f'<td><i style="width: {value:.2%}"></i></td><td>{value:.1%}</td></tr>'
        for name, value in shown
    )
    return f"<table>{''.join(rows)}</table>"


def _pictures(explanation: dict[str, Any]) -> str:
    """What the model saw, and what of it decided."""
    if "missing" in explanation:
        return f"<p>No explanation: {escape(explanation['missing'])}</p>"
    name = escape(explanation["class"])
    captions = {
        # A server of an archive from before that does not tell it.
        "image": f"What the model saw, {_size(explanation['attributions'])} pixels",
        "heat_map": f"What decided: <b>red</b> speaks for {name}, <em>blue</em> against it",
    }
    figures = (
        f'<figure><img src="{escape(explanation[key])}" alt="{key}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for key, caption in captions.items()
        if key in explanation
    )
    return f'<div class="pictures">{"".join(figures)}</div>'


def _size(attributions: list[Any]) -> str:
    """As "28x28", of (H, W) or (C, H, W)."""
    rows = attributions[0] if isinstance(attributions[0][0], list) else attributions
    return f"{len(rows)}x{len(rows[0])}"


def _run(run_id: str, page_of: Callable[[str], str]) -> str:
    address = page_of(run_id)
    if not address:
        return f"From the run {escape(run_id)}, which MLflow has no page of here."
    link = f'<a href="{escape(address)}" target="_blank" rel="noopener">{escape(run_id[:8])} in MLflow</a>'
    return f"From the run {link}."


def _words(error: ServerError) -> str:
    """The server's own, without the address and the status that the client puts before them."""
    said = str(error).partition(": ")[2]
    return said or str(error)


def _told(title: str, text: str) -> str:
    return f'<section class="answer wrong" role="alert">{_header("!", title, text)}</section>'


def _header(sign: str, title: str, text: str) -> str:
    words = f"<p>{escape(title)}<br><span>{escape(text)}</span></p>"
    return f"<header><strong>{escape(sign)}</strong>{words}</header>"
