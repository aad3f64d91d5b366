"""What outputs mean, and how far those of two models are apart."""
