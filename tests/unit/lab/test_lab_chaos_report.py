"""The page of a chaos run: everything in it, nothing from elsewhere, and no text of a result that acts."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from paramserver.cli import main
from paramserver.lab.chaos.report import look, pictures
from paramserver.lab.chaos.report.page import NO_PICTURES, Picture, page
from paramserver.lab.chaos.report.write import write
from paramserver.lab.chaos.result import ChaosResult, to_json
from tests.unit.lab.chaos_results import GROWTH, fault, result

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=y>$\\frac{1}{2}$"


class Tags(HTMLParser):
    """Names of tags, and where what they show comes from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def hostile() -> ChaosResult:
    faults = (
        fault(kind=HOSTILE, target=HOSTILE, parameters={HOSTILE: HOSTILE}, error=HOSTILE, notes=(HOSTILE,)),
        fault(kind=HOSTILE, invalid=HOSTILE, stall_ms=None),
    )
    return result(
        suite=HOSTILE, command=HOSTILE, replay=HOSTILE, faults=faults, problems=(HOSTILE,), kept=HOSTILE,
        skipped={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE}, machine={HOSTILE: HOSTILE}, plan={HOSTILE: HOSTILE},
        loads={HOSTILE: {HOSTILE: HOSTILE}}, growth=(GROWTH,),
    )  # fmt: skip


def test_no_text_of_a_result_acts() -> None:
    text = page(hostile(), [Picture(HOSTILE, HOSTILE, b"<svg/>")])
    tags = Tags(text)
    assert not tags.open
    assert "script" not in tags.names
    assert not tags.handlers
    assert tags.names.count("img") == 1


def test_pictures_of_hostile_text_can_be_drawn_and_hold_no_script() -> None:
    for picture in pictures.drawn(hostile()):
        assert b"<script" not in picture.svg
        assert b"&lt;script&gt;" in picture.svg


def test_it_needs_nothing_from_elsewhere() -> None:
    text = page(result(), pictures.drawn(result()))
    tags = Tags(text)
    assert len(tags.sources) == 2
    assert all(source.startswith("data:image/svg+xml;base64,") for source in tags.sources)
    assert not {"script", "link", "iframe", "object"} & set(tags.names)
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "@import" not in text
    for picture in pictures.drawn(result()):
        assert not re.search(rb'(href|src)="https?:', picture.svg)


def test_it_tells_what_was_wrong_in_every_place() -> None:
    wrong = fault(kind="black_hole", lost=3, duplicated=2, stale_reads=7, bit_identical=False, hang=True)
    text = page(result(faults=(fault(), wrong), problems=("black_hole 0: 3 acknowledged updates are lost",)), ())
    assert '<p class="verdict failed">failed</p>' in text
    assert "black_hole 0: 3 acknowledged updates are lost" in text
    for count in (3, 2, 7):
        assert text.count(f"<td><b class=bad>{count}</b></td>") == 2  # by kind, and in its own row
    assert text.count("<b class=bad>no</b>") == 2
    assert "hang" in text
    assert look.outcome(wrong) == "hang, updates lost, updates applied twice, stale reads, other bits"
    assert look.colour_of(wrong) == look.COLOURS["failed"]
    assert [look.outcome(one) for one in (fault(), fault(invalid="no load"))] == [look.FINE, look.INVALID]


def test_a_figure_that_there_is_none_for_is_a_dash() -> None:
    text = page(result(faults=(fault(stall_ms=None, step_p99_ratio=None),)), ())
    row = text[text.index("Every fault") :].split("<tr>")[2]
    assert "<td>–</td>" in row


def test_throughput_counts_all_ranks_steps_over_their_number_and_shows_pauses_as_zero() -> None:
    workers = [
        pictures.WorkerTimeline(stage="s", load="digits", rank=rank, steps_ms=(0, 100, 200, 2000)) for rank in (0, 1)
    ]
    assert pictures.throughput(workers, 1000) == {"digits": [(0.0, 3.0), (1.0, 0.0), (2.0, 1.0), (3.0, 0.0)]}


def test_the_same_result_gives_the_same_pictures() -> None:
    assert pictures.drawn(result()) == pictures.drawn(result())


def test_without_the_plotting_library_the_page_says_how_to_get_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("paramserver.lab.chaos.report.write.find_spec", lambda _: None)
    path = tmp_path / "report.html"
    assert write(result(), path) == NO_PICTURES
    text = path.read_text()
    assert "pip install" in text
    assert "img" not in Tags(text).names
    assert "kill_leader" in text


def test_the_command_makes_a_page_of_a_stored_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored, target = tmp_path / "chaos.json", tmp_path / "report.html"
    stored.write_text(json.dumps(to_json(result())))
    assert main(["chaos", "report", str(stored), "--html", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    assert Tags(target.read_text()).names.count("img") == 2


def test_the_command_refuses_what_is_no_result_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, target = tmp_path / "chaos.json", tmp_path / "report.html"
    for text, said in (("{", "not a result"), ('{"format": 9}', "format: expected 1, received 9")):
        stored.write_text(text)
        assert main(["chaos", "report", str(stored), "--html", str(target)]) == 2
        assert said in capsys.readouterr().err
    assert main(["chaos", "report", str(tmp_path / "none"), "--html", str(target)]) == 2
    assert "No such file" in capsys.readouterr().err
    assert not target.exists()
