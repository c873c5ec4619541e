"""Runs in MLflow, and in their directories before it has them. Nothing else imports mlflow."""
