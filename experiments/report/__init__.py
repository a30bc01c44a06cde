"""What `make accelerator-report` measures on a GPU or TPU, and the page that it makes of it."""
