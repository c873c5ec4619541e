"""The leaderboard: how runs are ranked and told apart, and what is made of it."""

import csv
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mlp_dist.core.errors import UsageError
from mlp_dist.tracking.curves import read_curves
from mlp_dist.tracking.find import StoredRun
from mlp_dist.tracking.leaderboard.boards import Board, build_boards
from mlp_dist.tracking.leaderboard.chart import Axis, Line, draw
from mlp_dist.tracking.leaderboard.page import write_page
from mlp_dist.tracking.leaderboard.text import lines, write_csv
from tests.helpers.launching import ROOT, run
from tests.helpers.stored_runs import end_run, start_run

_numbers = count()


def a_run(name: str, accuracy: float | None = None, *, status: str = "FINISHED", **changed: Any) -> StoredRun:
    """One on MNIST; `changed` are params, but for dataset and digest."""
    metrics = {} if accuracy is None else {"best_val_accuracy": accuracy, "test_accuracy": accuracy - 0.01}
    dataset, digest = changed.pop("dataset", "mnist"), changed.pop("digest", "")
    more, tags = changed.pop("metrics", {}), changed.pop("tags", {})
    return StoredRun(
        run_id=f"{next(_numbers):032x}",
        name=name,
        dataset=dataset,
        digest=digest,
        metrics={**metrics, **more},
        bundle="",
        status=status,
        tags=tags,
        params={
            "recipe": "mnist",
            "lr": "0.1",
            "output_dir": name,
            **{k: str(v) for k, v in changed.items()},
        },
    )


def names(board: Board) -> list[str]:
    return [row.run.name for row in board.rows]


def test_the_best_is_first_and_of_equals_the_latest() -> None:
    runs = [a_run("a", 0.9), a_run("b", 0.95), a_run("c", 0.9), a_run("d", 0.95)]
    [board] = build_boards(runs)
    assert names(board) == ["b", "d", "a", "c"]
    assert [row.place for row in board.rows] == [1, 2, 3, 4]
    [board] = build_boards(runs, top=2)
    assert (names(board), board.left_out) == (["b", "d"], 2)


def test_a_loss_is_better_where_it_is_smaller_and_what_is_not_finite_is_no_place() -> None:
    values = {"a": 0.5, "b": 0.1, "c": float("nan"), "d": float("inf"), "e": None}
    runs = [
        a_run(name, metrics={} if value is None else {"best_val_loss": value})
        for name, value in values.items()
    ]
    for metric in ("best_val_loss", "val_loss"):
        [board] = build_boards(runs, metric)
        assert (board.metric, names(board)) == ("best_val_loss", ["b", "a", "c", "d", "e"])
        assert [row.place for row in board.rows] == [1, 2, None, None, None]
    by_epoch = [a_run("b", metrics={"val/accuracy": 0.9, "best_val_accuracy": 0.9})]
    with pytest.raises(UsageError, match=r"'val/acuracy'; did you mean val/accuracy\?"):
        build_boards(by_epoch, "val/acuracy")
    with pytest.raises(UsageError, match=r"no run here has the metric 'loss' \(there are: best_val_loss\)"):
        build_boards(runs, "loss")


def test_one_that_did_not_end_well_is_below_with_what_it_reached() -> None:
    runs = [
        a_run("running", status="RUNNING", metrics={"val/accuracy": 0.99}),
        a_run("failed", 1.0, status="FAILED"),
        a_run("good", 0.9),
    ]
    runs.append(a_run("given up", status="KILLED", tags={"pruned": "after epoch 2"}))
    [board] = build_boards(runs)
    assert [(row.run.name, row.place, row.value, row.status) for row in board.rows] == [
        ("good", 1, 0.9, ""),
        ("running", None, 0.99, "RUNNING"),
        ("failed", None, 1.0, "FAILED"),
        ("given up", None, None, "PRUNED"),
    ]
    text = "\n".join(lines(board))
    assert re.search(r"1 +good .* 0\.9000", text)
    assert re.search(r"- +running .* RUNNING +\(0\.9900\)", text)
    assert "(0.9) what a run has reached" in text


def test_columns_are_what_was_chosen_differently() -> None:
    runs = [
        a_run("a", 0.9, hidden_sizes=(256, 64), weight_decay=0.0, clip_norm=None, device="cpu"),
        # A version without weight_decay, whose default is 0.
        a_run("b", 0.8, hidden_sizes=(), lr=0.05, mean="(0.1,)", num_parameters=7),
    ]
    [board] = build_boards(runs)
    assert board.columns == ["hidden_sizes", "lr"]
    assert [row.chosen for row in board.rows] == [
        {"hidden_sizes": "256-64", "lr": "0.1"},
        {"hidden_sizes": "none", "lr": "0.05"},
    ]


