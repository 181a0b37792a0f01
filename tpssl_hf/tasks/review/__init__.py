"""Look at predictions in a browser, correct them, and get the labels back."""
