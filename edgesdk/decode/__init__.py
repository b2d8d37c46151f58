"""From logits to text: sampling, stopping, streaming."""
