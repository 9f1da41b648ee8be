"""The HTTP API: OpenAI and Anthropic shapes over the engine."""
