"""From source objects to prepared shards: sources, decoding, fold. No torch, no Ray."""
