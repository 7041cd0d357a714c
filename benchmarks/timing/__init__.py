"""How long the product's commands and training steps take, on an otherwise idle machine."""
