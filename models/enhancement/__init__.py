"""Networks that enhance what any codec has decoded: LDM-RSIC's method, and the plain network that it is judged against."""
