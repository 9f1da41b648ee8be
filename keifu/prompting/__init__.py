"""Programs that put questions to a model: summaries, long documents. They know the LM alone."""
