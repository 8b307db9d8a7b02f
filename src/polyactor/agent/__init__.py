"""Who collects, differentiates and applies: the three verbs, and what they are made of."""
