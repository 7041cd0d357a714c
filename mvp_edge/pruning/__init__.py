"""What all pruning methods share: the problem, training batches, training that may shrink the network, importance.

batches, distillation → finetune → problem → training, checkpoint → results
"""
