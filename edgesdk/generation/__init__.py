"""From logits to text: the decode loop and what it is made of."""
