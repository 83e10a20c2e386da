"""Networks: backbones, and the heads that make energies and initializers of them."""
