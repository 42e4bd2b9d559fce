"""What the ground adds beyond what was measured: compensators, their sampler, windows, and how far to trust them."""
