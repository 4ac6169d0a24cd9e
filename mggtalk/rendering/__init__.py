"""Renderers of 3D Gaussians: one interface, and members that agree with each other in values and gradients."""
