"""`dictlab demo` works from the package's own files, in any folder, and may be called again."""

import shutil
from importlib.resources import files

from dictlab import LanguageModel, Report, load
from dictlab.cli import demo as demo_module
from dictlab.cli import main


def run_with(monkeypatch, analysis):
    monkeypatch.setattr(demo_module, "load_analysis", lambda entry: analysis)


def test_the_files_are_small_and_belong_together():
    folder = files("dictlab.demo") / "checkpoints"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 6_000_000
    model = LanguageModel.load(folder / "gpt2-python-2m")
    for path in (*folder.glob("*.safetensors"),):
        assert load(path).metadata.model_fingerprint == model.fingerprint


def test_the_demo_stitches_in_a_folder_of_its_own_and_may_be_called_again(monkeypatch, tmp_path, capsys):
    seen = []

    def stitching(small: str, larger: list[str], *, tokens: int, contexts: int) -> Report:
        """Stands for the analysis, which has tests of its own."""
        seen.append((load(small).n_latents, [load(one).n_latents for one in larger]))
        return Report("Stitched", "Done.")

    run_with(monkeypatch, stitching)
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0 and main(["demo"]) == 0
    assert seen == [(256, [512])] * 2
    assert (tmp_path / "dictlab-demo" / "out" / "stitch" / "report.html").exists()
    assert "cd dictlab-demo" in capsys.readouterr().out


def test_what_an_interrupted_demo_left_is_replaced(monkeypatch, tmp_path):
    run_with(monkeypatch, lambda small, larger, *, tokens, contexts: Report("Stitched", "Done."))
    partial = tmp_path / "mine" / ".checkpoints.partial"
    partial.mkdir(parents=True)
    (partial / "half").write_text("")
    assert main(["demo", str(tmp_path / "mine")]) == 0
    assert not partial.exists() and not (tmp_path / "mine" / "checkpoints" / "half").exists()
    shutil.rmtree(tmp_path / "mine")
