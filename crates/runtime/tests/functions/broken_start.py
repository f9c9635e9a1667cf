def fails():
    raise KeyError("gone")


fails()