def test_data_sets_are_ranked_apart() -> None:
    runs = [
        a_run("small", 0.5, dataset="digits"),
        a_run("mnist", 0.9, digest="a", image_size=28),
        a_run("mnist at 20", 0.8, digest="b", image_size=20),
        a_run("another mnist", 0.95, digest="c", image_size=28),
        a_run("old mnist", 0.7),
    ]
    found = {board.dataset: names(board) for board in build_boards(runs)}
    assert found == {
        "digits": ["small"],
        "mnist (digest a)": ["mnist", "mnist at 20", "old mnist"],
        "mnist (digest c)": ["another mnist"],
    }


def test_the_terminal_s_width_is_kept_and_what_is_missing_is_told() -> None:
    runs = [
        a_run(f"a rather long name {number}", 0.9 - number / 100, lr=number, seed=number)
        for number in range(3)
    ]
    [board] = build_boards(runs, champion=runs[1].run_id)
    whole = lines(board)
    widest = max(map(len, whole))
    assert whole[-1] == "* the champion"
    assert [line.split()[0] for line in whole[-5:-2]] == ["1", "2*", "3"]
    assert lines(board, widest) == whole
    for width in (widest - 1, 60, 40):
        narrow = lines(board, width)
        table = narrow[2 : narrow.index("", 2)]
        assert max(map(len, table)) <= width
        assert "no room for" in narrow[-1] or "…" in narrow[-5]
    assert narrow[-1] == "no room for seed, lr, test_accuracy, id"


