"""toptune: which kind of neuronal network made this recording?"""
