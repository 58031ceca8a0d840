"""Against ApolloResearch/e2e_sae itself: dictionaries of its own class, and checkpoints that its own code writes.

The release on the package index lacks the scripts that it imports, so one name of theirs is stood in for. It opens
models of its own by that name, which no test here does.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

import dictlab
from dictlab.formats.loading import recognised
from dictlab.formats.reading.source import Source

pytestmark = pytest.mark.interop

MISSING = "e2e_sae.scripts.train_tlens.run_train_tlens"
for part in (MISSING.rpartition(".")[0], MISSING):
    sys.modules.setdefault(part, ModuleType(part))
sys.modules[MISSING].HookedTransformerPreConfig = object

# It asks this variable for its own folder wherever CI is set, and fails on a service that does not set it.
os.environ.setdefault("GITHUB_WORKSPACE", str(Path(__file__).parent))

transformer_lens = pytest.importorskip("transformer_lens")
losses = pytest.importorskip("e2e_sae.losses")
SAE = pytest.importorskip("e2e_sae.models.sparsifiers").SAE
SAETransformer = pytest.importorskip("e2e_sae.models.transformers").SAETransformer
save_module = pytest.importorskip("e2e_sae.utils").save_module

SITES = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"]
LOSS = {
    "sparsity": {"p_norm": 1.0, "coeff": 0.5},
    "in_to_orig": {"hook_positions": ["blocks.1.hook_resid_post"], "total_coeff": 2.0},
    "out_to_orig": None,
    "out_to_in": {"coeff": 0.0},
    "logits_kl": {"coeff": 1.0},
}
# Float32 on both sides, the same products in another order: values of order 1 differ by some 1e-6.
TOLERANCE = 1e-5


def agree(dictionary, sae, x, tolerance=TOLERANCE):
    """The same latents are active, as strongly, and the reconstruction is the same."""
    with torch.no_grad():
        x_hat, c = sae(x)
        codes, reconstruction = dictionary(x)
    assert torch.equal(codes.dense() != 0, c != 0)
    assert 0 < (c != 0).float().mean() < 1
    torch.testing.assert_close(codes.dense(), c, atol=tolerance, rtol=0)
    torch.testing.assert_close(reconstruction, x_hat, atol=tolerance, rtol=0)


def trained(sae, x, steps=20):
    """A few steps on the loss of a local run, so that biases are not 0 and decoder directions not of unit length."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    local, sparsity = losses.OutToInLoss(coeff=1.0), losses.SparsityLoss(coeff=0.1)
    for _ in range(steps):
        x_hat, c = sae(x)
        loss = local.calc_loss(x, x_hat) + sparsity.coeff * sparsity.calc_loss(c, x.shape[-1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sae


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("steps", [0, 20], ids=["random", "trained"])
def test_a_dictionary_of_its_class_computes_the_same_here(tmp_path, steps, orthogonal):
    torch.manual_seed(0)
    x = torch.randn(200, 16)
    sae = trained(SAE(16, 48, init_decoder_orthogonal=orthogonal), x, steps)
    saes = torch.nn.ModuleDict({"blocks-6-hook_resid_pre": sae})
    torch.save(saes.state_dict(), tmp_path / "samples_10.pt")
    dictionary = dictlab.load(tmp_path / "samples_10.pt")
    agree(dictionary, sae, x)
    torch.testing.assert_close(dictionary.W_dec, sae.dict_elements.T.detach(), atol=1e-7, rtol=0)
    if not orthogonal:
        raw = sae.decoder.weight.detach().T
        assert (dictionary.W_dec - raw).abs().max() > 0.1, "the decoder as it is stored is another function"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_precisions_agree_as_far_as_they_reach(tmp_path, dtype):
    torch.manual_seed(0)
    x = torch.randn(200, 16).to(dtype)
    sae = trained(SAE(16, 48), x.float()).to(dtype)
    torch.save(torch.nn.ModuleDict({"blocks-6-hook_resid_pre": sae}).state_dict(), tmp_path / "samples_10.pt")
    dictionary = dictlab.load(tmp_path / "samples_10.pt")
    with torch.no_grad():
        x_hat, c = sae.float()(x.float())  # the numbers in the file, computed with in float32
        codes, reconstruction = dictionary(x.float())
    torch.testing.assert_close(codes.dense(), c, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(reconstruction, x_hat, atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run of several sites in a tiny model, trained for a few steps as the library does, and written by its code."""
    torch.manual_seed(0)
    config = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=12, d_head=8, d_vocab=50, act_fn="gelu", seed=0, device="cpu"
    )
    model = SAETransformer(transformer_lens.HookedTransformer(config), SITES, dict_size_to_input_ratio=3.0)
    model.saes.requires_grad_(True)
    model.tlens_model.requires_grad_(False)
    terms, cached = losses.LossConfigs(**LOSS), LOSS["in_to_orig"]["hook_positions"]
    optimizer = torch.optim.Adam(model.saes.parameters(), lr=1e-2)
    for _ in range(5):
        tokens = torch.randint(50, (4, 12))
        with torch.no_grad():
            logits, acts = model.forward_raw(tokens, run_entire_model=True, cache_positions=cached)
        new_logits, new_acts = model(tokens, sae_positions=SITES, cache_positions=cached)
        loss, _ = losses.calc_loss(acts, new_acts, logits, new_logits, terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    settings = {
        "seed": 7,
        "tlens_model_name": "pythia-14m",
        "tlens_model_path": None,
        "n_samples": 20,
        "batch_size": 4,
        "lr": 0.01,
        "loss": terms.model_dump(mode="json"),
        "train_data": {"dataset_name": "none", "n_ctx": 12},
        "saes": {"dict_size_to_input_ratio": 3.0, "sae_positions": SITES},
    }
    folder = tmp_path_factory.mktemp("runs") / "seed-7"
    save_module(settings, folder, model.saes, "samples_20.pt")
    return folder, model, settings


@pytest.mark.parametrize("site", SITES)
def test_each_site_of_a_checkpoint_computes_the_same_here(checkpoint, site):
    folder, model, settings = checkpoint
    dictionary = dictlab.load(f"{folder / 'samples_20.pt'}#{site}")
    tokens = torch.randint(50, (6, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        acts = model.forward_raw(tokens, run_entire_model=True)[1]
    agree(dictionary, model.saes[site.replace(".", "-")], acts[site].reshape(-1, 16))
    about = dictionary.metadata
    assert (about.site, about.seed, about.model) == (site, 7, "EleutherAI/pythia-14m")
    assert (about.objective, about.convention, about.tokens) == ("e2e+ds", "transformer_lens", 20 * 12)
    assert about.foreign == settings == yaml.safe_load((folder / "final_config.yaml").read_text())


def test_no_other_format_claims_a_checkpoint_and_its_sites_are_offered(checkpoint):
    folder, _, _ = checkpoint
    assert recognised(Source.open(folder / "samples_20.pt")) == ["e2e_sae"]
    with pytest.raises(dictlab.DictlabError, match=r"samples_20\.pt#blocks\.1\.hook_mlp_out"):
        dictlab.load(folder)
