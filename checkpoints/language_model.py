"""The shipped language model: a byte-pair tokenizer and a small GPT-2, trained on the built-in text alone."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from dictlab.data.text import Text

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

VOCABULARY, CONTEXT, WIDTH, BLOCKS, HEADS = 4096, 256, 128, 6, 4
STEPS, BATCH, PEAK_LR, WARMUP = 2600, 16, 8e-3, 80
EVALUATE_EVERY, SAVE_EVERY, HELD_OUT_CONTEXTS = 100, 50, 96
END = "<|endoftext|>"


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level byte pairs, GPT-2's rule: documents end with the end-of-text token, nothing is put in front."""
    from tokenizers import ByteLevelBPETokenizer

    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator(Text.builtin().documents(), VOCABULARY, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=pairs._tokenizer,
        bos_token=END,
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def learning_rate(step: int) -> float:
    """Linear warm-up, then linear decay to zero: the loss has nowhere left to fall when it ends."""
    return PEAK_LR * min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))


@dataclass
class Training:
    """The model in training: all that a resumed build needs."""

    model: GPT2LMHeadModel
    optimizers: list[torch.optim.Optimizer]
    log: list[dict[str, float]]
    seconds: float = 0.0
    step: int = 0

    @classmethod
    def start(cls, tokenizer: PreTrainedTokenizerFast, state: Path) -> Training:
        """From the saved state if there is one, else from the beginning."""
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=CONTEXT,
                n_embd=WIDTH,
                n_layer=BLOCKS,
                n_head=HEADS,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                use_cache=False,
            )
        ).to("cuda" if torch.cuda.is_available() else "cpu")
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
        others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".h." in name)]
        optimizers = [
            torch.optim.Muon(matrices, lr=PEAK_LR, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
        ]
        training = cls(model, optimizers, [])
        if state.exists():
            training._restore(state)
        return training

    def save(self, state: Path) -> None:
        """Write the state, whole or not at all."""
        values = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "log": self.log,
            "seconds": self.seconds,
            "step": self.step,
        }
        torch.save(values, state.with_suffix(".tmp"))
        os.replace(state.with_suffix(".tmp"), state)

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the next token, in nats."""
        tokens = tokens.long().to(self.model.device)
        logits = self.model(input_ids=tokens).logits[:, :-1]
        return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    @torch.no_grad()
    def held_out_loss(self, contexts: torch.Tensor) -> float:
        """Mean loss over the held-out contexts."""
        parts = contexts.split(16)
        return sum(float(self.loss(part)) for part in parts) / len(parts)

    def train_step(self, contexts: torch.Tensor) -> float:
        """One step of both optimizers on the next batch; each pass over the text is in another order."""
        began = time.perf_counter()
        epoch = self.step * BATCH // len(contexts)
        order = torch.randperm(len(contexts), generator=torch.Generator().manual_seed(epoch))
        rows = order[torch.arange(self.step * BATCH, (self.step + 1) * BATCH) % len(order)]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.step)
        loss = self.loss(contexts[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seconds += time.perf_counter() - began
        return float(loss)

    def _restore(self, state: Path) -> None:
        saved = torch.load(state, weights_only=True, map_location=self.model.device)
        self.model.load_state_dict(saved["model"])
        for optimizer, values in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.log, self.seconds, self.step = saved["log"], saved["seconds"], saved["step"]


def build(folder: Path, state: Path) -> None:
    """Train the model and write it in Hugging Face format; goes on from `state` where it was interrupted."""
    tokenizer = train_tokenizer()
    contexts, held_out = (
        torch.stack(list(Text.builtin(split).contexts(tokenizer, CONTEXT, seed=0))) for split in ("train", "heldout")
    )
    held_out = held_out[torch.linspace(0, len(held_out) - 1, HELD_OUT_CONTEXTS).long()]
    training = Training.start(tokenizer, state)
    bar = tqdm(total=STEPS, initial=training.step, desc="language model", mininterval=5)
    while training.step < STEPS:
        loss = training.train_step(contexts)
        bar.update()
        if training.step % EVALUATE_EVERY == 0:
            where = {"step": training.step, "tokens": training.step * BATCH * CONTEXT, "seconds": training.seconds}
            training.log.append(where | {"train": loss, "heldout": training.held_out_loss(held_out)})
            bar.set_postfix(train=f"{loss:.3f}", heldout=f"{training.log[-1]['heldout']:.3f}")
        if training.step % SAVE_EVERY == 0:
            training.save(state)
    partial = folder.with_name(f".{folder.name}.partial")
    training.model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "training.json").write_text(json.dumps(training.log, indent=1) + "\n")
    os.replace(partial, folder)
