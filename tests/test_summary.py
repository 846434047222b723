import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from automl_support import add_entry, chain, stripes
from rich.console import Console

from trautoml.grouping import Decision
from trautoml.records import LogEntry
from trautoml.settings import Settings
from trautoml.store import Store
from trautoml.summary import print_summary, summarise

FIRST = Decision("opened", 0, 1.0, np.zeros(0))
JOINED = Decision("joined", 0, 0.75, np.log([0.75]), 2.0, 0.25, 0)
SPLIT = Decision("split", 1, 0.5, np.array([-math.inf]), 60.0, 1e-310, 0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as opened:
        yield opened


def add(
    store: Store,
    name: str,
    decision: Decision = FIRST,
    *,
    search: float = 0.0,
    estimate: float = 0.0,
    probes: float = 2.0,
    training: float = 1.0,
) -> None:
    add_entry(
        store,
        stripes(name, seed=len(store.log())),
        decision,
        spec=chain(8 if decision.group == 0 else 16),
        searched=search > 0,
        seconds={"probes": probes, "search": search, "training": training},
        search_estimate=search or estimate,
    )


def printed(
    log: list[LogEntry], *, terminal: bool = False, settings: Settings | None = None
) -> str:
    output = io.StringIO()
    console = Console(file=output, width=160, force_terminal=terminal)
    print_summary(log, settings or Settings(), console, "my-store")
    return output.getvalue()


def three(store: Store) -> list[LogEntry]:
    add(store, "digits", search=20.0)
    add(store, "digits@0.5", JOINED, estimate=18.0)
    add(store, "faces", SPLIT, search=30.0)
    return store.log()


def test_the_summary_is_strict_json_with_all_that_was_promised(store: Store) -> None:
    summary = json.loads(json.dumps(summarise(three(store), Settings()), allow_nan=False))
    assert summary["totals"] == {
        "tasks": 3,
        "groups": 2,
        "searches": 2,
        "spent_seconds": 59.0,
        "standalone_seconds": 70.0,
        "saved_seconds": 11.0,
    }
    assert [group["members"] for group in summary["groups"]] == [
        ["digits", "digits@0.5"],
        ["faces"],
    ]
    assert [group["group"] for group in summary["groups"]] == [0, 1]
    assert summary["groups"][1]["spec"]["digest"] == chain(16).digest
    assert summary["groups"][1]["spec"]["architecture"] == "chain"
    joined, split = summary["tasks"][1:]
    assert joined["kind"] == "joined"
    assert (joined["posterior"], joined["p_value"], joined["statistic"]) == (0.75, 0.25, 2.0)
    assert joined["group_posteriors"] == pytest.approx([0.75])
    assert joined["sentence"].startswith("digits@0.5 is of the same kind as digits:")
    assert joined["seconds"] == {"probes": 2.0, "search": 0.0, "training": 1.0}
    assert (joined["searched"], joined["saved_seconds"]) == (False, 15.0)
    assert (joined["validation_accuracy"], joined["test_accuracy"]) == (0.9, 0.875)
    assert joined["search_estimate_seconds"] == 18.0
    assert joined["fingerprint"] == stripes(seed=1).fingerprint
    assert split["group_posteriors"] == [0.0]
    assert split["p_value"] == 1e-310
    assert summary["tasks"][0]["p_value"] is None


def test_a_task_is_explained_by_what_was_known_then(store: Store) -> None:
    log = three(store)
    assert (
        summarise(log, Settings())["tasks"][0]["sentence"]
        == "digits is the first task: it opens group 0"
    )


def test_the_table_shows_decisions_groups_time_and_place(store: Store) -> None:
    text = printed(three(store))
    lines = text.splitlines()
    row = next(line for line in lines if "digits@0.5" in line)
    for cell in ("joined", "0.750", "0.25", "0.875", "2.0 s", "1.0 s", "15 s"):
        assert cell in row
    assert "1e-310" in text
    assert "digits, digits@0.5" in text
    assert "3 tasks, 2 groups, 2 searches." in lines
    assert (
        "Spent 59 s of worker time; searching each task would have cost about 1 min 10 s: 16% "
        "saved." in lines
    )
    assert lines[-1] == "Store: my-store"
    assert lines[-2] == "Setting: scratch"
    assert "features" not in text
    assert "\x1b" not in text


def test_features_and_backbone_are_shown_where_there_is_one(store: Store) -> None:
    seconds = {"features": 90.0, "probes": 2.0, "search": 9.0, "training": 1.0}
    add_entry(store, stripes(), FIRST, seconds=seconds)
    settings = Settings(setting="predefined", backbone={"name": "resnet18", "node": "layer3"})
    text = printed(store.log(), settings=settings)
    assert "features" in text
    assert "1 min 30 s" in text
    words = "predefined, resnet18 at layer3, 224 pixels a side, weights imagenet"
    assert f"Setting: {words}" in text.splitlines()
    assert summarise(store.log(), settings)["settings"]["backbone"]["node"] == "layer3"


def test_time_lost_is_said_too(store: Store) -> None:
    add(store, "digits", search=20.0)
    text = printed(store.log())
    assert "1 task, 1 group, 1 search." in text.splitlines()
    assert "Spent 23 s" in text
    assert "would have cost about 21 s: 10% more was spent than that." in text


def test_an_empty_store() -> None:
    assert printed([]) == "The store my-store holds no fitted task yet.\n"
    assert summarise([], Settings())["totals"]["saved_seconds"] == 0


def test_a_store_where_nothing_was_ever_searched(store: Store) -> None:
    # A policy of the user's own may always know a spec: there is nothing to compare with.
    add(store, "digits")
    assert "0% saved" in printed(store.log())


@pytest.mark.parametrize("terminal", [False, True])
def test_names_cannot_break_the_table(store: Store, terminal: bool) -> None:
    add(store, "[bold]x[/bold] [/] \x1b[31mred\x1b[0m \n two\tlines \u202e")
    text = printed(store.log(), terminal=terminal)
    assert "[bold]x[/bold] [/] ?[31mred?[0m two lines ?" in text
    assert "\x1b[31m" not in text
    assert len([line for line in text.splitlines() if "[bold]" in line]) == 2  # one a table
