"""Networks: backbones, and heads that turn a backbone into an energy or an initializer."""
