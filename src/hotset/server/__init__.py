"""Answers over HTTP, in the forms that clients of OpenAI, Anthropic and Ollama expect."""
