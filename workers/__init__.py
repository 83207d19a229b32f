"""The Celery application: what a machine of the fleet runs."""
