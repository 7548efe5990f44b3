"""One file per policy; policies never import each other."""
