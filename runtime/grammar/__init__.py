"""What replies may still say: the contract of grammars, llguidance behind it, masks in the batch. Knows no logits."""
