"""An explorer of two small dictionaries, made once, and the same codes as matrices."""

import pytest

from analyses.explorer.explore import explore
from dictlab import Metadata, ReLU, TopK
from tests.planted import SITE, random_dictionary, tiny_model

SIZES, CONTEXT = (24, 40), 16


@pytest.fixture(scope="package")
def model():
    return tiny_model()


@pytest.fixture(scope="package")
def dictionaries():
    about = Metadata(site=SITE, training={"context": CONTEXT})
    return [
        random_dictionary(n, 16, activation=activation, seed=n, name=f"d{n}", metadata=about)
        for n, activation in zip(SIZES, (TopK(4), ReLU()), strict=True)
    ]


@pytest.fixture(scope="package")
def explorer(model, dictionaries, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("explorer") / "page"
    return explore(dictionaries, model=model, text=text, tokens=64 * CONTEXT, umap=False, out=out)


@pytest.fixture(scope="package")
def dense(model, dictionaries, text):
    """Activations of every latent at every token of the same sample, as matrices."""
    sequences = text.as_split("train").sample(model.tokenizer, CONTEXT, 64, seed=0)
    x = model.capture(sequences, SITE)[SITE]
    return sequences, x, [d.encode(x).dense().numpy() for d in dictionaries]
