"""toptune tells from MEA recordings which kind of neuronal network made them."""
