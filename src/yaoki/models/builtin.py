"""The built-in tiny base model: a Qwen2 of about a million parameters, pre-trained on first use.

It replaces the downloaded base model of a real run: it is trained on worked solutions, some with mistakes, so
it gives answers in the right format and is correct part of the time. The result is an ordinary Hugging Face
folder in the user's cache, named by a digest of everything it depends on.
"""

import hashlib
import inspect
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from yaoki.models.determinism import single_threaded
from yaoki.models.huggingface import quiet
from yaoki.seeding import Purpose, seed

END_OF_TEXT = "<|endoftext|>"
MARKS = ("<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "</think><answer>\\boxed{", "}</answer>")

Example = tuple[str, str]
"""Prompt text and completion text; the loss is on the completion."""


@dataclass(frozen=True, slots=True)
class Pretraining:
    """Hyperparameters of the pre-training; every field is part of the cache digest."""

    steps: int = 640
    batch_size: int = 40
    lr: float = 3e-3
    warmup_steps: int = 20
    seed: int = 0


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so that it encodes any text; each mark of an answer is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    """The architecture of the tiny model, of about 0.8M parameters."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=512,
        max_position_embeddings=4096,
        initializer_range=0.08,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype="float32",
    )


def tiny_random(seed_value: int) -> Qwen2ForCausalLM:
    """A tiny model with random weights, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_value & 0x7FFFFFFFFFFFFFFF)
        return Qwen2ForCausalLM(tiny_config(tiny_tokenizer()))


def tiny_base(
    examples: Callable[[int], Example],
    source_digest: str,
    plan: Pretraining,
    on_progress: Callable[[int, int], None],
) -> Path:
    """Folder of the tiny base model, pre-trained on `examples(0), examples(1), ...` unless it is cached.

    `source_digest` identifies the function `examples`: equal digests mean equal examples. The folder appears
    by one rename, and two processes that make it at the same time make the same.
    """
    digest = _digest(plan, source_digest)
    target = cache_directory() / f"tiny-base-{digest}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    with single_threaded():
        model = _pretrain(plan, tokenizer, examples, on_progress)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    try:
        with quiet(with_bars=False):
            model.save_pretrained(making)
            tokenizer.save_pretrained(making)
        making.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target


def cache_directory() -> Path:
    """`$YAOKI_CACHE`, else `$XDG_CACHE_HOME/yaoki`, else `~/.cache/yaoki`."""
    if explicit := os.environ.get("YAOKI_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yaoki"


def _digest(plan: Pretraining, source_digest: str) -> str:
    """Everything the weights depend on: plan, texts, this code, libraries and kind of processor."""
    facts = {
        "plan": asdict(plan),
        "source": source_digest,
        "code": inspect.getsource(sys.modules[__name__]),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
    text = json.dumps(facts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _pretrain(
    plan: Pretraining,
    tokenizer: PreTrainedTokenizerFast,
    examples: Callable[[int], Example],
    on_progress: Callable[[int, int], None],
) -> Qwen2ForCausalLM:
    model = tiny_random(seed(plan.seed, Purpose.BASE_MODEL))
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(plan.steps):
        batch = [examples(step * plan.batch_size + row) for row in range(plan.batch_size)]
        ids, targets = _collate(tokenizer, batch)
        rise = min(1.0, (step + 1) / plan.warmup_steps)
        fall = 1.0 - 0.9 * step / plan.steps
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * rise * fall
        logits = model(input_ids=ids).logits
        loss = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        on_progress(step + 1, plan.steps)
    model.eval()
    return model


def _collate(
    tokenizer: PreTrainedTokenizerFast, batch: Sequence[Example]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and targets, both `[B, S]`; targets are -100 on prompt and padding."""
    prompts = tokenizer([prompt for prompt, _ in batch])["input_ids"]
    completions = tokenizer([completion for _, completion in batch])["input_ids"]
    length = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    ids = torch.full((len(batch), length), tokenizer.pad_token_id)
    targets = torch.full((len(batch), length), -100)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        targets[row, len(prompt) : end] = torch.tensor(completion)
    return ids, targets
