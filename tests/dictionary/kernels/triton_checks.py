"""What test_triton.py runs: every product by Triton's interpreter against torch's, odd shapes and empty rows included."""

import torch

from dictlab.dictionary.activation_functions import ReLU, TopK
from dictlab.dictionary.codes import CachedColumns, Codes, offsets_of
from dictlab.dictionary.kernels import sparse, triton

SHAPES = [(1, 1, 1), (5, 7, 3), (6, 40, 33), (3, 9, 1030)]  # tokens, latents, width; the last one needs three blocks


def random_codes(tokens: int, n: int, seed: int) -> Codes:
    """Rows of different lengths, some of them empty, some latents twice in a row, one latent never."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 5, (tokens,), generator=generator)
    counts[0] = 0
    indices = torch.randint(0, max(1, n - 1), (int(counts.sum()),), generator=generator)
    return Codes(torch.randn(len(indices), generator=generator), indices, offsets_of(counts), n, CachedColumns())


def check_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the largest: sums of up to 1,030 products are taken in another order."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    assert found.shape == expected.shape and not (found - expected).abs().gt(1e-5 * max(1.0, largest)).any()


def check_products() -> None:
    sparse.DENSE = 1.0
    torch.manual_seed(0)
    for seed, (tokens, n, d) in enumerate(SHAPES):
        codes, rows = random_codes(tokens, n, seed), torch.randn(n, d)
        x = torch.randn(tokens, 2 * d)[:, ::2]  # rows that are not whole in memory
        dense = sparse.summed(codes)
        for found, expected in [
            (triton.combined(codes, rows), dense @ rows),
            (triton.transposed(codes, x), dense.T @ x),
            (triton.products_at(codes, x, rows), (x @ rows.T)[codes.rows, codes.indices]),
            (triton.combined(codes, rows), sparse.combined(codes, rows)),
            (triton.transposed(codes, x), sparse.transposed(codes, x.contiguous())),
            (triton.products_at(codes, x, rows), sparse.products_at(codes, x.contiguous(), rows)),
        ]:
            check_close(found, expected)


def check_gradients() -> None:
    """Through encode and decode, with Triton in the place of torch."""
    for activation in (TopK(3), ReLU()):
        torch.manual_seed(0)
        inputs = [torch.randn(*s).requires_grad_() for s in ((5, 9), (9, 30), (30,), (30, 9), (9,))]
        x, W_enc, b_enc, W_dec, centre = inputs
        results = []
        for wanted in (lambda tensor: False, lambda tensor: True):
            sparse.by_triton = wanted
            out = sparse.decode(sparse.encode(x, W_enc, b_enc, activation, centre), W_dec)
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), inputs)])
        for one, other in zip(*results, strict=True):
            check_close(one, other)


check_products()
check_gradients()
print("agree")
