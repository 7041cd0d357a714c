"""What all pruning methods share: the problem, training batches, training that may shrink the network, importance.

recipe → batches, distillation → finetune → problem → training, checkpoint → results
"""
