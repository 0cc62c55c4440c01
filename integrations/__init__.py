"""How frameworks reach the op, one package each."""
