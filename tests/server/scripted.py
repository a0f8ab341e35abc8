"""A model that says what a test wants, with any chat template, over the demo model's tokenizer."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np

from hotset.serve.engine import Engine
from hotset.tokenizer.chat_template import ChatTemplate

TEMPLATES = Path(__file__).parents[1] / "tokenizer/templates"


class Speaker:
    """Computes nothing: each answer is the next of `say`, the last one again and again."""

    def __init__(self, inner):
        self._inner = inner
        self._spoken = {}
        self.say = []
        self.hook = None

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def forward(self, batch):
        if self.hook:
            self.hook(batch)
        rows = []
        logits = self._inner.forward(batch)
        for span in batch.spans:
            if not span.logits:
                continue
            sequence = id(span.sequence)
            if span.lossless:  # a prompt's last row
                self._spoken[sequence] = list(self.say.pop(0) if len(self.say) > 1 else self.say[0])
            row = np.full(logits.shape[1], -5, np.float32)
            row[self._spoken[sequence].pop(0)] = 20
            rows.append(row)
        return np.array(rows, np.float32).reshape(-1, logits.shape[1])


def scripted_engine(model, template, **options):
    """An engine whose `engine.model.transformer.say` are token ids of its answers."""
    tokenizer = copy.copy(model.tokenizer)
    tokenizer.chat_template = ChatTemplate((TEMPLATES / f"{template}.jinja").read_text())
    speaker = Speaker(model.transformer)
    return Engine(replace(model, transformer=speaker, tokenizer=tokenizer), context=2048, **options)


def say(server, *texts):
    """Make a server's next answers these texts, or token ids."""
    tokenizer = server.engine.tokenizer
    end = min(tokenizer.end_ids)
    server.transformer.say = [
        [*(tokenizer.encode(text, add_special=False) if isinstance(text, str) else text), end]
        for text in texts
    ]
