"""Networks and what reads prompts for them."""
