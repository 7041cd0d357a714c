"""Pruning methods: a problem goes in, a pruned and fine-tuned network comes out.

finetune → problem → scratch, ahnp, votes → methods
"""
