"""The networks that put back on the ground what the satellite's codec lost: one-step and diffusion (COSMIC's other half)."""
