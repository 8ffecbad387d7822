"""What is trained on a finished store: datasets for PyTorch over its rows, priors, latent GANs.

Reading: `dataset.RowDataset`, `dataset.RowStream`. Tools on rows as points of a space:
`statistics.normalization_of`, `statistics.principal_components`, `latents.interpolate`,
`latents.nearest`. Comparing sets: `set_metrics`. A trained prior: `prior.open_prior`.
"""
