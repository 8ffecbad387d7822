"""What crosses a boundary: run files, sample tables, the store's layout. No torch, no Ray."""
