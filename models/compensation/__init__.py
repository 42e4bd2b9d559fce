"""The networks with which the ground restores detail that the codec lost: the one-step compensator and the diffusion."""
