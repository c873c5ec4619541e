"""The page of `python -m serve.draw`. Importing it takes seconds: gradio, mlflow and torch."""

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from mlp_dist.core.errors import MlpDistError, ServerError
from mlp_dist.core.image import encode_png
from mlp_dist.core.spec import AUTO
from mlp_dist.tracking import find
from serve.archive import Archive
from serve.client import Client
from serve.torchserve.ports import HOST

_FIGURE = """<figure style="display: inline-block; width: 140px; margin: 1rem 6px 0 0; vertical-align: top">
<img src="{}" style="width: 100%; image-rendering: pixelated"><figcaption>{}</figcaption></figure>"""

_ON_HANDWRITING = ". Of strangers' digits it reads 97 %, and its answers to them are 97 % sure on average"

Answer = tuple[dict[str, float] | str | None, str]
"""Probabilities, or words instead, and the HTML beside them."""


@contextmanager
def opened(archive: Archive, client: Client, port: int | None) -> Iterator[str]:
    """Serve the page on loopback (`port` None: from 7860 on); yields its URL. Removes uploads at the end."""
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    server: dict[str, Any] = {"server_name": HOST, "server_port": port, "share": False, "ssr_mode": False}
    server |= {"mcp_server": False, "pwa": False, "footer_links": [], "theme": theme}
    server |= {"quiet": True, "prevent_thread_lock": True, "run_history": False, "max_file_size": "10mb"}
    with tempfile.TemporaryDirectory(prefix="mlp-draw-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = _build(archive, lambda picture, name: _ask(client, picture, name))
        try:
            yield page.launch(**server)[1].rstrip("/")
        finally:
            page.close(verbose=False)


def _build(archive: Archive, ask: Callable[[bytes, str], Answer]) -> Any:
    spec, examples = archive.spec, _examples(archive)
    noun = "digit" if set(spec.classes) <= set("0123456789") else "picture"
    hint, ink, color, radius = "Draw with the mouse, a pen or a finger.", "black", "white", 8
    if spec.preprocess != AUTO:
        # Drawings must look like the data set: thick light ink on black.
        hint, ink, color, radius = f"{hint} Fill the square: the model sees all of it.", "white", "black", 17
    paper = Image.new("L", (280, 280), color)

    def drawn(value: dict[str, Any]) -> Answer:
        picture = value["composite"] or paper
        left, top, right, bottom = ImageChops.difference(picture, paper).getbbox() or (0, 0, 0, 0)
        if max(right - left, bottom - top) <= 4 * radius:
            return f"Draw the whole {noun}" if right else None, hint
        file = io.BytesIO()
        picture.save(file, format="PNG")
        return ask(file.getvalue(), "your drawing")

    known = f", test accuracy {value:.2%}" if (value := spec.metrics.get("test_accuracy")) is not None else ""
    known += _ON_HANDWRITING if spec.recipe == "mnist" else ""
    brush = gr.Brush(default_size=radius, colors=[ink], color_mode="fixed")
    tools: dict[str, Any] = {"brush": brush, "layers": False, "transforms": (), "buttons": []}
    form: dict[str, Any] = {"type": "pil", "image_mode": "L", "format": "png", "canvas_size": paper.size}
    images = [[Image.open(io.BytesIO(picture))] for picture, _ in examples]
    with gr.Blocks(title=f"Draw a {noun}", analytics_enabled=False) as page:
        gr.Markdown(f"# Draw a {noun}\nModel {archive.name}: {spec.model} trained on {spec.dataset}{known}.")
        with gr.Row():
            with gr.Column(scale=5):
                pad = gr.Sketchpad(paper, show_label=False, height=360, elem_id="pad", **form, **tools)
            with gr.Column(scale=4):
                label = gr.Label(num_top_classes=10, show_label=False, elem_id="label")
            with gr.Column(scale=2, min_width=200):
                about = gr.HTML(hint, elem_id="about")
        picks = gr.Dataset(label="Test images", components=["image"], samples=images, type="index")
        upload = gr.UploadButton("Upload a picture")
        pad.input(drawn, pad, [label, about], show_progress="hidden", trigger_mode="always_last")
        picks.click(lambda index: ask(*examples[index]), picks, [label, about], show_progress="hidden")
        upload.upload(lambda path: ask(Path(path).read_bytes(), Path(path).name), upload, [label, about])
        # Clearing removes the paper and puts the pen away.
        pad.clear(lambda: paper, None, pad, show_progress="hidden")
    return page


def _examples(archive: Archive) -> list[tuple[bytes, str]]:
    """A test image of each of ten classes, or the golden image if the data set is missing; PNG and name."""
    try:
        data = find.run_dataset(find.find_run(archive.spec.run_id), archive.spec, download=False)
    except (MlpDistError, OSError):
        return [(archive.golden, "the test image")]
    first = dict(zip(data.test.labels.flip(0).tolist(), data.test.images.flip(0), strict=True))
    named = [(image, f"a test image, a {data.classes[label]}") for label, image in sorted(first.items())[:10]]
    return [(encode_png(image), name) for image, name in named]


def _ask(client: Client, picture: bytes, name: str) -> Answer:
    """The server's answer to the bytes of an image file; `name` is for people."""
    started = time.perf_counter()
    try:
        answer = client.ask(picture)
    except ServerError as error:
        return "No answer", escape(f"No answer to {name}. {error}")
    took = f"answered in {1000 * (time.perf_counter() - started):.0f} ms by run {answer.run_id[:8]}."
    text = escape(f"{max(answer.values.values()):.1%} sure about {name}, {took}")
    try:
        values = client.ask(picture, "explanations").values
    except ServerError as error:
        return answer.values, f"{text}<p>No explanation: {escape(str(error))}</p>"
    captions = {"image": "What the model sees", "heat_map": f"Red is for {values['class']}, blue against it"}
    figures = (_FIGURE.format(values[key], escape(caption)) for key, caption in captions.items())
    return answer.values, f"{text}<br>{''.join(figures)}"
