"""Settings of the example. Everything a run writes lies in one directory, IMPORT_FEED_STATE."""

import os
from pathlib import Path
from urllib.parse import quote

BASE_DIR = Path(__file__).resolve().parent.parent
STATE = Path(os.environ.get("IMPORT_FEED_STATE") or BASE_DIR / "run").resolve()
BROKER = STATE / "broker"

# Not a secret: the example listens on the loopback interface only and guards nothing.
SECRET_KEY = "import-feed-example-on-loopback-only-not-a-secret"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "djangofeeds",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
ROOT_URLCONF = "project.urls"
STATIC_URL = "static/"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": STATE / "feeds.db",
        "OPTIONS": {
            # Eight children write here. A deferred transaction that turns from reader to writer fails at once
            # with "database is locked", whatever the timeout; one that is a writer from its start waits its turn.
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
}

# Only the cookbook's recipe has its locks here, see compare.py.
CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache"}}
if address := os.environ.get("IMPORT_FEED_MEMCACHED"):
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache", "LOCATION": address}}

# Where the imports leave their begin and end marks; unset, nothing is recorded.
IMPORT_FEED_JOURNAL = os.environ.get("IMPORT_FEED_JOURNAL") or None

CELERY_BROKER_URL = "filesystem://"
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "data_folder_in": str(BROKER / "queue"),
    "data_folder_out": str(BROKER / "queue"),
    "control_folder": str(BROKER / "control"),
    # A message is claimed by renaming it into this folder. The default is the system's temporary directory, and
    # across file systems a move is a copy, which two workers can both make.
    "processed_folder": str(BROKER / "processed"),
    "store_processed": True,
    "polling_interval": 0.05,
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True  # but for the members and the summary of a chord
CELERY_RESULT_BACKEND = f"file://{STATE / 'results'}"
(STATE / "results").mkdir(parents=True, exist_ok=True)
CELERY_BEAT_SCHEDULE = {"all feeds": {"task": "djangofeeds.tasks.import_all", "schedule": 15 * 60.0}}
CELERY_BEAT_SCHEDULE_FILENAME = str(STATE / "beat")
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# Nothing but the demo publishes, see runner/queue.py.
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False

# The one setting the lock needs. Four slashes: an absolute path.
CELERY_ATOMICLOCK_URL = os.environ.get("ATOMICLOCK_URL") or f"sqlite:///{quote(str(STATE / 'locks.db'))}"
