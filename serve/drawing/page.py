"""The page itself. The one file that imports gradio, late: it takes two seconds."""

import base64
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlp_dist.core.errors import ServerError
from mlp_dist.core.spec import AUTO
from serve.archive import Archive
from serve.drawing.answer import waiting
from serve.ports import HOST

if TYPE_CHECKING:
    from serve.drawing.examples import Example

HERE = Path(__file__).resolve().parent

_SIDE = 400
"""Of the drawing, in pixels."""

_PAD = f"""<canvas width="{_SIDE}" height="{_SIDE}" aria-label="Draw here"></canvas>
<div class="tools">
<button class="undo" disabled>Undo</button><button class="clear" disabled>Clear</button></div>"""

_PICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("picked", { number: Number(button.dataset.number) });
});"""

_LARGEST = 10 * 2**20
"""Bytes of a file: of what TorchServe takes."""

Ask = Callable[[bytes, str], str]
"""The bytes of an image file and what it is, in words -> HTML of the answer."""


@dataclass(frozen=True)
class Contents:
    archive: Archive
    examples: "Sequence[Example]"
    ask: Ask


def load_gradio() -> ModuleType:
    """Raises ServerError where it is not installed."""
    # It reports usage from its import on, unless this is set.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    # It asks itself whether it answers: through a proxy, this machine is not to be found.
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


@contextmanager
def opened(contents: Contents, port: int) -> Iterator[str]:
    """The page's address on loopback, until the end; what was uploaded is removed then.

    Raises ServerError where gradio is missing, or `port` is taken.
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
                max_file_size=_LARGEST,
            )
        except OSError as error:
            raise ServerError(f"port {port} was taken by another program meanwhile; start again") from error
        try:
            yield url.rstrip("/")
        finally:
            page.close(verbose=False)


def _build(gr: Any, contents: Contents) -> Any:
    spec = contents.archive.spec
    of_digits = set(spec.classes) <= set("0123456789")
    title = "Draw a digit" if of_digits else "Draw a picture"
    # A model that takes pictures as they are is given what data sets have: thick light ink on black.
    ink, paper, pen = ("black", "white", 1 / 18) if spec.preprocess == AUTO else ("white", "black", 1 / 8)

    def drawn(event: gr.EventData) -> str:
        if not event.picture:
            return waiting(spec)
        return contents.ask(base64.b64decode(event.picture.partition(",")[2]), "your drawing")

    def uploaded(path: str | None) -> str:
        if path is None:
            return waiting(spec)
        return contents.ask(Path(path).read_bytes(), Path(path).name)

    def picked(event: gr.EventData) -> str:
        example = contents.examples[event.number]
        return contents.ask(
            example.picture, f"a test image, a {example.label}" if example.label else "the test image"
        )

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
                file = gr.File(label="Or send a picture of one", type="filepath", height=140, elem_id="file")
            with gr.Column(min_width=400):
                answer = gr.HTML(waiting(spec), apply_default_css=False, elem_id="answer")
        quietly = {
            "outputs": answer,
            "queue": False,
            "show_progress": "hidden",
            "trigger_mode": "always_last",
        }
        pad.drawn(drawn, **quietly)
        examples.picked(picked, **quietly)
        file.change(uploaded, file, **quietly)
    return page


def _heading(title: str, archive: Archive) -> str:
    spec = archive.spec
    accuracy = spec.metrics.get("test_accuracy")
    known = f", {accuracy:.2%} of its test images right" if accuracy is not None else ""
    return (
        f"<h1>{title}</h1><p>The model {escape(archive.name)}, a perceptron {spec.model} trained on "
        f"{escape(spec.dataset)}{known}, answers from TorchServe.</p>"
    )


def _buttons(examples: "Sequence[Example]") -> str:
    buttons = (
        f'<button data-number="{number}" title="{escape(each.label)}"><img alt="{escape(each.label)}" '
        f'src="data:image/png;base64,{base64.b64encode(each.picture).decode()}"></button>'
        for number, each in enumerate(examples)
    )
    return f'<p>Or take a test image:</p><div class="images">{"".join(buttons)}</div>'
