"""What the ground adds beyond what was measured: compensators, their sampler, their windows, and how far to trust them."""
