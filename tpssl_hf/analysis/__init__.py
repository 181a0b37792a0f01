"""The paper's analyses of features and finished runs."""
