"""The app's configuration."""

from django.apps import AppConfig


class DjangoFeedsConfig(AppConfig):
    """Feeds and entries."""

    name = "djangofeeds"
    verbose_name = "Feeds"
