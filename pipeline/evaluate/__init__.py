"""What a fitted store is worth: opening it, metrics, meshes, pictures, exports, reports."""
