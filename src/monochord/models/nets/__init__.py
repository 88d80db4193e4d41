"""Networks that no library we stand on has, each written out in one file."""
