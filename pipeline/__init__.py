"""Datasets turned into implicit neural representations. Never imports Ray."""
