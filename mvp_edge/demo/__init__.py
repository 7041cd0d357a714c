"""The demo: the whole job on scikit-learn's handwritten digits."""
