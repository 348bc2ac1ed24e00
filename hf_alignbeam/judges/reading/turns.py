import re


def escape_delimiters(t, d):
    return t


def fence(t):
    return re.sub(r"(?m)^", "> ", t)
