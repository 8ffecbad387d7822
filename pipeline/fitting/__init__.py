"""Finding parameters: method types, phases, lanes, training of what is shared."""
