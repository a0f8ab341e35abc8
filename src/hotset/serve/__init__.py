"""Answers requests: loads a model, schedules, samples, streams tokens, embeds texts."""
