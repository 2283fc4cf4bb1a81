"""Flow contrastive estimation of energy-based models (arXiv 1912.00589)."""
