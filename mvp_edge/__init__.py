"""mvp-edge: one pre-trained vision model becomes many small ones, by the votes of earlier prunings."""

__version__ = "0.1.0"
