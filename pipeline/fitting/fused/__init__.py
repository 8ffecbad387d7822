"""A compiled loop that fits one small network at a time, from its first step to its last."""
