"""The page itself. Imports gradio late, since that takes two seconds."""

import base64
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

from mlp_dist.core.errors import ServerError, UsageError
from mlp_dist.core.spec import AUTO, BundleSpec
from serve.archive import Archive
from serve.torchserve.ports import HOST, is_free, owner_of

HERE = Path(__file__).resolve().parent

MAX_BARS = 10
"""Classes shown: the most probable ones if there are more."""

_PAD_SIDE = 400
"""Pixels."""

_PAD = f"""<canvas width="{_PAD_SIDE}" height="{_PAD_SIDE}" aria-label="Draw here"></canvas>
<div class="tools">
<button class="undo" disabled>Undo</button><button class="clear" disabled>Clear</button></div>"""

_PICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("picked", { number: Number(button.dataset.number) });
});"""

_MAX_FILE_SIZE = 10 * 2**20
"""Bytes, as TorchServe's max_request_size."""

Ask = Callable[[bytes, str], str]
"""(bytes of an image file, description of it) -> HTML of the answer."""


@dataclass(frozen=True)
class Example:
    """`picture` is a PNG file; `label` is the name of its true class, "" if unknown."""

    picture: bytes
    label: str


@dataclass(frozen=True)
class Contents:
    archive: Archive
    examples: Sequence[Example]
    ask: Ask


def load_gradio() -> ModuleType:
    """Raises ServerError if it is not installed."""
    # Without it, the import alone sends usage statistics.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    # It checks its own address, which a proxy cannot reach.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST)))
    try:
        import gradio
    except ImportError as error:
        raise ServerError(
            "the page needs gradio: make demo installs it, or pip install 'mlp_dist[demo]'"
        ) from error
    module: ModuleType = gradio
    return module


def check_port(port: int | None) -> None:
    """Raise UsageError for an invalid port and ServerError for a taken one."""
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"port is {port}; give one from 1 to 65535")
    if port is not None and not is_free(port):
        raise ServerError(f"port {port} is taken by {owner_of(port)}; give another --port, or omit it")


@contextmanager
def opened(contents: Contents, port: int | None) -> Iterator[str]:
    """Serve the page on loopback; yields its URL. Removes uploads at the end.

    `port` None: the first free one from 7860 on. Raises ServerError if gradio is missing or no port is free.
    """
    gr = load_gradio()
    with tempfile.TemporaryDirectory(prefix="mlp-draw-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = _build(gr, contents)
        try:
            _, url, _ = page.launch(
                server_name=HOST,
                server_port=port,
                theme=gr.themes.Default(
                    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]
                ),
                css=(HERE / "page.css").read_text(),
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                run_history=False,
                footer_links=[],
                max_file_size=_MAX_FILE_SIZE,
            )
        except OSError as error:
            raise ServerError(f"no free port for the page: {error}") from error
        try:
            yield url.rstrip("/")
        finally:
            page.close(verbose=False)


def _build(gr: Any, contents: Contents) -> Any:
    spec = contents.archive.spec
    title = "Draw a digit" if set(spec.classes) <= set("0123456789") else "Draw a picture"
    # Without preprocessing, drawings must look like the data set: thick light ink on black.
    ink, paper, pen = ("black", "white", 1 / 18) if spec.preprocess == AUTO else ("white", "black", 1 / 8)

    def drawn(event: gr.EventData) -> str:
        if not event.picture:
            return _empty_answer(spec)
        return contents.ask(base64.b64decode(event.picture.partition(",")[2]), "your drawing")

    def uploaded(path: str | None) -> str:
        if path is None:
            return _empty_answer(spec)
        return contents.ask(Path(path).read_bytes(), Path(path).name)

    def picked(event: gr.EventData) -> str:
        example = contents.examples[event.number]
        name = f"a test image, a {example.label}" if example.label else "the test image"
        return contents.ask(example.picture, name)

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(_heading(title, contents.archive), elem_id="title")
        with gr.Row():
            with gr.Column(min_width=400):
                pad = gr.HTML(
                    html_template=_PAD,
                    js_on_load=(HERE / "pad.js").read_text(),
                    apply_default_css=False,
                    elem_id="pad",
                    ink=ink,
                    paper=paper,
                    pen=pen,
                )
                examples = gr.HTML(
                    _buttons(contents.examples), js_on_load=_PICK, apply_default_css=False, elem_id="examples"
                )
                file = gr.File(label="Or upload a picture", type="filepath", height=140, elem_id="file")
            with gr.Column(min_width=400):
                answer = gr.HTML(_empty_answer(spec), apply_default_css=False, elem_id="answer")
        options = {
            "outputs": answer,
            "queue": False,
            "show_progress": "hidden",
            "trigger_mode": "always_last",
        }
        pad.drawn(drawn, **options)
        examples.picked(picked, **options)
        file.change(uploaded, file, **options)
    return page


def _heading(title: str, archive: Archive) -> str:
    spec = archive.spec
    accuracy = spec.metrics.get("test_accuracy")
    known = f", test accuracy {accuracy:.2%}" if accuracy is not None else ""
    return (
        f"<h1>{title}</h1><p>Model {escape(archive.name)}: a perceptron {spec.model} trained on "
        f"{escape(spec.dataset)}{known}, served by TorchServe.</p>"
    )


def _buttons(examples: Sequence[Example]) -> str:
    buttons = (
        f'<button data-number="{number}" title="{escape(each.label)}"><img alt="{escape(each.label)}" '
        f'src="data:image/png;base64,{base64.b64encode(each.picture).decode()}"></button>'
        for number, each in enumerate(examples)
    )
    return f'<p>Or pick a test image:</p><div class="images">{"".join(buttons)}</div>'


def _empty_answer(spec: BundleSpec) -> str:
    text = "Each stroke is answered."
    if spec.preprocess != AUTO:
        text = f"This model sees the whole square: fill it. {text}"
    title = "Draw with the mouse, a pen or a finger."
    return answer_section("?", title, text, bars(dict.fromkeys(spec.classes, 0.0)), state="waiting")


def answer_section(
    sign: str, title: str, text: str, body: str = "", *, state: str = "", label: str = ""
) -> str:
    """The right half of the page; `state` is "", "waiting" or "wrong"."""
    role = ' role="alert"' if state == "wrong" else ""
    words = f"<p>{escape(title)}<br><span>{escape(text)}</span></p>"
    return (
        f'<section class="answer {state}" data-label="{escape(label)}"{role}>'
        f"<header><strong>{escape(sign)}</strong>{words}</header>{body}</section>"
    )


def bars(probabilities: dict[str, float]) -> str:
    """One row per class, in the model's order, or the MAX_BARS most probable ones."""
    rows = list(probabilities.items())
    best = max(probabilities, key=probabilities.__getitem__)
    if len(rows) > MAX_BARS:
        rows = sorted(rows, key=lambda row: -row[1])[:MAX_BARS]
    lines = (
        f"<tr{' class=best' if name == best and value else ''}><th>{escape(name)}</th>"
        f'<td><i style="width: {value:.2%}"></i></td><td>{value:.1%}</td></tr>'
        for name, value in rows
    )
    return f"<table>{''.join(lines)}</table>"
