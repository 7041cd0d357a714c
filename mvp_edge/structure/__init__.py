"""What a network is made of: shapes, tensors in a forward pass, which channels go together, units as data.

shapes → activations → dependencies → units; the families of backbones are described in these terms.
"""
