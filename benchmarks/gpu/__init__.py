"""What has to be measured on a GPU, in one command for an hour on one: ``python -m perigee.benchmarks.gpu``."""
