"""Generation: loading a model, choosing tokens, evaluating and measuring."""
