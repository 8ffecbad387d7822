"""The command line and the cluster: the only package that imports Ray."""