def test_csv(tmp_path: Path) -> None:
    runs = [
        a_run('a, "quoted" name', 0.9, lr=0.3),
        a_run("b", 0.8),
        a_run("c", dataset="digits", status="FAILED"),
    ]
    write_csv(build_boards(runs, champion=runs[0].run_id), tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as file:
        first, second, third = csv.DictReader(file)
    assert first == {
        **{"dataset": "mnist", "place": "1", "run_id": runs[0].run_id, "name": 'a, "quoted" name'},
        **{"status": "FINISHED", "champion": "1", "best_val_accuracy": "0.9", "test_accuracy": "0.89"},
        "param.lr": "0.3",
    }
    assert (second["place"], second["param.lr"]) == ("2", "0.1")
    assert (third["dataset"], third["place"], third["status"]) == ("digits", "", "FAILED")


# The page


class Page(HTMLParser):
    """The names of the elements, their ids, and the values of the attributes that could fetch something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]


def a_page(path: Path, runs: list[StoredRun], **options: Any) -> str:
    curves = {
        run.run_id: {
            "val/accuracy": [(epoch, 0.9 - 0.3 / epoch - number / 1000) for epoch in range(1, 6)],
            "train/loss": [(epoch, (number + 1) / epoch) for epoch in range(1, 6)],
        }
        for number, run in enumerate(runs)
    }
    write_page(path, "a <b>experiment</b>", build_boards(runs, **options), curves)
    return path.read_text()


def test_the_page_needs_nothing_else_and_shows_names_as_they_are(tmp_path: Path) -> None:
    runs = [
        a_run("<script>alert(1)</script>", 0.9, lr='"x"'),
        *(a_run(f"run {number}", 0.5) for number in range(9)),
    ]
    html = a_page(tmp_path / "page.html", runs, champion=runs[0].run_id)
    page = Page(html)
    assert len(page.ids) == len(set(page.ids)) == 2
    assert page.fetched == []
    assert re.findall(r"url\((?!#)|@import|https?:", html) == []
    assert page.elements.count("script") == 1
    assert "&lt;script&gt;alert(1)" in html
    assert "<title>a &lt;b&gt;experiment" in html
    assert page.elements.count("svg") == 2
    # A curve each, and the eight first in colours of their own, which the rows have too.
    assert html.count('<g class="curve ') == 2 * len(runs)
    for number in range(8):
        assert html.count(f'<g class="curve c{number}"') == 2
        assert html.count(f'class="c{number}') == 1
    assert html.count('<g class="curve other"') == 2 * (len(runs) - 8)
    assert html.count('<span class="mark">champion') == 1
    assert "prefers-color-scheme: dark" in html


def test_a_page_of_two_data_sets(tmp_path: Path) -> None:
    page = Page(a_page(tmp_path / "page.html", [a_run("a", 0.9), a_run("b", 0.9, dataset="digits")]))
    assert (page.elements.count("svg"), page.elements.count("table")) == (4, 2)
    assert len(set(page.ids)) == 4


def test_a_page_without_curves_or_runs_is_whole(tmp_path: Path) -> None:
    lonely = a_run("lonely", status="RUNNING")
    write_page(
        tmp_path / "a.html",
        "x",
        build_boards([lonely]),
        {lonely.run_id: {"val/accuracy": [], "train/loss": []}},
    )
    assert "no run has val/accuracy" in (tmp_path / "a.html").read_text()
    write_page(tmp_path / "b.html", "x", [], {})
    assert "<p>no run." in (tmp_path / "b.html").read_text()


@pytest.mark.parametrize(
    "curve", [[(1, 0.5)], [(1, 0.5), (9, 0.5)], [(1, 0.0), (2, 1.0)], [(1, 1e-9), (2, 1e9)]]
)
@pytest.mark.parametrize("is_log", [False, True])
def test_axes_of_any_curve(curve: list[tuple[int, float]], is_log: bool) -> None:
    picture = draw([Line("id", "name", "", curve)], "train/loss", is_log=is_log)
    numbers = re.findall(r' (?:x|y|cx|cy)[12]?="([^"]+)"', picture)
    assert all(-10 <= float(number) <= 610 for number in numbers)
    assert 2 <= picture.count('class="up"') <= 20
    assert picture.count('class="across"') >= 2


def test_ticks() -> None:
    assert Axis(0.915, 0.979, 0, 1).ticks() == pytest.approx([0.92, 0.93, 0.94, 0.95, 0.96, 0.97])
    assert Axis(1, 20, 0, 1).ticks() == pytest.approx([5, 10, 15, 20])
    assert Axis(0.04, 1.1, 0, 1, is_log=True).ticks() == pytest.approx([0.05, 0.1, 0.2, 0.5, 1])
    assert Axis(1e-4, 1.0, 0, 1, is_log=True).ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1])
    assert Axis(0.3, 0.5, 0, 1, is_log=True).ticks() == pytest.approx([0.3, 0.35, 0.4, 0.45, 0.5])
    axis = Axis(0.01, 100, 200, 0, is_log=True)
    assert [axis.at(value) for value in (0.01, 1, 100)] == pytest.approx([200, 100, 0])


@pytest.mark.slow
def test_a_browser_sorts_the_table_and_keeps_a_run_marked(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a browser: chromium")
    runs = [a_run("b", 0.9, lr=10), a_run("a", 0.8, lr=9), a_run("c", status="RUNNING", lr=1)]
    html = a_page(tmp_path / "page.html", runs)
    script = """<script>
      const names = () => [...document.querySelectorAll("tbody .run")];
      const order = () => names().map((each) => each.textContent).join("");
      const heads = [...document.querySelectorAll("th")];
      const click = (name) => { heads.find((head) => head.textContent === name).click(); return order(); };
      const told = [order(), click("run"), click("run"), click("lr"), click("best_val_accuracy")];
      document.querySelector("tbody tr").click();
      told.push(document.querySelectorAll("svg.dim .curve.on").length);
      document.body.dataset.told = told.join(" ");
    </script>"""
    (tmp_path / "page.html").write_text(html.replace("</body>", f"{script}</body>"))
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    words += [f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{tmp_path}/page.html"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert re.findall(r'data-told="(.*?)"', done.stdout) == ["bac abc cba cab bac 2"]


# The command


@pytest.mark.slow
def test_the_command(mlflow: Any, tmp_path: Path) -> None:
    from mlflow.entities import Metric

    client = mlflow.MlflowClient()
    ids = []
    for name, accuracy in (("first", 0.8), ("second", 0.9)):
        run_id = start_run("x", name, {"dataset": "mnist", "lr": accuracy})
        client.log_batch(run_id, [Metric("val/accuracy", accuracy - 1 / step, step, step) for step in (1, 2)])
        # The epoch that was trained again, and one that diverged.
        client.log_batch(
            run_id, [Metric("val/accuracy", accuracy, 5, 2), Metric("val/accuracy", float("nan"), 6, 3)]
        )
        ids.append(end_run(run_id, best_epoch=2, best_val_accuracy=accuracy))
    parent = start_run("x", "parent", {})
    end_run(start_run("x", "child", {"dataset": "mnist"}, parent=parent), "KILLED")
    end_run(parent, best_epoch=1, best_val_accuracy=1.0)
    assert read_curves(ids[1:], ["val/accuracy", "nothing"]) == {
        ids[1]: {"val/accuracy": [(1, pytest.approx(-0.1)), (2, 0.9)], "nothing": []}
    }
    files = ["--csv", "out/runs.csv", "--html", "out/runs.html"]
    done = run([sys.executable, str(ROOT / "launch/compare.py"), "--experiment", "x", *files], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = re.findall(r"^ *([\d-]+)\*? +(\w+)", done.stdout, flags=re.MULTILINE)
    assert found == [("1", "second"), ("2", "first"), ("-", "child")]
    assert "mnist: 3 runs, the best by best_val_accuracy first" in done.stdout
    assert (tmp_path / "out/runs.csv").read_text().count("\n") == 4
    assert (tmp_path / "out/runs.html").read_text().count('<g class="curve ') == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["runs.csv", "runs.html"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--experiment", "nope"], "it has no mlflow.db; go to where the training was started"),
        (["--top", "0"], "top is 0; it must be 1 or more"),
        (["--metrics", "x"], "did you mean --metric?"),
    ],
)
def test_a_mistake(flags: list[str], message: str, tmp_path: Path) -> None:
    done = run([sys.executable, str(ROOT / "launch/compare.py"), *flags], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
