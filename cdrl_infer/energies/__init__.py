"""Energies in nats, lower is likelier, and wrappers that combine them."""
