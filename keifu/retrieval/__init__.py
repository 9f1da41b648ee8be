"""Finding the texts that a question needs: retrievers, and what is remembered of a user."""
