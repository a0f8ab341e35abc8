"""Hotset as a model of lm-evaluation-harness: that package cuts texts into tokens and scores the answers."""

import numpy as np
from lm_eval.api.model import TemplateLM

from hotset.backends.maths import log_softmax
from hotset.core.batch import Batch


class Adapter(TemplateLM):
    """Log-likelihoods of single sequences, each read from an empty context."""

    eot_token_id = 0

    def __init__(self, model):
        super().__init__()
        self.model = model

    def tok_encode(self, string, add_special_tokens=None, **options):
        return list(self.model.tokenizer.encode(string, add_special=add_special_tokens is not False))

    def _loglikelihood_tokens(self, requests, **options):
        return [self._likelihood(context, continuation) for _, context, continuation in requests]

    def _likelihood(self, context, continuation):
        tokens = np.array(context + continuation, np.int32)
        state = self.model.sequence(len(tokens))
        logits = self.model.transformer.forward(Batch.of(state, tokens[:-1], lossless=True, logits=None))
        logs = log_softmax(logits)[-len(continuation) :]
        likely = bool((logs.argmax(axis=1) == continuation).all())
        return float(logs[np.arange(len(continuation)), continuation].sum(dtype=np.float64)), likely

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def generate_until(self, requests, disable_tqdm=False):
        raise NotImplementedError


def task(path):
    """The package's own task over a JSONL file of Hotset's form."""
    return {
        "task": "facts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
    }
