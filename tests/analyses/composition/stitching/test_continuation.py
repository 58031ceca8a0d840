"""Further training of a stitched dictionary: where it starts, against the trainer called by itself."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from analyses.composition.stitching.continuation import FRESH, continued, parent_and_novel
from analyses.composition.stitching.stitching import stitching
from analyses.pool.dictionary_chain import encode_chain
from analyses.pool.ridge_refit import refit_decoder
from dictlab import DictlabError, TopK, save
from dictlab.data.activations import ModelActivations
from dictlab.training import TrainConfig, train
from tests.planted import SITE, random_dictionary, tiny_model


def parents():
    return [
        random_dictionary(n, 16, seed=n, name=name, activation=TopK(4)) for n, name in ((20, "small"), (40, "large"))
    ]


@pytest.mark.parametrize(("parent", "threshold"), [(1, 0.5), (0, 0.3), (0, 1.1), (1, -1.0)])
def test_of_the_others_what_points_elsewhere_is_added_to_the_whole_parent(parent, threshold):
    given = [*parents(), random_dictionary(30, 16, seed=7, name="third", activation=TopK(4))]
    chain = encode_chain(given, [torch.randn(4, 50, 16, generator=torch.Generator().manual_seed(0))])
    alive, rows = chain.sample.firing_rate > 0, normalize(chain.pool.W_dec, dim=1).numpy()
    expected = chain.mask_of(parent)
    for number in range(3):
        if number != parent:
            novel = (rows @ rows[expected].T).max(axis=1) < threshold
            expected = expected | (chain.mask_of(number) & alive & novel)
    assert np.array_equal(parent_and_novel(chain, parent, threshold), expected)


def test_what_is_continued_is_what_the_trainer_makes_of_the_refitted_start(text, tmp_path):
    """Bit for bit, and the fresh dictionary is that of an ordinary run."""
    model, (small, _) = tiny_model(), parents()
    activations = ModelActivations(model, text.as_split("train"), SITE, 32)
    batches = list(activations.sample(1000))
    made = continued({"start": small}, 50, 4, 512, activations, batches, seed=0)
    start = save(refit_decoder(small.folded(), batches), tmp_path / "start.safetensors")
    shared = {"model": model.name, "site": SITE, "text": text.name, "tokens": 512, "batch": 512, "context": 32}
    options = {"model": model, "text": text.as_split("train")}
    again = train(TrainConfig(**shared, start=(str(start),)), out=tmp_path / "a", **options).dictionaries[0]
    fresh = train(TrainConfig(**shared, width=(50,), k=(4,)), out=tmp_path / "b", **options).dictionaries[0]
    x = torch.cat([batch.reshape(-1, 16) for batch in batches])
    torch.testing.assert_close(made["start"].reconstruct(x), again.reconstruct(x), atol=1e-3, rtol=1e-3)
    assert torch.equal(made[FRESH].W_dec, fresh.W_dec)
    assert (made["start"].reconstruct(x) - refit_decoder(small, batches).reconstruct(x)).abs().max() > 1e-3


def test_the_report_compares_what_is_continued_with_its_controls_at_one_k(text):
    report = stitching(
        *parents(), model=tiny_model(), text=text, tokens=2000, contexts=8, competition="own", finetune=512
    )
    table = report.tables["continued"].frame
    assert list(table["dictionary"])[1:] == ["union, continued", FRESH, "stitched, continued"]
    assert table["L0"].between(3.9, 4.0).all() and list(table["latents"])[1:3] == [60, 60]
    ratio = 100 * (table["MSE"] / table["MSE"][0] - 1)
    np.testing.assert_allclose(table["MSE less the parent's (%)"], ratio, atol=1e-9)
    assert "Trained on for 512 tokens at k 4" in report.summary
    assert report.dictionaries["continued"].activation == TopK(4)


def test_an_array_is_no_model_to_train_on():
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0)).numpy()
    with pytest.raises(DictlabError, match="`finetune="):
        stitching(*parents(), data=x, finetune=512)
