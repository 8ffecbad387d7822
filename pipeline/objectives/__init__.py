"""Loss terms: each a vector with one value a sample."""
