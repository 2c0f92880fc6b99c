"""The Celery app; its options are the CELERY_* names in Django's settings."""

import os

from atomiclock.celery import install
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

app = Celery("import_feed")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
install(app)  # frees the lock of a child that was killed, and checks the settings
