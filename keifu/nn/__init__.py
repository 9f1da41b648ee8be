"""Parts of language models: mixers, norms, positions, experts, state, kernels."""
