"""Which inserted latents are shown: against sorting by hand, and on the page of a stitching."""

import numpy as np

from analyses.composition.stitching.stitching import stitching
from dictlab import TopK
from tests.planted import random_dictionary, tiny_model


def test_the_inserted_latents_that_lower_the_error_most_alone_are_shown(text):
    small, large = (random_dictionary(n, 16, seed=n, name=f"of {n}", activation=TopK(4)) for n in (20, 40))
    report = stitching(
        small, large, model=tiny_model(), text=text, tokens=2000, contexts=8, select="cosine", threshold=0.6, cards=3
    )
    latents = report.tables["latents"].frame
    novel = latents[latents["class by cosine"] == "novel"]
    expected = novel.sort_values("change in MSE", kind="stable")["latent"].head(3)
    titles = [card.title for card in report.cards["inserted"].cards]
    assert len(novel) > 3 and titles == [f"Latent {latent} of of 40" for latent in expected]
    assert all("nearest in SMALL" in card.fields for card in report.cards["inserted"].cards)
    assert np.isfinite(latents["change in MSE"]).any()
