"""What the page shows: answers as HTML, and test images to pick."""

import time
from html import escape
from typing import Any

from mlp_dist.core.errors import MlpDistError, ServerError
from mlp_dist.core.image import encode_png
from mlp_dist.tracking import export, find
from serve.archive import Archive
from serve.client import Client, InvalidKeyError, NotReadyError
from serve.drawing.page import Example, answer_section, bars
from serve.torchserve.keys import KeyFileError

NUM_EXAMPLES = 10


def examples_of(archive: Archive) -> list[Example]:
    """The first test image of each of NUM_EXAMPLES classes, or the golden image if the data set is missing.

    Downloads nothing.
    """
    try:
        data = export.run_dataset(find.get_run(archive.spec.run_id), archive.spec, download=False)
    except (MlpDistError, OSError):
        return [Example(archive.golden, "")]
    first: dict[int, int] = {}
    for position, label in enumerate(data.test.labels.tolist()):
        first.setdefault(label, position)
    return [
        Example(encode_png(data.test.images[position]), data.classes[label])
        for label, position in sorted(first.items())[:NUM_EXAMPLES]
    ]


def answer_html(client: Client, picture: bytes, name: str) -> str:
    """The server's answer to the bytes of an image file, or its error, as HTML. `name` is for people."""
    started = time.perf_counter()
    try:
        answer = client.ask(picture)
        seconds = time.perf_counter() - started
    except (NotReadyError, InvalidKeyError, KeyFileError) as error:
        return _error(
            "No answer from the server", f"{error}. Or stop this page with Ctrl-C and start it again."
        )
    except ServerError as error:
        return _error(f"No answer to {name}", _message(error))
    try:
        explanation = _figures(client.ask(picture, "explanations").values)
    except ServerError as error:
        explanation = f"<p>No explanation: {escape(_message(error))}</p>"
    label = max(answer.values, key=answer.values.__getitem__)
    title = f"{answer.values[label]:.1%} sure about {name}"
    run = f'<p class="run">Run {escape(answer.run_id)}.</p>'
    body = bars(answer.values) + explanation + run
    return answer_section(label, title, f"answered in {seconds * 1000:.0f} ms", body, label=label)


def _figures(explanation: dict[str, Any]) -> str:
    name, rows = escape(explanation["class"]), explanation["attributions"]
    rows = rows[0] if isinstance(rows[0][0], list) else rows
    captions = {
        "image": f"Input of the model, {len(rows)}x{len(rows[0])} pixels",
        "heat_map": f"<b>Red</b> pixels speak for {name}, <em>blue</em> against it",
    }
    figures = (
        f'<figure><img src="{escape(explanation[key])}" alt="{key}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for key, caption in captions.items()
    )
    return f'<div class="pictures">{"".join(figures)}</div>'


def _message(error: ServerError) -> str:
    """The server's message, without the client's prefix of URL and status."""
    return str(error).partition(": ")[2] or str(error)


def _error(title: str, text: str) -> str:
    return answer_section("!", title, text, state="wrong")
