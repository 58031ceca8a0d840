"""Words of reports on latents: which tables are read, and what is refused."""

import json

import pandas as pd
import pytest

from analyses.explorer.report_labels import report_labels
from dictlab import DictlabError


def report(folder, **tables):
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"title": f"Report {folder.name}"}))
    for name, frame in tables.items():
        pd.DataFrame(frame).to_parquet(folder / f"{name}.parquet")
    return folder


def test_words_of_every_table_of_latents(tmp_path):
    patterns = report(
        tmp_path / "patterns",
        patterns={
            "dictionary": ["a", "a", "b", "c"],
            "latent": [1, 1, 0, 0],
            "pattern": ["self", "self", "</x>", "no"],
        },
        overview={"dictionary": ["a"], "latents": [3]},
    )
    probes = report(
        tmp_path / "probes",
        tasks={"features": ["b", "channels"], "latent": [2, None], "task": ["loop", "x"], "F1": [0.5, 1.0]},
    )
    assert report_labels([patterns, probes], ["a", "b"], [2, 3]) == [
        (0, 1, "Report patterns", "self"),
        (1, 0, "Report patterns", "</x>"),
        (1, 2, "Report probes", "loop (F1 0.50)"),
    ]


def test_what_is_no_report_or_says_nothing_is_refused(tmp_path):
    with pytest.raises(DictlabError, match="no folder of a report"):
        report_labels([tmp_path], ["a"], [1])
    other = report(tmp_path / "other", patterns={"dictionary": ["z"], "latent": [1], "pattern": ["self"]})
    with pytest.raises(DictlabError, match="says anything in words of latents of a"):
        report_labels([other], ["a"], [1])
