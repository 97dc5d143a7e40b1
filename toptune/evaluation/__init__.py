"""How good a head is on devices it has not seen."""
