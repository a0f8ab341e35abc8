"""The logits that llama.cpp gives, by `llama-cpp-python`."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def llama_cpp_logits(path: Path, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Logits (T, V) after each of tokens (T,), with the KV cache in F32."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path),
        n_ctx=len(tokens) + 1,
        n_batch=len(tokens),
        n_ubatch=len(tokens),
        n_threads=1,  # its threads wait for each other without end where a core is busy
        n_threads_batch=1,
        logits_all=True,
        yarn_attn_factor=-1,  # the file's, not the library's own
        yarn_beta_fast=-1,
        yarn_beta_slow=-1,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    try:
        model.eval(tokens.tolist())
        return np.array(model.scores[: len(tokens)])
    finally:
        model.close()
